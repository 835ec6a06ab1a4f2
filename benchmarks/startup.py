"""How long commands take to answer, to a first token and to a first step.

Each command is run in turn, a round after another; prints the median and the
least of wall-clock times, and the median of processor times. The folder of a
run of models/tiny.gin, which `make run` makes, adds `infer` of one token, and
`pretrain` on the run's rows up to its first step. Both are warm: a round that
compiles what they need goes before.

  python benchmarks/startup.py [FOLDER]
"""

import functools
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 9
COMMANDS = (
  (), ('--version',), ('infer', '--help'), ('pretrain', '--help'), ('infr',),
  ('infer', '--gin.LIMIT=1'), ('pretrain', '--gin_file=tiny'),
  ('infer', '--gin.MODEL_DIR="none"'),
)  # fmt: skip


def measure(arguments: tuple[str, ...]) -> tuple[float, float]:
  """Returns (wall-clock, processor) seconds of a command."""
  begin, before = time.perf_counter(), os.times()
  subprocess.run([sys.executable, '-m', 'atm', *arguments], capture_output=True)
  after = os.times()
  used = after.children_user - before.children_user
  used += after.children_system - before.children_system
  return time.perf_counter() - begin, used


def measure_infer(run: str) -> tuple[float, float]:
  """Returns (wall-clock, processor) seconds of `infer` for one token."""
  with tempfile.TemporaryDirectory() as folder:
    prompts = pathlib.Path(folder, 'prompts.txt')
    prompts.write_text('All human beings are born\n')
    return measure((
      'infer', f'--gin.MODEL_DIR="{run}"', f'--gin.INPUT="{prompts}"',
      f'--gin.OUTPUT="{folder}/out.jsonl"', '--gin.MAX_TOKENS=1',
    ))  # fmt: skip


def measure_pretrain(run: str) -> tuple[float, float]:
  """Returns (wall-clock, processor) seconds of `pretrain` to its first step."""
  with tempfile.TemporaryDirectory() as folder:
    for name in ('rows', 'vocabulary'):
      shutil.copytree(f'{run}/{name}', f'{folder}/{name}')
    metrics = pathlib.Path(folder, 'metrics.jsonl')
    command = (
      'pretrain', '--gin_file=models/tiny.gin', f'--gin.MODEL_DIR="{folder}"',
      '--gin.TRAIN_STEPS=1',
    )  # fmt: skip
    begin = time.perf_counter()
    process = subprocess.Popen(
      [sys.executable, '-m', 'atm', *command],
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    clock = f'/proc/{process.pid}/stat'
    used = 0.0
    while process.poll() is None:
      if metrics.exists() and '"step": 1,' in metrics.read_text():
        fields = pathlib.Path(clock).read_text().rpartition(')')[2].split()
        used = sum(map(int, fields[11:13])) / os.sysconf('SC_CLK_TCK')
        break
      time.sleep(0.01)
    wall = time.perf_counter() - begin
    process.wait()
  return wall, used


def report(name: str, times: list[tuple[float, float]]) -> None:
  """Prints the line of a command."""
  walls, used = zip(*times)
  print(
    f'{name:<42} {statistics.median(walls):.2f} s '
    f'(least {min(walls):.2f} s), processor {statistics.median(used):.2f} s'
  )


def main() -> None:
  """Measures all commands and prints a line for each."""
  measures = {
    ' '.join(('atm', *arguments)): functools.partial(measure, arguments)
    for arguments in COMMANDS
  }
  for run in map(os.path.abspath, sys.argv[1:]):
    warm = {
      'atm infer, one token': functools.partial(measure_infer, run),
      'atm pretrain, to its first step': functools.partial(
        measure_pretrain, run
      ),
    }
    for compile_first in warm.values():
      compile_first()
    measures |= warm
  times: dict = {name: [] for name in measures}
  for _ in range(ROUNDS):
    for name, measure_once in measures.items():
      times[name].append(measure_once())
  for name, found in times.items():
    report(name, found)


if __name__ == '__main__':
  main()
