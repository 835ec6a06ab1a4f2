"""Ends a run that hangs: every host's stacks, the step's program, one line.

In a collective all hosts wait for the one that does not come, so no step ends
on any of them, and the watchdog of each fires at about the same time. They tell
each other where they stand before they exit: a host that exits first would end
the others in an error of their collective, without their stacks.
"""

import contextlib
import faulthandler
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import jax

from atm import fileio, storage
from atm.messages import one_line
from atm.parallel import distributed

HANG_FOLDER = 'hang'
# EX_TEMPFAIL of sysexits.h: the same command may go on; 2 is for mistakes.
HANG_STATUS = 75
GRACE_S = 30  # for the other hosts, and for slow files
EXIT_LAST_S = 0.5  # process 0 serves the coordinator: it outlives the others
_ATM = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class HangWatchdog(contextlib.AbstractContextManager):
  """A thread that ends the process when no step ends for some seconds.

  Attributes:
    program: returns the text of the program that the steps run.
  """

  def __init__(self, model_dir: str, seconds: float | None):
    """Watches a run in `model_dir`, unless `seconds` is None."""
    self.folder = os.path.join(model_dir, HANG_FOLDER)
    self.seconds = seconds
    self.program: Callable[[], str] | None = None
    self._step, self._since, self._held = 0, time.monotonic(), 0
    self._stop = threading.Event()

  def __enter__(self):
    if self.seconds is not None:
      self._main = threading.get_ident()
      self._open_backstop()
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *error):
    if self.seconds is not None:
      self._stop.set()
      self._thread.join()
      self._close_backstop()

  def touch(self, step: int) -> None:
    """Notes that the run goes on, after a step."""
    self._step, self._since = step, time.monotonic()

  @contextlib.contextmanager
  def paused(self, compiles: bool = True):
    """Does not count the time inside where that compiles, which takes long."""
    self._held += compiles
    try:
      yield
    finally:
      self._held -= compiles
      self._since = time.monotonic()

  # --- A process that holds Python's lock

  # Its watchdog thread cannot run. faulthandler has a thread in C, which writes
  # the stacks and exits; ours puts it off again and again.

  def _open_backstop(self) -> None:
    # C writes to a file of this machine.
    folder = self.folder
    if storage.is_remote(folder):
      folder = tempfile.mkdtemp(prefix='atm-hang-')
    os.makedirs(folder, exist_ok=True)
    name = f'stuck-process-{jax.process_index()}-{os.getpid()}.txt'
    self._stuck = open(os.path.join(folder, name), 'w')  # noqa: SIM115

  def _put_off(self) -> None:
    after = self.seconds + GRACE_S
    faulthandler.dump_traceback_later(after, exit=True, file=self._stuck)

  def _close_backstop(self) -> None:
    faulthandler.cancel_dump_traceback_later()
    self._stuck.close()
    with contextlib.suppress(OSError):
      os.remove(self._stuck.name)
      os.rmdir(os.path.dirname(self._stuck.name))  # not if it has files

  # --- The thread

  def _watch(self) -> None:
    self._put_off()
    while not self._stop.wait(min(1.0, self.seconds / 10)):
      self._put_off()
      late = time.monotonic() - self._since > self.seconds
      if late and not self._held and not self._stop.is_set():
        self._end()

  def _end(self) -> None:
    """Writes what is known, waits for the others to, and exits."""
    try:
      self._close_backstop()
      step, place = self._step, self._find_place()
      # A host publishes what it has written: then all may exit.
      problem = _within(GRACE_S, lambda: self._write(step))
      places = _within(GRACE_S, lambda: exchange_places(place)) or {}
      if not isinstance(places, dict):  # the coordinator is gone
        places = {jax.process_index(): place}
      print(
        f'atm: error: {self._describe(step, places, problem)}',
        file=sys.stderr, flush=True,
      )  # fmt: skip
      if distributed.is_main_process() and len(places) > 1:
        time.sleep(EXIT_LAST_S)
    finally:
      os._exit(HANG_STATUS)

  def _describe(self, step: int, places: dict[int, str], problem) -> str:
    written = f'stacks and the step are in {self.folder}'
    if problem:
      written = f'nothing is written to {self.folder}: {problem}'
    return (
      f'no step has ended for {self.seconds:g} s after step {step:,} '
      f'(DEBUG_HANG): {one_line(describe_places(places), 250)}; {written}; the '
      'same command goes on from the last checkpoint'
    )

  def _find_place(self) -> str:
    """Returns where the main thread is: the innermost line of atm's."""
    frame = sys._current_frames().get(self._main)
    innermost = frame
    while frame and not frame.f_code.co_filename.startswith(_ATM):
      frame = frame.f_back
    frame = frame or innermost
    if frame is None:
      return 'nowhere'
    name = frame.f_code.co_filename
    if name.startswith(_ATM):
      name = os.path.relpath(name, os.path.dirname(_ATM))
    return f'{name}:{frame.f_lineno} ({frame.f_code.co_name})'

  def _write(self, step: int) -> None:
    me = jax.process_index()
    storage.make_folder(self.folder)
    path = os.path.join(self.folder, f'process-{me}-step-{step}.txt')
    threads = (f'  {t.ident:#018x} {t.name}' for t in threading.enumerate())
    with fileio.replacing(path) as f:
      print(
        f'process {me} of {jax.process_count()}, pid {os.getpid()} on '
        f'{socket.gethostname()}: no step has ended for {self.seconds:g} s '
        f'after step {step}\n\nthreads:',
        *threads, '', sep='\n', file=f, flush=True,
      )  # fmt: skip
      faulthandler.dump_traceback(f, all_threads=True)
    if self.program is not None and distributed.is_main_process():
      path = os.path.join(self.folder, f'step-{step}.hlo.txt')
      fileio.write_atomically(path, self.program().encode())


def exchange_places(place: str) -> dict[int, str]:
  """Returns where every process is; waits for those that do not tell yet."""
  distributed.publish('hang', place)
  end = time.monotonic() + GRACE_S
  places = {jax.process_index(): place}
  while len(places) < jax.process_count() and time.monotonic() < end:
    time.sleep(0.1)
    places |= distributed.collect_published('hang')
  missing = set(range(jax.process_count())) - {*places}
  return places | dict.fromkeys(missing, 'silent')


def describe_places(places: dict[int, str]) -> str:
  """Returns 'process 1 is at X, processes 0, 2-7 at Y', the fewest first."""
  owners: dict[str, list[int]] = {}
  for process, place in sorted(places.items()):
    owners.setdefault(place, []).append(process)
  rarest = sorted(owners.items(), key=lambda item: len(item[1]))
  return ', '.join(
    f'process{"es" if len(who) > 1 else ""} {_join_numbers(who)} '
    + (place if place == 'silent' else f'at {place}')
    for place, who in rarest
  )


def _join_numbers(numbers: list[int]) -> str:
  """Returns ascending numbers as a user reads them: '0, 2-7'."""
  parts: list[list[int]] = []
  for n in numbers:
    if parts and n == parts[-1][-1] + 1:
      parts[-1].append(n)
    else:
      parts.append([n])
  return ', '.join(
    str(p[0]) if len(p) == 1 else f'{p[0]}-{p[-1]}' for p in parts
  )


def _within(seconds: float, call: Callable):
  """Returns what a call returns, its error, or one that it takes too long."""
  result = [f'not done within {seconds:g} s']

  def run():
    try:
      result[0] = call()
    except Exception as e:
      result[0] = e

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(seconds)
  return result[0]
