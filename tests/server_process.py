"""`atm serve` in a process of its own, and clients that can be killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

# Reads a stream, and is a process, so that it can be killed.
CLIENT = """
import http.client, json, sys
port, body = int(sys.argv[1]), sys.argv[2]
connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
connection.request('POST', '/v1/completions', body)
response = connection.getresponse()
print(response.status, flush=True)
while line := response.readline():
  print(line.decode().rstrip(), flush=True)
"""


def body(**fields) -> str:
  """Returns the body of a request for a completion, by default a stream."""
  return json.dumps(
    {'prompt': 'All human beings', 'mode': 'clm', 'stream': True, **fields}
  )


class Server:
  """A server in a process of its own.

  Attributes:
    process: its process.
    lines: of its standard output.
    log: events of its standard error; other lines as texts.
    started: seconds of a processor until it was ready; those of a clock would
      be of the machine's other work, too.
  """

  def __init__(self, folder, *settings: str, port: int = 0):
    self.settings = folder, settings
    self.process, self.port = None, port

  def start(self, seconds: float = 300) -> Server:
    """Starts it, and waits until it is ready."""
    folder, settings = self.settings
    command = [
      sys.executable, '-m', 'atm', 'serve', f'--gin.MODEL_DIR={str(folder)!r}',
      f'--gin.PORT={self.port}', *settings,
    ]  # fmt: skip
    self.process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONUNBUFFERED': '1'},
    )  # fmt: skip
    self.lines, self.log = [], []
    self._readers = [
      self._read(self.process.stdout, self.lines.append),
      self._read(self.process.stderr, lambda x: self.log.append(parse(x))),
    ]
    self.wait_for(lambda: ' serves ' in ''.join(self.lines), seconds)
    self.port = int(re.search(r'http://127\.0\.0\.1:(\d+)/', self.lines[0])[1])
    self.started = read_cpu_seconds(self.process.pid)
    return self

  def _read(self, stream, take) -> threading.Thread:
    """Takes a stream's lines in a thread, so that no pipe is ever full."""

    def read():
      for line in stream:
        take(line.rstrip('\n'))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread

  def wait_for(self, is_so, seconds: float = 20) -> None:
    """Waits until something is so; fails where it ends or takes too long."""
    deadline = time.monotonic() + seconds
    while not is_so():
      assert self.process.poll() is None, (self.lines, self.log)
      assert time.monotonic() < deadline, (self.lines, self.log)
      time.sleep(0.02)

  def ask(self, method: str, path: str, content=None):
    """Returns (status, headers, content) of an answer."""
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
    with contextlib.closing(connection):
      connection.request(method, path, content)
      response = connection.getresponse()
      return response.status, response.headers, response.read().decode()

  def read_metric(self, name: str, label: str = '') -> float:
    """Returns the value of a metric, 0 where it has none yet."""
    _, _, text = self.ask('GET', '/metrics')
    pattern = rf'^{name}\{{[^}}]*{label}[^}}]*\}} (\S+)$'
    return sum(map(float, re.findall(pattern, text, re.M)))

  def open_stream(self, **fields) -> subprocess.Popen:
    """Starts a client that reads a stream."""
    return subprocess.Popen(
      [sys.executable, '-S', '-c', CLIENT, str(self.port), body(**fields)],
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

  def signal(self, number: int) -> None:
    """Sends it a signal."""
    self.process.send_signal(number)

  def wait(self, seconds: float = 30) -> int:
    """Returns its exit status once it ended, and its output is read."""
    status = self.process.wait(seconds)
    for reader in self._readers:
      reader.join(10)
    return status

  def __enter__(self) -> Server:
    try:
      return self if self.process else self.start()
    except BaseException:
      self.process.kill()
      raise

  def __exit__(self, *error) -> None:
    if self.process.poll() is None:
      self.process.kill()
    self.wait()


def parse(line: str) -> dict | str:
  """Returns the event of a line of the access log; another line as it is."""
  with contextlib.suppress(ValueError):
    return json.loads(line)
  return line


def read_cpu_seconds(pid: int) -> float:
  """Returns the time that all processors worked for a process."""
  with open(f'/proc/{pid}/stat') as f:
    fields = f.read().rpartition(')')[2].split()
  return sum(map(int, fields[11:13])) / os.sysconf('SC_CLK_TCK')


def kill(process: subprocess.Popen) -> None:
  """Kills a client by SIGKILL."""
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
