"""Answers HTTP in a thread of its own, by uvicorn.

The main thread hears signals and loads the model meanwhile, so that probes are
answered from the first second on.
"""

import errno
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable

import uvicorn

from atm.messages import quote
from atm.serve.access_log import LogHandler

CLOSE_SECONDS = 5  # that connections have to end, once all is answered
# Longer than the minute for which balancers keep connections: who closes first
# is to be the balancer, or a request may meet a closing one.
KEEP_ALIVE_SECONDS = 75


def find_address(host: str, port: int) -> tuple:
  """Returns (family, address) to listen at; of IPv4 where a name has both.

  Raises ValueError for a host that has no address.
  """
  try:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
  except (OSError, UnicodeError):
    raise ValueError(
      f"HOST = {quote(host)}: no address: expected '127.0.0.1' for this "
      "machine alone, or '0.0.0.0' for all of its addresses"
    ) from None
  family, _, _, _, address = min(found, key=lambda x: x[0] != socket.AF_INET)
  return family, address


def is_loopback(host: str) -> bool:
  """Tells whether only this machine can reach an address."""
  return ipaddress.ip_address(host.partition('%')[0]).is_loopback


def check_exposure(host: str, api_key: str | None, is_open: bool) -> None:
  """Raises ValueError for an address that others reach, without a key.

  Args:
    host: the setting.
    api_key: what clients must bear.
    is_open: whether it was said that all may ask.
  """
  _, address = find_address(host, 0)
  if api_key is None and not is_open and not is_loopback(address[0]):
    raise ValueError(
      f'HOST = {quote(host)}: others could use the model: set API_KEY, or '
      "ATM_API_KEY in the environment, keep '127.0.0.1', or say OPEN=True "
      'where anybody may'
    )


def listen(host: str, port: int) -> socket.socket:
  """Returns a socket that listens; port 0 takes a free one.

  Raises ValueError where it cannot.
  """
  family, address = find_address(host, port)
  sock = socket.socket(family, socket.SOCK_STREAM)
  try:
    # A server that was killed leaves connections, which would hold the port.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    sock.listen(2048)
  except OSError as e:
    sock.close()
    raise ValueError(_explain(e, host, port)) from None
  return sock


def _explain(error: OSError, host: str, port: int) -> str:
  """Returns why a server cannot listen, and what to do."""
  if error.errno == errno.EADDRINUSE:
    return (
      f'PORT = {port}: another process listens there, at {quote(host)}: end '
      'it, or name another PORT; 0 takes a free one'
    )
  if error.errno in (errno.EACCES, errno.EPERM):
    return (
      f'PORT = {port}: this user may not listen there: expected one above '
      '1023, or 0 for a free one'
    )
  return (
    f'HOST = {quote(host)}: {error.strerror}: expected an address of this '
    "machine, such as '127.0.0.1' or '0.0.0.0'"
  )


def format_url(sock: socket.socket) -> str:
  """Returns the address to open in a browser on this machine."""
  host, port = sock.getsockname()[:2]
  if ipaddress.ip_address(host.partition('%')[0]).is_unspecified:
    host = 'localhost'
  return f'http://{f"[{host}]" if ":" in host else host}:{port}/'


class HttpServer:
  """An ASGI application at a socket, until it is stopped.

  Attributes:
    failure: the exception that ended it, or None.
  """

  def __init__(self, app: Callable, sock: socket.socket):
    for name in ('uvicorn.error', 'asyncio'):
      logger = logging.getLogger(name)
      logger.handlers, logger.propagate = [LogHandler(logging.WARNING)], False
    config = uvicorn.Config(
      app, log_config=None, log_level=logging.WARNING, access_log=False,
      lifespan='off', ws='none', server_header=False,
      timeout_keep_alive=KEEP_ALIVE_SECONDS,
      timeout_graceful_shutdown=CLOSE_SECONDS,
    )  # fmt: skip
    self.failure: BaseException | None = None
    self._server, self._socket = uvicorn.Server(config), sock
    self._thread = threading.Thread(
      target=self._run, name='atm-http', daemon=True
    )

  def _run(self) -> None:
    try:
      self._server.run(sockets=[self._socket])
    except BaseException as e:  # the main thread is to hear of it
      self.failure = e

  def start(self) -> None:
    """Begins to answer."""
    self._thread.start()

  def is_alive(self) -> bool:
    """Tells whether it answers."""
    return self._thread.is_alive()

  def stop(self) -> None:
    """Closes the port, and connections, once what runs is answered."""
    self._server.should_exit = True
    self._thread.join(2 * CLOSE_SECONDS)
