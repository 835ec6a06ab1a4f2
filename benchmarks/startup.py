"""How long the command takes to answer what needs no model.

Each command is run in turn, a round after another; prints the median and the
least of wall-clock times, and the median of processor times.

  python benchmarks/startup.py
"""

import os
import statistics
import subprocess
import sys
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


def main() -> None:
  """Measures all commands and prints a line for each."""
  times: dict = {arguments: [] for arguments in COMMANDS}
  for _ in range(ROUNDS):
    for arguments in COMMANDS:
      times[arguments].append(measure(arguments))
  for arguments, found in times.items():
    walls, used = zip(*found)
    print(
      f'{" ".join(("atm", *arguments)):<42} {statistics.median(walls):.2f} s '
      f'(least {min(walls):.2f} s), processor {statistics.median(used):.2f} s'
    )


if __name__ == '__main__':
  main()
