"""A proxy on loopback that lets an object store fail as real ones do.

It stands between a client and a server of `storage_servers`. Faults are queued,
and the first request that one fits meets it:

    with faulty_proxy.Proxy(environment['AWS_ENDPOINT_URL']) as proxy:
      monkeypatch.setenv('AWS_ENDPOINT_URL', proxy.url)
      proxy.fail('status', code=503, method='GET', times=2)
"""

import dataclasses
import http.client
import http.server
import socket
import struct
import threading
import time
import urllib.parse

# Kind of a fault -> what the client sees of it.
KINDS = {
  'status': 'an answer with a code; the server is not asked',
  'refuse': 'the connection ends before an answer; the server is not asked',
  'lose': 'the connection ends before an answer; the server has done it',
  'drop': 'the connection ends in the middle of the answer',
  'stall': 'the answer stops in its middle for some seconds, then ends',
  'slow': 'the whole answer, some seconds late',
}
_HOP = {'connection', 'transfer-encoding', 'content-length', 'keep-alive'}


@dataclasses.dataclass
class Fault:
  """One of KINDS, for requests of a method whose path holds a text."""

  kind: str
  code: int = 503
  method: str = ''
  path: str = ''
  times: int = 1
  seconds: float = 0.0

  def fits(self, method: str, path: str) -> bool:
    """Tells whether a request is one to fail."""
    return self.times > 0 and self.method in ('', method) and self.path in path


class Proxy:
  """Hands requests on to a server, but for those that are to fail.

  Attributes:
    url: where it listens.
    requests: (method, path, kind of the fault or '') of all so far.
  """

  def __init__(self, target: str):
    self.target = urllib.parse.urlsplit(target).netloc
    self.requests: list[tuple[str, str, str]] = []
    self._faults: list[Fault] = []
    self._lock = threading.Lock()
    handler = type('Handler', (_Handler,), {'proxy': self})
    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    self._server.daemon_threads = True
    self._server.handle_error = lambda *args: None  # a client that went away
    self.netloc = f'127.0.0.1:{self._server.server_address[1]}'
    self.url = f'http://{self.netloc}'

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *error):
    self._server.shutdown()
    self._server.server_close()

  def fail(self, kind: str, **settings) -> None:
    """Queues a fault, see `Fault`."""
    assert kind in KINDS, kind
    with self._lock:
      self._faults.append(Fault(kind, **settings))

  def heal(self) -> None:
    """Removes all faults that are left, and forgets the requests."""
    with self._lock:
      self._faults.clear()
      self.requests.clear()

  def count(self, kind: str) -> int:
    """Returns how many requests met a fault of a kind."""
    return sum(met == kind for _, _, met in self.requests)

  def meet(self, method: str, path: str) -> Fault | None:
    """Returns the fault that a request meets, once less from now on."""
    with self._lock:
      fault = next((f for f in self._faults if f.fits(method, path)), None)
      if fault:
        fault.times -= 1
      self.requests.append((method, path, fault.kind if fault else ''))
      return fault


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers one client's requests."""

  protocol_version = 'HTTP/1.1'
  proxy: Proxy

  def log_message(self, *args) -> None:
    """Stays silent."""

  def _serve(self) -> None:
    body = self._read_body()
    fault = self.proxy.meet(self.command, self.path)
    kind = fault.kind if fault else ''
    if kind == 'status':
      text = b'' if self.command == 'HEAD' else b'{"error": "injected"}'
      self._send(fault.code, [('Content-Type', 'application/json')], text)
      return
    if kind == 'refuse':
      self._cut()
      return
    status, headers, answer = self._ask(body)
    if kind == 'lose':
      self._cut()
    elif kind in ('drop', 'stall'):
      self._send(status, headers, answer, answer[: len(answer) // 2])
      if kind == 'stall':
        time.sleep(fault.seconds)
      self._cut()
    else:
      time.sleep(fault.seconds if fault else 0)
      self._send(status, headers, answer)

  do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = _serve

  def _read_body(self) -> bytes:
    if self.headers.get('Expect', '').lower() == '100-continue':
      self.send_response_only(100)
      self.end_headers()
    if 'chunked' not in self.headers.get('Transfer-Encoding', ''):
      return self.rfile.read(int(self.headers.get('Content-Length', 0)))
    body = b''
    while size := int(self.rfile.readline().split(b';')[0], 16):
      body += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return body

  def _ask(self, body: bytes) -> tuple[int, list, bytes]:
    """Returns (status, headers, body) of the server's answer."""
    server = http.client.HTTPConnection(self.proxy.target, timeout=60)
    headers = {k: v for k, v in self.headers.items()
               if k.lower() not in {*_HOP, 'expect'}}  # fmt: skip
    server.request(self.command, self.path, body, headers)
    answer = server.getresponse()
    content = answer.read()
    # Uploads go on where the server says, which has to be here.
    here, there = self.proxy.netloc, self.proxy.target
    given = [(k, v.replace(there, here)) for k, v in answer.getheaders()
             if k.lower() not in _HOP]  # fmt: skip
    if self.command == 'HEAD':
      given.append(('Content-Length', answer.getheader('Content-Length', '0')))
    server.close()
    return answer.status, given, content

  def _send(self, status: int, headers, content: bytes, part=None) -> None:
    """Sends an answer, or of its content a part alone."""
    self.send_response_only(status)
    for name, value in headers:
      self.send_header(name, value)
    if 'content-length' not in {name.lower() for name, _ in headers}:
      self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content if part is None else part)
    self.wfile.flush()

  def _cut(self) -> None:
    """Ends the connection at once, with a reset."""
    now = struct.pack('ii', 1, 0)
    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
    self.close_connection = True
