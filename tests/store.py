"""A stand-in for an object store: serves a folder as Google's does."""

import contextlib
import http.server
import json
import os
import re
import threading
import urllib.parse


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  folder = ''

  def log_message(self, *arguments):
    pass

  def do_GET(self):
    url = urllib.parse.urlparse(self.path)
    name = urllib.parse.unquote(url.path.rpartition('/o/')[2])
    path = os.path.join(self.folder, name)
    if not os.path.isfile(path):
      return self._answer(404, b'')
    with open(path, 'rb') as f:
      whole = f.read()
    if 'alt=media' not in url.query:
      about = {'name': name, 'bucket': 'bucket', 'size': str(len(whole))}
      return self._answer(200, json.dumps(about).encode())
    span = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
    if not span:
      return self._answer(200, whole)
    first, last = span.groups()
    start = int(first) if first else max(0, len(whole) - int(last))
    end = min(int(last) + 1 if first and last else len(whole), len(whole))
    where = {'Content-Range': f'bytes {start}-{end - 1}/{len(whole)}'}
    self._answer(206, whole[start:end], where)

  def _answer(self, status: int, body: bytes, headers=None):
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)


@contextlib.contextmanager
def serve(folder: str):
  """Serves `folder` as gs://bucket on loopback; yields the address."""
  handler = type('Handler', (_Handler,), {'folder': str(folder)})
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_address[1]}'
  finally:
    server.shutdown()
    server.server_close()
