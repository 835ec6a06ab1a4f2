"""Makes the units of a cache build as one step of an Apache Beam pipeline.

    Create(unit numbers) -> UnitMaker -> nothing

A worker reads a unit's text and writes its files by itself. Nothing but the
units' numbers goes through the runner, so none holds data in memory, and no
element comes out. A unit may be made twice, or again after a failure: its files
are the same bytes, are written whole, and those that are there are not made
again.

Apache Beam, the extra [beam], is imported by `run_units` alone.
"""

import contextlib
import functools
import os
import pickle
import re
import signal
import sys
import threading
import time
import types
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence

from atm import fileio
from atm.data.cache_shards import CacheJob, CacheUnit
from atm.data.cache_worker import make_unit
from atm.messages import missing_extra, one_line

NAMESPACE = 'atm'  # of the counters
# `DirectRunner` looks for Prism first, a program that it would download.
LOCAL_RUNNER = 'apache_beam.runners.portability.fn_api_runner.FnApiRunner'
LOCAL_OPTIONS = (
  f'--runner={LOCAL_RUNNER}', '--direct_running_mode=multi_processing',
)  # fmt: skip
# Of a Dataflow worker: its threads would hold a unit of text each.
THREADS = '--number_of_worker_harness_threads=1'
# The last line of a traceback.
_ERROR = re.compile(
  r'^(?:[\w.]*\.)?(\w+): (.*?)(?: \[while running .*)?$', re.MULTILINE
)
# Errors of workers that have a line of their own.
_KINDS = {
  'ValueError': ValueError, 'OSError': OSError, 'StorageError': OSError,
  'FileNotFoundError': FileNotFoundError, 'PermissionError': PermissionError,
}  # fmt: skip
# Beam's names: a thread that waits for a worker to end, what a worker runs, and
# the method that ends all.
RUN_WORKER = 'run_worker'
WORKER_MODULE = 'apache_beam.runners.worker.sdk_worker_main'
CLOSE_WORKERS = 'close_all'
WORKER_PATIENCE = 5  # seconds that ending all workers may take
LAST_WORDS = 0.5  # seconds
_PROCESS = uuid.uuid4().hex  # tells this process from a worker
_one_unit = threading.Lock()  # in a process at a time, for the same reason


class _WorkerDied(BaseException):
  """Ends a pipeline; Beam catches Exception here and there."""


class UnitMaker:
  """A callable that makes a unit by number; Beam sends it to its workers."""

  def __init__(
    self, units: Sequence[CacheUnit], job: CacheJob, prepare: Callable
  ):
    # A job's description may have 10 MB on Dataflow; 40,000 units are 1 MB so.
    self._packed = zlib.compress(pickle.dumps((list(units), job)))
    self._prepare, self._origin = prepare, _PROCESS

  def __call__(self, number: int) -> tuple:
    """Makes the files that a unit lacks; returns no elements."""
    from apache_beam.metrics import Metrics

    with _one_unit:
      there = self._origin == _PROCESS  # where tasks are configured already
      prepare = None if there else self._prepare
      counts = _make(number, *_prepare_worker(self._packed, prepare))
    for name, count in counts.items():
      Metrics.counter(NAMESPACE, name).inc(int(count))
    return ()


def _make(number: int, units: list[CacheUnit], job: CacheJob) -> dict[str, int]:
  """Makes the files that a unit lacks; returns what is counted."""
  unit = units[number]
  if not unit.is_done(job):
    try:
      return {'units': 1, **make_unit(unit, job)}
    except FileNotFoundError:
      # Another process made it meanwhile; a build that ended then has removed
      # what was half written.
      if not unit.is_done(job):
        raise
  return {'units_there': 1}


@functools.lru_cache(maxsize=1)
def _prepare_worker(packed: bytes, prepare: Callable | None) -> tuple:
  """Returns (units, job) in a process that can make them."""
  units, job = pickle.loads(zlib.decompress(packed))
  if prepare is not None:
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    prepare()(vocabulary=job.vocabulary)
  return units, job


def run_units(
  units: Sequence[CacheUnit],
  job: CacheJob,
  prepare: Callable,
  options: Sequence[str],
  processes: int | None,
  log: Callable[[str], None],
) -> None:
  """Makes units in a pipeline; logs its counters once it has ended.

  Args:
    units: those to make.
    job: settings of the build.
    prepare: called in every worker, see `cache.build`.
    options: Beam's own, such as '--runner=DataflowRunner'. Without a runner,
      worker processes of this machine.
    processes: of this machine; None: one a core.
    log: logs a line.

  Raises:
    ValueError: Beam is not installed, or does not know an option; bad text.
    OSError: a worker has died; what is finished stays.
  """
  given, quiet = [*options], contextlib.nullcontext
  if not any(option.startswith('--runner') for option in given):
    given += [*LOCAL_OPTIONS, f'--direct_num_workers={processes or 0}']
    quiet = fileio.silence_stderr  # 20 lines of each worker, whatever its level
  if not any(THREADS.partition('=')[0] in option for option in given):
    given.append(THREADS)
  with quiet(), _end_with_workers():
    beam, pipeline_options = _import_beam()
    pipeline = beam.Pipeline(options=pipeline_options.PipelineOptions(given))
    # Create shuffles the numbers: a runner that fused them with the work would
    # give all units to one worker. Numbers alone are grouped by that.
    numbers = pipeline | 'UnitNumbers' >> beam.Create(range(len(units)))
    numbers | 'MakeUnit' >> beam.FlatMap(UnitMaker(units, job, prepare))
    try:
      result = pipeline.run()
      result.wait_until_finish()
    except Exception as e:
      raise _shorten_error(e) from e
  found = result.metrics().query()['counters']
  counted = sorted(
    (counter.key.metric.name, counter.result)
    for counter in found
    if counter.key.metric.namespace == NAMESPACE
  )
  texts = (f'{count:,} {name}' for name, count in counted)
  log(f'Beam counters: {", ".join(texts)}')


def _import_beam() -> tuple:
  """Returns the modules of Apache Beam that are used here."""
  try:
    import apache_beam
    from apache_beam.options import pipeline_options
  except ImportError as e:
    raise ValueError(
      missing_extra("RUNNER = 'beam' needs Apache Beam", 'beam')
    ) from e
  return apache_beam, pipeline_options


def _shorten_error(error: Exception) -> Exception:
  """Returns the error of a worker, of whose traceback Beam makes a text."""
  found = [m for m in _ERROR.finditer(str(error)) if m[1] in _KINDS]
  if not found:
    return error
  return _KINDS[found[-1][1]](one_line(found[-1][2], 400))


@contextlib.contextmanager
def _end_with_workers() -> Iterator[None]:
  """Raises OSError when a worker process of this machine has died.

  Beam's local runner starts no other in its place, and would wait for ever.
  Workers that Beam cannot end are killed.
  """
  died, before = [], threading.excepthook
  main = threading.main_thread()
  if threading.current_thread() is not main:  # it alone hears of signals
    yield
    return

  def interrupt(args) -> None:
    if args.thread is None or args.thread.name != RUN_WORKER:
      before(args)
      return
    died.append(args.exc_value)
    if len(died) == 1:  # others end with the pipeline
      signal.pthread_kill(main.ident, signal.SIGUSR1)

  def stop(number, frame) -> None:
    if not _is_ending_workers(frame):  # else Beam would not end the others
      raise _WorkerDied

  ended = threading.Event()
  watch = threading.Thread(target=_watch, args=[main, ended], daemon=True)
  threading.excepthook = interrupt
  handler = signal.signal(signal.SIGUSR1, stop)
  watch.start()
  failed = True
  try:
    yield
    failed = False
  except _WorkerDied:
    raise OSError(
      f'a worker process has ended: {one_line(died[0], 200)}. Finished units '
      'stay: the same command makes the rest'
    ) from None
  finally:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    ended.set()
    if any(x.name == RUN_WORKER for x in threading.enumerate()):
      _kill_workers()  # a second signal; their threads would keep this process
    if failed:
      time.sleep(LAST_WORDS)  # of Beam's threads, which `run_units` keeps back
    threading.excepthook = before
    signal.signal(signal.SIGUSR1, handler)


def _is_ending_workers(frame: types.FrameType | None) -> bool:
  """Tells whether a stack is within Beam's method that ends all workers."""
  while frame and frame.f_code.co_name != CLOSE_WORKERS:
    frame = frame.f_back
  return frame is not None


def _watch(main: threading.Thread, ended: threading.Event) -> None:
  """Kills workers that Beam waits for in vain at the end of a pipeline.

  One that connects once a pipeline has failed, or was told to stop, is not told
  to end.
  """
  waited = 0
  while not ended.wait(1.0):
    frame = sys._current_frames().get(main.ident)
    waited = waited + 1 if _is_ending_workers(frame) else 0
    if waited > WORKER_PATIENCE:
      _kill_workers()


def _kill_workers() -> None:
  """Kills all worker processes of this machine that this one has begun."""
  import psutil

  for process in psutil.Process().children(recursive=True):
    with contextlib.suppress(psutil.Error):  # it has ended
      if any(WORKER_MODULE in word for word in process.cmdline()):
        process.kill()
