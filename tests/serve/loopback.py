"""A server on loopback."""

import contextlib

from atm.serve.app import create_app
from atm.serve.http_server import HttpServer, format_url, listen


@contextlib.contextmanager
def serve(service):
  """Yields the address of a service that answers on loopback."""
  sock = listen('127.0.0.1', 0)
  server = HttpServer(create_app(service), sock)
  server.start()
  yield format_url(sock).rstrip('/')
  server.stop()
