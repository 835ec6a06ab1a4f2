"""Plans in processes of their own, several at a time, and quick ones.

A quick plan stops the compiler once it has scheduled the program and placed its
arrays in memory, a tenth of its work for a large model on a TPU: memory and
collectives are those of the whole compilation, cycles are not known. XLA has no
option to end there; it writes what it has to a folder, and the process that
compiles ends when that is there.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator

from atm.plan import compile, train_plan

LIMIT = 1800  # seconds, of one plan


def settings(given: dict) -> dict:
  """Of `train_plan.plan`'s, those that say what to plan, for another process.

  The mesh stays a callable; each job has its own, which pickles.
  """
  hooks = 'start', 'say', 'compiler', 'tried', 'instead'
  kept = {name: value for name, value in given.items() if name not in hooks}
  return {**kept, 'model_dir': None}


def planned(jobs, workers: int) -> Iterator[tuple]:
  """Plans, each in a process of its own, as they end.

  Args:
    jobs: yields (name, settings of `train_plan.plan`, whether quickly); asked
      for the next one when a process is free.
    workers: processes at one time.

  Yields:
    (name, what `train_plan.plan` returns); in its place {'error': a line} where
    it failed. `seconds`, what it took, is added.
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
  compiler = compile.compile_or_overflow
  if fast:
    compiler = functools.partial(compile.stopped, folder)
  try:
    made = train_plan.plan(**settings, say=lambda text: None, compiler=compiler)
  except Exception as e:
    made = {'error': next(iter(str(e).splitlines()), '') or repr(e)}
  pipe.send(made)
  os._exit(0)


def workers() -> int:
  """As many as cores, up to four: a whole plan takes 3 GiB."""
  return min(4, len(os.sched_getaffinity(0)))
