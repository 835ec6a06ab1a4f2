"""What each host of a run does in a step, and which host the others wait for.

Hosts step in lockstep, so their steps take equally long: a slow host shows in
what it does between two steps, while the devices of all wait. A second of a
step is `data` (waiting for a batch), `own` (Python between two dispatches) or
`devices` (waiting for results). What a host does while its devices still
compute delays nobody; `idle` are the seconds of `data` and `own` after which
the devices had nothing left to do. The idle seconds of a slow host are those
that it costs; those of the hosts that wait for it are few, since the step that
they dispatched has not ended.

A slow chip delays its own host's results as those of all others: no host can
tell by its clock, see docs/pods.md.
"""

import socket
import statistics
import time
from collections.abc import Callable, Sequence

import jax

from atm.parallel import distributed
from atm.train.goodput import HOST_SECONDS

WINDOW = 50  # steps
SLOW = 0.1  # of a step, more than the median host
LAST_S = 2  # for the last window of the others


class HostTimes:
  """Sums the seconds of this host's steps; process 0 writes those of all."""

  def __init__(
    self,
    write: Callable[..., None],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
  ):
    """Takes `Goodput.write`, and what prints a line."""
    self.write, self.say, self.clock = write, say, clock
    self.slow: list[int] = []
    self._wanted: dict | None = None
    self.skip()
    self._clear()

  def _clear(self) -> None:
    self.steps, self.sums = 0, dict.fromkeys(HOST_SECONDS[1:], 0.0)

  def skip(self) -> None:
    """Leaves out the time since the last lap: an evaluation, say."""
    self._last, self._ready = self.clock(), 0.0

  def lap(self, kind: str) -> None:
    """Counts the time since the last lap as `data`, `own` or `devices`."""
    now = self.clock()
    seconds, self._last = now - self._last, now
    self.sums[kind] += seconds
    self._ready = 0.0 if kind == 'devices' else self._ready + seconds

  def add_idle(self) -> None:
    """Counts what was done since the last result as time of idle devices."""
    self.sums['idle'] += self._ready

  def end_step(self, step: int) -> None:
    """Shares a window that is full, and looks for the slow host of one."""
    self.steps += 1
    if self.steps == WINDOW:
      self.share(step)
    elif self._wanted is not None:
      self._gather(patient=True)

  def share(self, step: int) -> None:
    """Publishes this host's window, if it has steps; begins another."""
    if not self.steps:
      return
    whole = sum(self.sums.values()) - self.sums['idle']
    seconds = {'seconds': whole, **self.sums}
    mine = {
      'process': jax.process_index(),
      'host': socket.gethostname(),
      'steps': self.steps,
      **{kind: round(value, 4) for kind, value in seconds.items()},
    }
    distributed.publish('host_times', {'step': step, **mine})
    self._clear()
    if distributed.is_main_process():
      if self._wanted is not None:  # of an earlier window
        self._gather(patient=False)
      self._wanted = {'step': step, 'mine': mine}
      self._gather(patient=True)

  def close(self, step: int) -> None:
    """Writes the last window, which may have fewer steps."""
    self._wait_for_others()  # else the last one ends the wait for one before
    self.share(step)
    self._wait_for_others()

  def _wait_for_others(self) -> None:
    """Writes the window that others are still to publish, if there is one."""
    end = time.monotonic() + LAST_S
    while self._wanted is not None:
      self._gather(patient=time.monotonic() < end)

  def _gather(self, patient: bool) -> None:
    """Writes the window of all hosts, once they have published theirs."""
    wanted = self._wanted
    found = [
      {name: window[name] for name in wanted['mine']}
      for window in distributed.collect_published('host_times').values()
      if window['step'] == wanted['step']
    ] or [wanted['mine']]  # of a run of one process
    if len(found) < jax.process_count() and patient:
      return
    self._wanted = None
    hosts = sorted(found, key=lambda host: host['process'])
    slow = find_slow(hosts)
    self.write(wanted['step'], hosts=hosts, slow=slow)
    if wanted['mine']['steps'] < WINDOW:
      return
    for host in hosts:
      if host['process'] in slow and host['process'] not in self.slow:
        self.say(f'step {wanted["step"]:,}: {describe_slow(host, hosts)}')
    if self.slow and not slow:
      self.say(f'step {wanted["step"]:,}: no host is slow any more')
    self.slow = slow


def find_slow(hosts: Sequence[dict]) -> list[int]:
  """Returns the processes whose idle seconds delay the others.

  Those are more than the median host's by a tenth of the median step; of two
  hosts the faster is the median.
  """
  full = [host for host in hosts if host['steps'] >= WINDOW]
  if len(full) < 2:
    return []
  step = statistics.median(_per_step(host, 'seconds') for host in full)
  idle = _median_idle(full)
  return [
    host['process']
    for host in full
    if _per_step(host, 'idle') - idle > SLOW * step
  ]


def describe_slow(host: dict, hosts: Sequence[dict]) -> str:
  """Returns a text on a slow host, with its times a step."""
  a_step = {kind: _per_step(host, kind) for kind in HOST_SECONDS}
  return (
    f'process {host["process"]} on {host["host"]} is slow: all devices wait '
    f'{a_step["idle"]:.3f} s of each step of {a_step["seconds"]:.3f} s for it, '
    f'{_median_idle(hosts):.3f} s for the median host; it waits '
    f'{a_step["data"]:.3f} s for a batch and works {a_step["own"]:.3f} s'
  )


def list_slow(lines: Sequence[dict]) -> list[tuple[int, int, str]]:
  """Returns (first step, last step, text) of each host that was slow.

  The text is `describe_slow` of its last such window in goodput.jsonl.
  """
  found: dict[int, tuple[int, int, str]] = {}
  for line in lines:
    for host in line.get('hosts', ()):
      if (process := host['process']) in line.get('slow', ()):
        first = found.get(process, (line['step'] - host['steps'] + 1,))[0]
        text = describe_slow(host, line['hosts'])
        found[process] = first, line['step'], text
  return [found[process] for process in sorted(found)]


def _per_step(host: dict, kind: str) -> float:
  return host[kind] / max(1, host['steps'])


def _median_idle(hosts: Sequence[dict]) -> float:
  """Returns the idle seconds a step of the median host."""
  return statistics.median_low(_per_step(host, 'idle') for host in hosts)
