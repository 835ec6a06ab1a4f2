"""Goodput: what the wall time of a run was spent on, restarts included.

Every process of a run appends lines to MODEL_DIR/goodput.jsonl: when it began,
at which step, how far it is, and the seconds so far by kind. A run's goodput is
the share of its wall time, from its first start to its last line, that went
into steps that still count; time between processes and steps done twice do not.
"""

import contextlib
import json
import os
import time

from atm import storage
from atm.fileio import Finite
from atm.train import metric_writer

GOODPUT_FILE = 'goodput.jsonl'
# What is measured; the rest of a process's time is `step`.
MEASURED = ('setup', 'compile', 'data', 'checkpoint', 'evaluation')
MEANING = {
  'step': 'steps that count',
  'setup': 'reading rows, vocabulary and checkpoint',
  'compile': 'compiling',
  'data': 'waiting for a batch',
  'checkpoint': 'saving',
  'evaluation': 'evaluating',
  'repeated': 'steps done again after an interruption',
  'down': 'between two processes',
}

# Of a host's last steps, see `host_times`; `seconds` is the sum of the next
# three.
HOST_SECONDS = ('seconds', 'data', 'own', 'devices', 'idle')
HOST = {
  'process': int, 'host': str, 'steps': int,
  **dict.fromkeys(HOST_SECONDS, Finite),
}  # fmt: skip
# Of a process up to its first step, see `first_step`.
FIRST_STEP = {
  'process': int, 'seconds': Finite, 'compiled': int, 'cached': int
}  # fmt: skip
# What a process computes on, see `machine.describe_machine`.
MACHINE = {'kind': str, 'devices': int}
LINE = {
  'began': Finite,
  'now': Finite,
  'first': int,
  'step': int,
  'seconds': {**dict.fromkeys(MEASURED, Finite)},
  'starts?': [FIRST_STEP],
  'hosts?': [HOST],
  'slow?': [int],
  'machine?': MACHINE,
}


class Goodput:
  """The seconds of this process, by kind."""

  def __init__(self, clock=time.time):
    self.clock = clock
    self.began = clock()
    self.seconds = dict.fromkeys(MEASURED, 0.0)

  @contextlib.contextmanager
  def spent_on(self, kind: str):
    """Counts the time inside as of a kind."""
    start = self.clock()
    try:
      yield
    finally:
      self.seconds[kind] += self.clock() - start

  def open(
    self, directory: str, step: int, writes: bool = True, **more
  ) -> None:
    """Counts the time so far as `setup`; the loop begins after `step` steps.

    The first line of the process has more of LINE.
    """
    # All hosts count, one of them writes.
    path = os.path.join(directory, GOODPUT_FILE)
    self._log = storage.PartLog(path if writes else os.devnull)
    self.first = step
    self.before = read_goodput(directory)
    other = sum(self.seconds.values()) - self.seconds['setup']
    self.seconds['setup'] = self.clock() - self.began - other
    self.write(step, **more)

  def write(self, step: int, **more) -> None:
    """Appends how far the process is, and more of LINE."""
    self._log.append(json.dumps({**self._line(step), **more}) + '\n')

  def close(self) -> None:
    """Writes what was kept back, see `PartLog`."""
    self._log.close()

  def share(self, step: int) -> float:
    """Returns the run's goodput so far, with the processes before this one."""
    return goodput_share(sum_by_kind([*self.before, self._line(step)]))

  def _line(self, step: int) -> dict:
    here = {'began': self.began, 'now': self.clock(), 'first': self.first}
    return {**here, 'step': step, 'seconds': self.seconds}


def read_goodput_lines(directory: str) -> list[dict]:
  """Reads a run's goodput.jsonl, if there is one, without torn lines."""
  path = os.path.join(directory, GOODPUT_FILE)
  return metric_writer.read_intact_lines(path, LINE)


def read_goodput(directory: str) -> list[dict]:
  """Reads the last line of each process, in order; drops torn lines."""
  lines = read_goodput_lines(directory)
  for line in lines:  # a later version may measure more
    line['seconds'] = {kind: line['seconds'][kind] for kind in MEASURED}
  processes = {line['began']: line for line in lines}
  return [processes[began] for began in sorted(processes)]


def sum_by_kind(processes: list[dict]) -> dict[str, float]:
  """Sums the seconds of a run by kind, of its processes' lines; {} of none."""
  if not processes:
    return {}
  total = dict.fromkeys(MEANING, 0.0)
  for p, after in zip(processes, [*processes[1:], None]):
    for kind, seconds in p['seconds'].items():
      total[kind] += seconds
    steps = p['now'] - p['began'] - sum(p['seconds'].values())
    done = p['step'] - p['first']
    lost = max(0, p['step'] - after['first']) if after and done else 0
    repeated = steps * min(1.0, lost / done) if lost else 0.0
    total['repeated'] += repeated
    total['step'] += steps - repeated
    total['down'] += max(0.0, after['began'] - p['now']) if after else 0.0
  return total


def goodput_share(seconds: dict[str, float]) -> float:
  """Returns the goodput, from 0 to 1, of seconds by kind."""
  return seconds['step'] / max(1e-9, sum(seconds.values())) if seconds else 0.0
