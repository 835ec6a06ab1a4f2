"""Access logs: a JSON object a line on standard error, one for each request.

No line has a prompt, an output, a query or a key. JSON escapes what a client
sends, so that nothing can look like another line.
"""

import contextlib
import datetime
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable

from atm.messages import list_frames
from atm.serve.api_error import ApiError
from atm.serve.metrics import Metrics

REQUEST_ID = b'x-request-id'
_SANE_ID = re.compile(rb'[A-Za-z0-9._:-]{1,128}')
_METHODS = 'GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'
# Probes ask every few seconds; their lines would hide the others.
QUIET = '/live', '/health', '/metrics'
_MOST_TEXT = 200  # characters of a path or an address


def write_line(event: dict) -> None:
  """Writes an event with the time; one that cannot be written is dropped."""
  now = datetime.datetime.now(datetime.UTC)
  stamp = now.isoformat(timespec='milliseconds').replace('+00:00', 'Z')
  with contextlib.suppress(OSError, ValueError):
    sys.stderr.write(json.dumps({'time': stamp, **event}) + '\n')
    sys.stderr.flush()


def add_facts(scope: dict, **facts: int | float | str) -> None:
  """Adds what a request's line is to tell; never a client's own text.

  Args:
    scope: of ASGI, `request.scope`.
    facts: numbers, and words of ours, such as `finish_reason='stop'`.
  """
  scope.setdefault('state', {}).setdefault('facts', {}).update(facts)


def choose_request_id(headers) -> str:
  """Returns the X-Request-Id of a request where it is sane, or a new one.

  Args:
    headers: pairs of bytes, names in small letters.
  """
  given = dict(headers).get(REQUEST_ID, b'')
  if _SANE_ID.fullmatch(given):
    return given.decode()
  return secrets.token_hex(12)


class AccessLog:
  """ASGI middleware: gives requests an id, logs and counts them.

  It is the outermost, so that a fault of an application is one line, too, and
  answered with status 500.

  Attributes:
    open_requests: how many are not answered yet.
  """

  def __init__(
    self, app: Callable, metrics: Metrics, write: Callable = write_line
  ):
    self.app, self.metrics, self.write = app, metrics, write
    self.open_requests = 0

  async def __call__(self, scope: dict, receive, send) -> None:
    if scope['type'] != 'http':
      await self.app(scope, receive, send)
      return
    exchange = _Exchange(scope, receive, send)
    self.open_requests += 1
    try:
      await self.app(scope, exchange.receive, exchange.send)
    except Exception as e:  # not CancelledError: that is the server's end
      exchange.fault = e
      if exchange.status is None:
        await exchange.send_fault()
    finally:
      self.open_requests -= 1
      self._report(exchange)

  def _report(self, exchange: '_Exchange') -> None:
    """Counts a request, and logs it."""
    event = exchange.describe()
    route = getattr(exchange.scope.get('route'), 'path', None)
    path = exchange.scope['path']
    handler = path if path in QUIET else route or 'none'
    self.metrics.response(event['method'], handler, event['status'])
    if not (path in QUIET and event['status'] == 200):
      self.write(event)


class _Exchange:
  """A request and its answer, on their way through."""

  def __init__(self, scope: dict, receive, send):
    self.scope, self._receive, self._send = scope, receive, send
    self.id = choose_request_id(scope['headers'])
    scope.setdefault('state', {})['request_id'] = self.id
    self.start = time.perf_counter()
    self.first: float | None = None  # seconds to the first byte of the body
    self.size, self.status = 0, None
    self.ended = self.went_away = False
    self.fault: Exception | None = None

  async def receive(self) -> dict:
    """Receives, and notes where the client went away too early."""
    message = await self._receive()
    if message['type'] == 'http.disconnect' and not self.ended:
      self.went_away = True
    return message

  async def send(self, message: dict) -> None:
    """Sends, and notes status and size; adds the request's id."""
    if message['type'] == 'http.response.start':
      self.status = message['status']
      headers = [h for h in message.get('headers', ()) if h[0] != REQUEST_ID]
      headers.append((REQUEST_ID, self.id.encode()))
      message = {**message, 'headers': headers}
    elif message['type'] == 'http.response.body':
      self.size += len(message.get('body', b''))
      if self.first is None:
        self.first = time.perf_counter() - self.start
      self.ended = not message.get('more_body', False)
    await self._send(message)

  async def send_fault(self) -> None:
    """Answers a request that the application failed at."""
    text = f'a fault of the server; its log has it under {self.id}'
    body = json.dumps(ApiError(500, text).body()).encode()
    head = {'type': 'http.response.start', 'status': 500}
    content_type = (b'content-type', b'application/json')
    length = (b'content-length', str(len(body)).encode())
    await self.send({**head, 'headers': [content_type, length]})
    await self.send({'type': 'http.response.body', 'body': body})

  def describe(self) -> dict:
    """Returns what is logged."""
    method = self.scope['method']
    client = self.scope.get('client')
    event = {
      'event': 'request',
      'request_id': self.id,
      'client': str(client[0])[:_MOST_TEXT] if client else None,
      'method': method if method in _METHODS else 'other',
      'path': self.scope['path'][:_MOST_TEXT],
      # As nginx tells of a client that went away before an answer.
      'status': self.status or 499,
      'seconds': round(time.perf_counter() - self.start, 6),
      'bytes': self.size,
    }
    if self.first is not None:
      event['first_byte_seconds'] = round(self.first, 6)
    if self.went_away:
      event['client_went_away'] = True
    if self.fault is not None:
      # Its text may quote what a client sent.
      event['fault'] = type(self.fault).__name__
      event['where'] = list_frames(self.fault)[:4]
    return event | self.scope['state'].get('facts', {})


class LogHandler(logging.Handler):
  """Writes records of libraries as lines of the same form."""

  def emit(self, record: logging.LogRecord) -> None:
    """Writes a record; of an exception its type and place alone."""
    event = {
      'event': 'log', 'level': record.levelname.lower(),
      'logger': record.name, 'message': record.getMessage()[:1000],
    }  # fmt: skip
    if record.exc_info and (error := record.exc_info[1]):
      event['fault'] = type(error).__name__
    write_line(event)
