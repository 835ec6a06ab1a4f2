"""Serving under load: continuous batching beside batches, in one sitting.

d512, 6 + 6 layers, ff 2048, 8 heads, vocabulary 32,000, float32, random
parameters that all share. Requests arrive at random (Poisson), with 16 to 512
tokens in and 8 to 128 out, both log-uniform (or `--lengths uniform`); each
output has its exact length. Contestants:

- engine: `atm.serve.Engine`, 32 slots.
- static: `Model.complete` of all that waits, up to 32, as `atm infer` has it.
- ctranslate2: translate_batch of all that waits; a row that has its tokens
  leaves its batch. `:2x1x32` are two translators of one thread each, batches of
  up to 32; with an `s` behind, a batch is the oldest request and those nearest
  to its length. Several settings may be named; the best counts.

Every contestant is a process of its own, on the same cores. At each rate all
of them get the same requests at the same moments, in turn; one whose p95
latency is beyond `--bound` seconds gets no greater rate. Printed are, by rate,
tokens a second, p50 and p95 latency and p95 of the time to the first token
(static has no tokens before its last). In the end, for each: the greatest rate
with p95 within the bound, between two rates by interpolation, its tokens a
second, and the ratio to the engine's. `at once` is the throughput when all
requests wait from the start, with CPU time, which other load on the machine
disturbs less, in ms a token. Ids of all contestants are compared first. The
load of each rate is rehearsed by static, whose programs compile as it goes.

  python benchmarks/serve.py [--peer_python PYTHON]

PYTHON has ctranslate2; by default it is the one that runs this. `--only`,
`--rates` and `--rounds` shorten it.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile

import serve_load
import train_step
from serve_load import CONTESTANTS

RATES = (2, 3, 4, 5, 6.5, 8, 10, 12.5, 16, 20)  # requests a second
NAMES = (
  'engine', 'static', 'ctranslate2:1x2x32', 'ctranslate2:2x1x32',
  'ctranslate2:2x1x16s',
)  # fmt: skip


class Worker:
  """A contestant in a process of its own."""

  def __init__(self, name: str, args, folder: str):
    is_ours = not name.startswith('ctranslate2')
    python = sys.executable if is_ours else args.peer_python
    self.process = subprocess.Popen(
      [
        python, os.path.abspath(__file__), '--worker', name,
        '--threads', str(args.threads),
      ],
      env=serve_load.environment(args, folder, is_ours),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )  # fmt: skip
    self.name, self.args = name, args
    self.read()

  def read(self):
    line = self.process.stdout.readline()
    if not line:
      sys.exit(f'{self.name} ended with status {self.process.wait()}')
    return json.loads(line)

  def run(self, **run) -> dict:
    run |= dict(lengths=self.args.lengths)
    self.process.stdin.write(json.dumps(run) + '\n')
    self.process.stdin.flush()
    return self.read()

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()


def compare_ids(workers: list[Worker]) -> None:
  """Ends the benchmark where two contestants write other ids."""
  run = dict(rate=0, count=16, seed=1, ids=True)
  made = {worker.name: worker.run(**run)['ids'] for worker in workers}
  first = next(iter(made.values()))
  for name, ids in made.items():
    pairs = [(x, y) for a, b in zip(first, ids) for x, y in zip(a, b)]
    same = sum(x == y for x, y in pairs) / len(pairs)
    print(f'{name:20} {same:.1%} of ids are those of {workers[0].name}')
    if same < 0.99:
      sys.exit('another model')


def warm_up(workers: list[Worker], args) -> None:
  """Lets what compiles as it goes meet the shapes of batches."""
  for worker in workers:
    for count in (1, 2, 4, 8, 16, 32, 64):
      worker.run(rate=0, count=count, seed=count)


def show(name: str, rate, run: dict) -> None:
  print(
    f'{name:20}{rate:>9}{run["tokens_s"]:10.0f}{run["p50"]:9.2f}'
    f'{run["p95"]:9.2f}{run["first95"]:9.2f}{run["cpu"]:9.2f}',
    flush=True,
  )


def measure(workers: list[Worker], args) -> tuple[dict, dict]:
  """Returns by name the runs at once, and {rate: run}."""
  heads = ('requests/s', 'tokens/s', 'p50 s', 'p95 s', 'first95', 'CPU ms')
  print(f'{"":19}{heads[0]}' + ''.join(f'{x:>9}' for x in heads[1:]))
  at_once = {worker.name: [] for worker in workers}
  for round in range(args.rounds):
    for worker in workers:
      run = worker.run(rate=0, count=args.at_once, seed=100 + round)
      at_once[worker.name].append(run)
      show(worker.name, 'at once', run)
  curves, open_ones = {worker.name: {} for worker in workers}, list(workers)
  for rate in args.rates:
    count = max(40, math.ceil(rate * args.seconds))
    for worker in list(open_ones):
      load = dict(rate=rate, count=count, seed=1000 + int(10 * rate))
      if worker.name == 'static':
        worker.run(**load)  # programs of new shapes compile in here
      run = worker.run(**load)
      curves[worker.name][rate] = run
      show(worker.name, rate, run)
      if run['p95'] > args.bound:
        open_ones.remove(worker)
    if not open_ones:
      break
  return at_once, curves


def find_greatest(curve: dict, bound: float) -> tuple[float, float]:
  """Returns the rate at which p95 reaches the bound, and its tokens/s."""
  rates = sorted(curve)
  inside = [rate for rate in rates if curve[rate]['p95'] <= bound]
  beyond = [rate for rate in rates if curve[rate]['p95'] > bound]
  if not inside:
    return 0.0, 0.0
  low = inside[-1]
  if not beyond or beyond[0] < low:
    return low, curve[low]['tokens_s']
  high = beyond[0]
  a, b = (math.log(curve[rate]['p95']) for rate in (low, high))
  share = (math.log(bound) - a) / (b - a)
  between = lambda x, y: x + share * (y - x)
  tokens = [curve[rate]['tokens_s'] for rate in (low, high)]
  return between(low, high), between(*tokens)


def summarise(at_once: dict, curves: dict, bound: float) -> None:
  """Prints the table of ratios."""
  first = next(iter(curves))
  median = lambda name, key: statistics.median(x[key] for x in at_once[name])
  ratio = lambda name, key: statistics.median(
    a[key] / b[key] for a, b in zip(at_once[first], at_once[name])
  )
  best = {name: find_greatest(curve, bound) for name, curve in curves.items()}
  print(f'\np95 within {bound} s; {first} is so many times as fast as each')
  print(
    f'{"":20}requests/s  tokens/s   ratio  at once: tokens/s   ratio'
    '   CPU ms   ratio'
  )
  for name, (rate, tokens) in best.items():
    times = best[first][1] / tokens if tokens else math.inf
    print(
      f'{name:20}{rate:10.1f}{tokens:10.0f}{times:8.2f}'
      f'{median(name, "tokens_s"):19.0f}{ratio(name, "tokens_s"):8.2f}'
      f'{median(name, "cpu"):9.2f}{1 / ratio(name, "cpu"):8.2f}'
    )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--peer_python', default=sys.executable)
  parser.add_argument('--only', nargs='*', default=NAMES)
  parser.add_argument('--rates', nargs='*', type=float, default=RATES)
  parser.add_argument('--bound', type=float, default=5.0)
  parser.add_argument('--seconds', type=float, default=15.0)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--at_once', type=int, default=128)
  parser.add_argument('--lengths', choices=('log', 'uniform'), default='log')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--worker')
  args = parser.parse_args()
  if args.worker:
    return serve_load.work(args)
  names = [x for x in args.only if x.partition(':')[0] in CONTESTANTS]
  if not train_step.has_peers(args.peer_python, 'ctranslate2'):
    names = [x for x in names if not x.startswith('ctranslate2')]
  found = train_step.find_processor()
  print(f'{found}, {args.threads} threads, {args.lengths} lengths')
  with tempfile.TemporaryDirectory() as folder:
    workers = [Worker(name, args, folder) for name in names]
    compare_ids(workers)
    warm_up(workers, args)
    results = measure(workers, args)
    for worker in workers:
      worker.close()
  summarise(*results, args.bound)


if __name__ == '__main__':
  main()
