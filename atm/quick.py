"""Plans in processes of their own, several at a time, and quick ones.

A quick plan stops the compiler once it has scheduled the program and placed its
arrays in memory, a tenth of its work for a large model on a TPU: memory and
collectives are those of the whole compilation, cycles are not known. XLA has no
option to end there; it writes what it has to a folder, and the process that
compiles ends when that is there.
"""

from __future__ import annotations

import functools
import glob
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import tempfile
import threading
import time
import types
from collections.abc import Iterator

from atm import memory, plan, xla

# Of xla_dump_to, by libtpu 0.0.42: what is read, and what is written after it.
TEXT = '*.after_optimizations.txt'
AFTER = '*.after_optimizations_after_buffer_assignment.txt'
LIMIT = 1800  # seconds, of one plan


class Stopped:
  """What a `jax.stages.Compiled` says, of a compilation that went half way.

  Its memory is `memory.reported`'s.
  """

  def __init__(self, folder: str):
    with open(_only(folder, TEXT)) as f:
      self._text = f.read()
    self._total = memory.reported(folder)

  def as_text(self) -> str:
    return self._text

  def memory_analysis(self):
    return types.SimpleNamespace(
      temp_size_in_bytes=None,
      peak_memory_in_bytes=self._total,
      host_temp_size_in_bytes=None,
    )


def _only(folder: str, pattern: str) -> str | None:
  """The path of the one file; None if it is not there yet."""
  return next(iter(glob.glob(os.path.join(folder, pattern))), None)


def stopped(folder: str, traced, target, options) -> tuple[Stopped, None]:
  """As `plan.compile_or_overflow`, of which it is the first part."""
  compiles = lambda lowered, dump: xla.compiled(
    lowered, target.device, {**(options or {}), **dump}
  )
  return half_way(folder, traced.lower(), compiles), None


def half_way(folder: str, lowered, compiles) -> Stopped:
  """A compilation until its arrays have their places in memory.

  The compiler goes on in a thread and writes to the folder: the process had
  better end, and the folder go after it.

  Args:
    folder: an empty one.
    lowered: what is compiled.
    compiles: called with it and with more compiler options.
  """
  dump = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
  failed = []

  def run():
    try:
      compiles(lowered, dump)
    except Exception as e:
      failed.append(e)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  while thread.is_alive() and not _only(folder, AFTER):
    time.sleep(0.02)
  # Too little memory is no failure here: the report says how much it takes.
  if failed and not _only(folder, memory.REPORT):
    raise failed[0]
  return Stopped(folder)


def settings(given: dict) -> dict:
  """Of `plan.plan`'s, those that say what to plan, for another process.

  The mesh stays a callable; each job has its own, which pickles.
  """
  hooks = 'start', 'say', 'compiler', 'tried', 'instead'
  kept = {name: value for name, value in given.items() if name not in hooks}
  return {**kept, 'model_dir': None}


def planned(jobs, workers: int) -> Iterator[tuple]:
  """Plans, each in a process of its own, as they end.

  Args:
    jobs: yields (name, settings of `plan.plan`, whether quickly); asked for the
      next one when a process is free.
    workers: processes at one time.

  Yields:
    (name, what `plan.plan` returns); in its place {'error': a line} where it
    failed. `seconds`, what it took, is added.
  """
  jobs, running = iter(jobs), {}
  try:
    while True:
      while len(running) < workers and (job := next(jobs, None)):
        work = _Work(*job)
        running[work.pipe] = work
      if not running:
        return
      for pipe in multiprocessing.connection.wait(list(running), timeout=1):
        work = running.pop(pipe)
        yield work.name, work.result()
      for pipe, work in list(running.items()):
        if work.seconds > LIMIT:
          running.pop(pipe).end()
          yield work.name, {'error': f'took over {LIMIT} s', 'seconds': LIMIT}
  finally:
    for work in running.values():
      work.end()


class _Work:
  """A process that plans.

  Attributes:
    pipe: has its result, once.
  """

  def __init__(self, name, settings: dict, fast: bool):
    self.name, self._began = name, time.perf_counter()
    self._folder = tempfile.mkdtemp(prefix='atm_plan_')
    context = multiprocessing.get_context('spawn')  # libtpu does not fork
    self.pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_plan, args=(theirs, settings, self._folder, fast)
    )
    self._process.start()
    theirs.close()

  @property
  def seconds(self) -> float:
    return time.perf_counter() - self._began

  def result(self) -> dict:
    try:
      made = self.pipe.recv()
    except EOFError:
      self._process.join()
      status = self._process.exitcode
      made = {'error': f'its process ended with status {status}'}
    self.end()
    return {**made, 'seconds': self.seconds}

  def end(self) -> None:
    self.pipe.close()
    self._process.kill()
    self._process.join()
    shutil.rmtree(self._folder, ignore_errors=True)


def _plan(pipe, settings: dict, folder: str, fast: bool) -> None:
  """Plans in this process, and ends it, whatever the compiler still does."""
  tempfile.tempdir = os.path.join(folder, 'more')  # goes with the folder
  os.mkdir(tempfile.tempdir)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
  compiler = plan.compile_or_overflow
  if fast:
    compiler = functools.partial(stopped, folder)
  try:
    made = plan.plan(**settings, say=lambda text: None, compiler=compiler)
  except Exception as e:
    made = {'error': next(iter(str(e).splitlines()), '') or repr(e)}
  pipe.send(made)
  os._exit(0)


def workers() -> int:
  """As many as cores, up to four: a whole plan takes 3 GiB."""
  return min(4, len(os.sched_getaffinity(0)))
