"""What a training step and decoding cost without XLA's YNN fusions, on the CPU.

`with` is XLA's default, `without` has XLA_FLAGS = FLAG. The model has
models/tiny's sizes, or with `--size small` those of train_step.py. Both run in
turn, each in a process of its own, `--rounds` times. Stated are medians over
the rounds, and the median over the rounds of `without` / `with`, for seconds
and for CPU seconds (all threads together, to be looked at where the machine is
busy with other things).

  python benchmarks/fusions.py [--size small]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

# Of train_step.py, and (encoder tokens, new tokens, batch) of decode.py.
SIZES = {
  'tiny': (
    dict(V=1280, D=128, L=2, F=512, H=4, B=40, S=48, T=48),
    (48, 24, 32),
  ),
  'small': ({}, (512, 64, 8)),
}
FLAG = '--xla_cpu_experimental_ynn_fusion_type='  # jaxlib 0.10 to 0.12


def time_calls(call, number: int) -> tuple[float, float]:
  """Returns the median of seconds, and the mean of CPU seconds, of a call."""
  call(), call()
  seconds, cpu = [], time.process_time()
  for _ in range(number):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds), (time.process_time() - cpu) / number


def work(args) -> None:
  """Times a training step and a generation; prints them as a line of JSON."""
  import numpy as np
  import train_step

  from atm.parallel import xla_options

  xla_options.set_flags = lambda: None  # the environment has them
  sizes, (encoder, new, batch) = SIZES[args.size]
  vars(train_step).update(sizes)
  import decode  # takes its sizes from train_step

  options = argparse.Namespace(
    worker='atm', set=[], full=False, hlo=None, beams=1
  )
  trained = train_step.Ours(options)
  times = {'training step': time_calls(trained.step, args.steps)}
  del trained
  decoder = decode.Ours(options)
  rows = np.random.default_rng(0).integers(3, decode.V, (batch, encoder))
  times['decoding'] = time_calls(
    lambda: decoder.generate(rows.tolist(), new), max(args.steps // 4, 3)
  )
  print(json.dumps(times))


def run(flag: str, args) -> dict:
  """Returns what `work` measures in a process with a flag."""
  done = subprocess.run(
    [sys.executable, os.path.abspath(__file__), '--worker',
     '--size', args.size, '--steps', str(args.steps)],
    env={**os.environ, 'XLA_FLAGS': flag},
    stdout=subprocess.PIPE, check=True,
  )  # fmt: skip
  return json.loads(done.stdout.splitlines()[-1])


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--size', choices=list(SIZES), default='tiny')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--steps', type=int, default=40)
  parser.add_argument('--worker', action='store_true')
  args = parser.parse_args()
  if args.worker:
    return work(args)
  runs = [(run('', args), run(FLAG, args)) for _ in range(args.rounds)]
  median = statistics.median
  for name in runs[0][0]:
    for unit, kind in enumerate(('s', 'CPU s')):
      pairs = [(a[name][unit], b[name][unit]) for a, b in runs]
      ratios = [b / a for a, b in pairs]
      print(
        f'{name:14} with {median(a for a, _ in pairs):.4f} {kind}, without '
        f'{median(b for _, b in pairs):.4f}, ratio {median(ratios):.3f} '
        f'({min(ratios):.3f} to {max(ratios):.3f})'
      )


if __name__ == '__main__':
  main()
