"""Thousands of requests to `atm serve`: what is lost, wrong, or leaks.

    python benchmarks/soak.py MODEL_DIR [--requests 10000] [--clients 32]

Starts the server on a tiny model and sends it requests from many threads:
greedy, sampled and beam search, whole and streamed, a tenth of them cancelled
in the middle (the client closes its connection), and a tenth malformed. Every
whole answer is compared with `Model.complete` of its request alone. Counted are
answers that never came, that differ, and those with a status of 500 or more; of
malformed requests, those not refused with a 4xx status and an error that has a
message. The server's resident memory is read all along: its median in the last
tenth of the requests beside that in the second tenth. In the end no request may
be left in the server, which has to end by SIGTERM with status 0.
"""

import argparse
import collections
import http.client
import json
import os
import queue
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

MOST = (17, 20, 24)  # tokens
SECONDS = 120  # that an answer may take
METHODS = (
  dict(temperature=0),
  dict(temperature=0, min_tokens=4, repetition_penalty=1.3),
  dict(temperature=0, no_repeat_ngram_size=2),
  dict(temperature=0.8, seed=3),
  dict(temperature=1.1, seed=4, top_k=9),
  dict(temperature=1.0, seed=5, top_p=0.8, min_p=0.01),
  dict(temperature=0, beams=4),
  dict(temperature=0, beams=3, length_penalty=0.5),
)
MALFORMED = (
  ('/v1/completions', '{"prompt": "a", '),
  ('/v1/completions', '[]'),
  ('/v1/completions', '{"prompt": 3}'),
  ('/v1/completions', '{"prompt": "a", "max_tokens": -1}'),
  ('/v1/completions', '{"prompt": "a", "temperature": "warm"}'),
  ('/v1/completions', '{"prompt": "a", "no_such_field": 1}'),
  ('/v1/completions', '{"prompt": [999999999]}'),
  ('/v1/completions', json.dumps({'prompt': 'long ' * 2000})),
  ('/v1/completions', '{"prompt": "a", "model": "another"}'),
  ('/v1/chat/completions', '{"messages": []}'),
  ('/v1/completions', '\x00\xff'),
  ('/v1/nothing', '{}'),
)


def make_requests(model, texts: list[str]) -> list[tuple[dict, str]]:
  """Returns (body, the right text) of requests."""
  from atm.inference import sampling

  draw, out = random.Random(0), []
  for method in METHODS:
    for most in MOST:
      prompts = [' '.join(draw.choice(texts).split()[:8]) for _ in range(8)]
      config = sampling.Config(max_tokens=most, **method)
      # Each is alone in its request, where its number is 0.
      right = model.complete(prompts, config=config, numbers=[0] * 8)
      body = dict(method, max_tokens=most)
      if beams := body.pop('beams', 0):
        body |= dict(use_beam_search=True, best_of=beams)
      out += [(body | {'prompt': p}, r[0].text) for p, r in zip(prompts, right)]
  return out


class Server:
  """`atm serve` in a process of its own."""

  def __init__(self, model_dir: str, log: str):
    command = [
      sys.executable, '-m', 'atm', 'serve',
      f'--gin.MODEL_DIR={model_dir!r}', '--gin.PORT=0',
    ]  # fmt: skip
    self.log = log
    with open(log, 'w') as f:
      self.process = subprocess.Popen(
        command, cwd=ROOT, stdout=f, stderr=subprocess.STDOUT
      )
    self.port, start = None, time.perf_counter()
    while not self._is_ready():
      if self.process.poll() is not None or time.perf_counter() - start > 600:
        sys.exit(f'the server did not start:\n{open(log).read()[-2000:]}')
      time.sleep(0.2)
    self.seconds = time.perf_counter() - start

  def _is_ready(self) -> bool:
    with open(self.log) as f:
      address = re.search(r'http://127\.0\.0\.1:(\d+)', f.read())
    if not address:
      return False
    self.port = int(address[1])
    try:
      return self.ask('GET', '/health')[0] == 200
    except OSError:
      return False

  def connect(self) -> http.client.HTTPConnection:
    return http.client.HTTPConnection('127.0.0.1', self.port, timeout=SECONDS)

  def ask(self, method: str, path: str, body=None) -> tuple[int, str]:
    connection = self.connect()
    connection.request(method, path, body, {'Content-Type': 'application/json'})
    response = connection.getresponse()
    out = response.status, response.read().decode()
    connection.close()
    return out

  def memory(self) -> float:
    """MiB that are resident."""
    with open(f'/proc/{self.process.pid}/status') as f:
      line = next(x for x in f if x.startswith('VmRSS'))
    return int(line.split()[1]) / 1024


class Soak:
  """Sends requests from several threads, and counts what came of them."""

  def __init__(self, server: Server, requests, count: int):
    self.server, self.requests = server, requests
    self.jobs: queue.Queue = queue.Queue()
    draw = random.Random(1)
    for _ in range(count):
      kind = draw.random()
      self.jobs.put(
        ('cancelled' if kind < 0.1 else 'malformed' if kind < 0.2 else 'whole',
         draw.randrange(2**30))
      )  # fmt: skip
    self.counts: collections.Counter = collections.Counter()
    self.faults: list[str] = []
    self.memory: list[float] = []

  def run(self, clients: int) -> None:
    threads = [threading.Thread(target=self.work) for _ in range(clients)]
    for thread in threads:
      thread.start()
    total = self.jobs.qsize() or 1
    while any(thread.is_alive() for thread in threads):
      self.memory.append(self.server.memory())
      time.sleep(0.5)
      done = sum(self.counts[x] for x in ('whole', 'cancelled', 'malformed'))
      if len(self.memory) % 40 == 0:
        print(f'{done:,} done, {self.memory[-1]:.0f} MiB, {total:,} left at '
              'the start', flush=True)  # fmt: skip

  def work(self) -> None:
    connection = self.server.connect()
    while True:
      try:
        kind, seed = self.jobs.get_nowait()
      except queue.Empty:
        return
      try:
        getattr(self, kind)(connection, random.Random(seed))
      except Exception as e:
        self.note('lost', f'{kind}: {type(e).__name__}: {e}')
        connection = self.server.connect()
      self.counts[kind] += 1

  def note(self, fault: str, text: str) -> None:
    self.counts[fault] += 1
    self.faults.append(f'{fault}: {text}'[:300])

  def send(self, connection, path: str, body):
    connection.request(
      'POST', path, body.encode('latin-1', 'replace'),
      {'Content-Type': 'application/json'},
    )  # fmt: skip
    response = connection.getresponse()
    if response.status >= 500:
      self.note('server errors', f'{response.status} {body[:100]}')
    return response

  def whole(self, connection, draw) -> None:
    body, right = draw.choice(self.requests)
    # Beams are told in the end, streamed or not.
    stream = draw.random() < 0.5
    response = self.send(
      connection, '/v1/completions', json.dumps(body | {'stream': stream})
    )
    text = response.read().decode()
    if response.status != 200:
      return self.note('wrong', f'{response.status} {text}')
    if stream:
      lines = [x[6:] for x in text.splitlines() if x.startswith('data: ')]
      if not lines or lines.pop() != '[DONE]':
        return self.note('lost', f'a stream without its end: {text[-100:]}')
      events = [json.loads(line)['choices'] for line in lines]
      made = ''.join(x[0]['text'] for x in events if x)
    else:
      made = json.loads(text)['choices'][0]['text']
    if made != right:
      self.note('wrong', f'{body}: {made!r}, not {right!r}')

  def cancelled(self, connection, draw) -> None:
    body, _ = draw.choice(self.requests)
    own = self.server.connect()
    response = self.send(
      own, '/v1/completions', json.dumps(body | {'stream': True})
    )
    if draw.random() < 0.5:
      response.readline()
    time.sleep(draw.random() * 0.1)
    own.sock and own.sock.close()
    own.close()

  def malformed(self, connection, draw) -> None:
    response = self.send(connection, *draw.choice(MALFORMED))
    text = response.read().decode()
    refused = 400 <= response.status < 500
    if not refused or not json.loads(text)['error']['message']:
      self.note('malformed but served', f'{response.status} {text}')


def read_metric(server: Server, name: str) -> float:
  """Returns the sum of a metric's values."""
  _, text = server.ask('GET', '/metrics')
  found = re.findall(rf'^atm:{name}(?:{{[^}}]*}})? (\S+)$', text, re.M)
  return sum(map(float, found))


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('model_dir')
  parser.add_argument('--requests', type=int, default=10_000)
  parser.add_argument('--clients', type=int, default=32)
  args = parser.parse_args()
  from atm.inference import api

  with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as f:
    texts = [x for x in f.read().splitlines() if len(x.split()) > 8]
  model_dir = os.path.abspath(args.model_dir)
  requests = make_requests(api.load(model_dir), texts)
  with tempfile.TemporaryDirectory() as folder:
    server = Server(model_dir, os.path.join(folder, 'log'))
    print(f'started in {server.seconds:.1f} s', flush=True)
    soak, start = Soak(server, requests, args.requests), time.perf_counter()
    soak.run(args.clients)
    seconds = time.perf_counter() - start
    time.sleep(1)
    left = read_metric(server, 'num_requests_running')
    left += read_metric(server, 'num_requests_waiting')
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(60)
    with open(server.log) as f:
      tracebacks = f.read().count('Traceback')
  tenth = max(1, len(soak.memory) // 10)
  early = statistics.median(soak.memory[tenth : 2 * tenth] or soak.memory)
  late = statistics.median(soak.memory[-tenth:])
  counts = soak.counts
  print(
    f'{args.requests:,} requests in {seconds:.0f} s by {args.clients} clients: '
    + ', '.join(f'{counts[x]:,} {x}' for x in ('whole', 'cancelled',
                                               'malformed'))
  )  # fmt: skip
  faults = ('lost', 'wrong', 'server errors', 'malformed but served')
  print(', '.join(f'{counts[x]} {x}' for x in faults))
  print(
    f'{left:.0f} requests left, {tracebacks} tracebacks, status {status}; '
    f'resident {early:.0f} MiB early, {late:.0f} MiB late'
  )
  for fault in soak.faults[:10]:
    print(fault)
  if left or tracebacks or status or any(counts[x] for x in faults):
    sys.exit(1)


if __name__ == '__main__':
  main()
