"""Plans in processes of their own, several at a time."""

import functools
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

from atm.parallel.distributed import count_cores
from atm.plan import compilation

TIME_LIMIT = 1800  # seconds, of one plan
_HOOKS = 'start', 'say', 'compiler', 'tried', 'instead'


def portable_settings(given: dict) -> dict:
  """Returns those of `train_plan.plan`'s settings that say what to plan."""
  kept = {name: value for name, value in given.items() if name not in _HOOKS}
  return {**kept, 'model_dir': None}


def run_plans(
  plan: Callable, jobs: Iterable[tuple], processes: int | None = None
) -> Iterator[tuple]:
  """Runs plans in processes of their own; yields (name, result) as they end."""
  # A job is (name, settings, whether to compile partly); the next one is asked
  # for when a process is free. `plan` gets the settings, and `say` and
  # `compiler`, as `train_plan.plan`. A result is what it returns, or where it
  # failed {'error': a line}; `seconds`, what it took, is added.
  jobs, running = iter(jobs), {}
  processes = processes or default_processes()
  try:
    while True:
      while len(running) < processes and (job := next(jobs, None)):
        worker = _Worker(plan, *job)
        running[worker.pipe] = worker
      if not running:
        return
      for pipe in multiprocessing.connection.wait(list(running), timeout=1):
        worker = running.pop(pipe)
        yield worker.name, worker.result()
      for pipe, worker in list(running.items()):
        if time.perf_counter() - worker.began > TIME_LIMIT:
          running.pop(pipe).end()
          error = f'took over {TIME_LIMIT} s'
          yield worker.name, {'error': error, 'seconds': TIME_LIMIT}
  finally:
    for worker in running.values():
      worker.end()


def default_processes() -> int:
  """Returns the number of cores, up to four: a whole plan takes 3 GiB."""
  return min(4, count_cores())


class _Worker:
  """A process that plans, and sends its result through `pipe`."""

  def __init__(self, plan: Callable, name, settings: dict, partly: bool):
    self.name, self.began = name, time.perf_counter()
    self._folder = tempfile.mkdtemp(prefix='atm_plan_')
    context = multiprocessing.get_context('spawn')  # libtpu does not fork
    self.pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_run, args=(theirs, plan, settings, self._folder, partly)
    )
    self._process.start()
    theirs.close()

  def result(self) -> dict:
    try:
      result = self.pipe.recv()
    except EOFError:
      self._process.join()
      error = f'its process ended with status {self._process.exitcode}'
      result = {'error': error}
    self.end()
    return {**result, 'seconds': time.perf_counter() - self.began}

  def end(self) -> None:
    self.pipe.close()
    self._process.kill()
    self._process.join()
    shutil.rmtree(self._folder, ignore_errors=True)


def _run(pipe, plan, settings: dict, folder: str, partly: bool) -> None:
  """Sends a plan or an error, then exits without waiting for the compiler."""
  tempfile.tempdir = os.path.join(folder, 'more')  # goes with the folder
  os.mkdir(tempfile.tempdir)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
  compiler = compilation.compile_or_overflow
  if partly:
    compiler = functools.partial(compilation.compile_partly, folder)
  try:
    result = plan(**settings, say=lambda text: None, compiler=compiler)
  except Exception as e:
    result = {'error': next(iter(str(e).splitlines()), '') or repr(e)}
  pipe.send(result)
  os._exit(0)
