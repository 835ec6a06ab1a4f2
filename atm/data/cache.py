"""Builds rows of tokens on disk from a seqio task's text, once.

The work is cut in units (`cache_shards`): one shard of a source, in one form.
A worker (`cache_worker`) reads and tokenises a unit once, and writes a file of
rows for each objective that wants it. A file's bytes depend on the text, the
vocabulary and the objective alone, not on who makes it or when, and a file that
is there is not made again. So a build may be killed at any time, and units are
shared out over processes and over machines that see the same folder. When all
files of a task are there, its manifest is written.
"""

import collections
import concurrent.futures
import contextlib
import glob
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from atm import fileio, messages, storage
from atm.data import cache_shards, task_registry, token_store
from atm.data.beam_runner import run_units
from atm.data.cache_shards import CacheJob, CacheUnit
from atm.data.cache_worker import make_unit
from atm.data.task_registry import Lengths
from atm.data.vocabulary import (
  Vocabulary,
  has_vocabulary,
  open_vocabulary,
  store_files,
)
from atm.data.vocabulary_extension import (
  check_new_languages,
  extend_files,
  list_new_tokens,
)
from atm.messages import (
  check_arguments,
  check_choice,
  check_count,
  check_number,
  check_path,
  check_text,
  check_texts,
  clock_text,
  quote,
)

PARTIAL = 'rows-*', token_store.MANIFEST
LOG_SECONDS = 10  # between two lines of progress
RUNNERS = 'processes', 'beam'


def check_share(share) -> tuple[int, int]:
  """Returns SHARE, (i, n); raises ValueError unless 0 <= i < n."""
  if isinstance(share, tuple | list) and len(share) == 2:
    with contextlib.suppress(ValueError):
      machines = check_number('n', share[1], 1)
      return check_number('i', share[0], 0, machines - 1), machines
  raise ValueError(
    f'SHARE = {quote(share)}: expected (i, n) with 0 <= i < n, machine i of n'
  )


@check_arguments(
  vocabulary=partial(check_path, 'VOCABULARY'),
  lengths=partial(
    task_registry.check_lengths, 'TASK_FEATURE_LENGTHS', optional=True
  ),
  directory=partial(check_path, 'CACHE_DIR'),
  mixture=partial(check_text, 'MIXTURE_OR_TASK_NAME', empty=False),
  splits=partial(check_texts, 'SPLITS', empty=False),
  passes=partial(check_count, 'ROW_PASSES'),
  processes=partial(check_count, 'PROCESSES', optional=True),
  share=check_share,
  new_languages=check_new_languages,
  runner=partial(check_choice, 'RUNNER', known=RUNNERS),
  beam_options=partial(check_texts, 'BEAM_OPTIONS', empty=False),
)
def build(
  mixture: str,
  vocabulary: str,
  lengths: dict[str, int] | None,
  directory: str,
  splits: Iterable[str] = ('train', 'validation'),
  passes: int = 1,
  processes: int | None = None,
  share: tuple[int, int] = (0, 1),
  configure_tasks: Callable = lambda **named: None,
  prepare: Callable | None = None,
  say: Callable[[str], None] = print,
  make_model: Callable | None = None,
  new_languages: dict[str, str] | None = None,
  runner: str = 'processes',
  beam_options: Iterable[str] = (),
) -> bool:
  """Builds the rows of a task or mixture that are not there yet.

  Args:
    mixture: a seqio task or mixture.
    vocabulary: a file or folder; the markers that text needs are added.
    lengths: {'inputs': S, 'targets': T}: rows are cut for these; None: the
      positions of `make_model`'s model.
    directory: gets a folder for each task and split.
    splits: those of the tasks to build.
    passes: how many times training rows are made of the documents, each time in
      another order, where rows join documents; a small text then does not meet
      the model in the same few rows over and over.
    processes: how many work; None: one a core.
    share: (i, n): this is machine i of n, from 0, and takes every n-th unit.
    configure_tasks: called with vocabulary=PATH, or first without arguments.
    prepare: called in every other process, gives it its `configure_tasks`; it
      must pickle. None: works in this process alone.
    say: logs a line.
    make_model: returns a `ModelConfig`, where `lengths` is None.
    new_languages: added, see `vocabulary_extension.list_new_tokens`.
    runner: one of RUNNERS; 'beam': a pipeline, see `beam_runner`.
    beam_options: of that pipeline, as Apache Beam reads them.

  Returns:
    whether all rows are there, those of other machines' units included.

  Raises:
    ValueError: an unknown name, bad text, rows made otherwise.
    OSError: a file could not be written; what is finished stays.
  """
  fileio.check_output_folder('CACHE_DIR', directory)
  if lengths is None and make_model is not None:
    lengths = Lengths.of_model(make_model()).as_setting()
  sizes = Lengths.of(lengths)
  needs = mixture, new_languages, configure_tasks
  stored = name_vocabulary(vocabulary, *needs, directory)
  job = CacheJob(stored.path, stored.sha256, sizes, directory, passes)
  wanted = [
    (task, split)
    for split in splits
    for task in task_registry.list_tasks(mixture, split)
  ]
  if not wanted:
    raise ValueError(f'{mixture!r} has none of the splits {tuple(splits)}')
  units = cache_shards.list_units(wanted, job)
  cache_shards.check_finished_rows(units, job)
  # Shared out before looking which are there: machines do not start together.
  todo = cache_shards.list_missing(units[share[0] :: share[1]], job)
  if todo:
    say(
      f'building rows of tokens: {mixture}, {len(todo)} units, {directory}, '
      f'TASK_FEATURE_LENGTHS = {sizes.as_setting()}'
    )
    with messages.note_work(lambda: _describe_left(todo, units, job)):
      if runner == 'beam':
        prepare = prepare or (lambda: configure_tasks)
        run_units(todo, job, prepare, beam_options, processes, say)
      else:
        log_progress(make_units(todo, job, processes, prepare), todo, say)
  if missing := write_manifests(units, job):
    say(
      f'{missing} files are still missing: other machines make them, or this '
      'command without SHARE'
    )
    return False
  if todo and 'validation' in splits:
    try:
      task_registry.check_held_out(mixture)
    except ValueError as e:
      say(f'training needs more than these rows: {e}')
  for line in describe_omissions(read_counts(units, job)):
    say(line)
  return True


def _describe_left(todo: list[CacheUnit], units, job: CacheJob) -> str:
  """Returns what an interrupted build has done and how to go on."""
  left = sum(not unit.is_done(job) for unit in todo)
  return (
    f'{len(units) - left:,} of {len(units):,} units of rows are finished in '
    f'{job.directory}; the same command makes the rest'
  )


def name_vocabulary(
  path: str, mixture: str, languages, configure_tasks: Callable, directory: str
) -> Vocabulary:
  """Stores a vocabulary with the tokens that a mixture needs, and names it."""
  words, markers = open_vocabulary(path), False
  if list_new_tokens(words, True):
    configure_tasks()
    markers = task_registry.needs_markers(mixture)
  files = extend_files(words, markers, languages)
  stored = store_vocabulary(words, directory, files)
  configure_tasks(vocabulary=stored.path)
  return stored


def store_vocabulary(
  vocabulary: Vocabulary,
  directory: str,
  files: Mapping[str, bytes] | None = None,
) -> Vocabulary:
  """Returns the vocabulary stored beside the rows; writes it there first.

  Args:
    vocabulary: what `build` was given.
    directory: of the rows.
    files: of the vocabulary, extended; None: as it is.
  """
  folder = os.path.join(directory, 'vocabulary')
  files = vocabulary.files if files is None else files
  if not has_vocabulary(folder):
    return store_files(files, folder)
  stored = open_vocabulary(folder)
  if stored.files != files:
    raise ValueError(
      f'{directory!r} was made with another vocabulary than '
      f'{vocabulary.path}: use {stored.path}, or another CACHE_DIR'
    )
  return stored


def open_cache(directory: str) -> tuple[Vocabulary, Lengths]:
  """Returns the vocabulary and lengths that a cache was made with."""
  names = storage.list_names(directory) if storage.is_folder(directory) else []
  folders = (os.path.join(directory, name) for name in names)
  for folder in filter(token_store.has_manifest, folders):
    path = os.path.join(folder, token_store.MANIFEST)
    made_from = token_store.read_manifest(folder)['made_from']
    fileio.check_json(made_from, {'lengths': [int]}, f'{path}, made_from')
    if len(made_from['lengths']) != 2:
      raise ValueError(
        f'{path}: lengths are {quote(made_from["lengths"])}: expected two'
      )
    lengths = Lengths(*made_from['lengths'])
    return open_vocabulary(os.path.join(directory, 'vocabulary')), lengths
  raise FileNotFoundError(
    f'CACHE_DIR = {directory!r}: no finished rows there; `atm cache` makes them'
  )


# --- Making units


def make_units(
  units: list[CacheUnit], job: CacheJob, processes: int | None, prepare
) -> Iterator[tuple[CacheUnit, int]]:
  """Yields each unit, when it is made, with its tokens; see `build`."""
  count = min(processes or os.cpu_count() or 1, len(units))
  if prepare is None or count == 1:
    for unit in units:
      yield unit, make_unit(unit, job)['tokens']
    return
  # TensorFlow's threads do not survive a fork: workers start anew.
  context = multiprocessing.get_context('spawn')
  alive, mine = context.Pipe(duplex=False)
  pool = concurrent.futures.ProcessPoolExecutor(
    count, context, _start_worker, (prepare, job.vocabulary, alive)
  )
  with pool:
    # The largest first: none of them is left for the end, when others idle.
    order = sorted(units, key=lambda unit: -unit.size)
    running = {pool.submit(make_unit, unit, job): unit for unit in order}
    try:
      for done in concurrent.futures.as_completed(running):
        yield running[done], done.result()['tokens']
    except BaseException as e:
      if isinstance(e, KeyboardInterrupt | GeneratorExit):
        mine.close()  # nobody waits for what is half done
      pool.shutdown(wait=True, cancel_futures=True)
      raise


def _start_worker(prepare: Callable, vocabulary: str, alive) -> None:
  """Configures a worker, which ends when the pipe `alive` is closed."""
  threading.Thread(target=_end_with_parent, args=[alive], daemon=True).start()
  # A terminal sends these to all processes; the first one decides.
  for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # a process has a core
  prepare()(vocabulary=vocabulary)


def _end_with_parent(alive) -> None:
  """Ends this process when no other has the pipe's end open any more."""
  # Else it would wait for units for ever once its parent was killed.
  multiprocessing.connection.wait([alive])
  os._exit(1)


def log_progress(
  results: Iterable[tuple[CacheUnit, int]], units: list[CacheUnit], log
) -> None:
  """Waits until all units are made; logs a line every LOG_SECONDS."""
  total = sum(unit.size for unit in units)
  start = logged = time.perf_counter()
  size = tokens = 0
  for done, (unit, count) in enumerate(results, 1):
    size, tokens, now = size + unit.size, tokens + count, time.perf_counter()
    if now - logged < LOG_SECONDS and done < len(units):
      continue
    logged, spent = now, now - start
    left = clock_text(spent * (total - size) / size)
    log(
      f'{done:,}/{len(units):,} units  {tokens:,} tokens  '
      f'{tokens / spent:,.0f} tokens/s  {left} left'
    )


def write_manifests(units: list[CacheUnit], job: CacheJob) -> int:
  """Writes the manifests of finished tasks; returns how many files miss."""
  missing = 0
  for task, split, of_task in cache_shards.group_by_task(units):
    read = partial(CacheUnit.read_facts, task=task, job=job)
    parts = storage.map_files(read, of_task, storage.is_remote(job.directory))
    if absent := parts.count(None):
      missing += absent
      continue
    empty = not any(part['counts']['documents'] for part in parts)
    # One direction of several may have no pairs to train on.
    of_several = getattr(task_registry.get_labels(task), 'direction', None)
    if split == 'train' and empty and not of_several:
      raise ValueError(f'task {task.name!r} has no text in its {split!r} split')
    folder = job.get_folder(task.name, split)
    if not token_store.has_manifest(folder):
      made_from = job.get_provenance(task, split)
      try:
        token_store.write_manifest(folder, made_from, parts)
      except FileNotFoundError:  # another build wrote it, and tidied up below
        if not token_store.has_manifest(folder):
          raise
    # Left by killed processes; all files are there, so nobody writes any more.
    # Objects are written whole.
    for name in () if storage.is_remote(folder) else PARTIAL:
      for left in glob.glob(f'{glob.escape(folder)}/{name}.partial-*[0-9]'):
        with contextlib.suppress(FileNotFoundError):
          os.remove(left)
  return missing


# --- What was left out of the text

OMISSIONS = {
  'dropped': '{count:,} sentences dropped that {of} holds',
  'skipped': '{count:,} lines or records skipped',
  'full': '{count:,} pairs fill TASK_FEATURE_LENGTHS; what is longer is cut',
  'unknown': '{count:,} tokens are <unk>: characters not in the vocabulary',
}


def read_counts(units: list[CacheUnit], job: CacheJob) -> Iterator[tuple]:
  """Yields (source, language, counts) of every task's finished rows."""
  for task, split, _ in cache_shards.group_by_task(units):
    manifest = token_store.read_manifest(job.get_folder(task.name, split))
    labels = task_registry.get_labels(task)
    source = f'{getattr(labels, "source", task.name)} ({split})'
    yield source, getattr(labels, 'language', ''), manifest['counts']


def describe_omissions(counted: Iterable[tuple]) -> list[str]:
  """Returns lines of what rows leave out, of (source, language, counts)."""
  # Tasks of one text count the same; the text counts once.
  sums, once = collections.Counter(), {}
  for source, language, counts in counted:
    for name, count in counts.items():
      once.setdefault((source, language, name), count)
  for (source, _, name), count in once.items():
    kind, _, of = name.partition('/')
    if kind in OMISSIONS:
      sums[source, kind, of] += count
  return [
    f'{source}: {OMISSIONS[kind].format(count=count, of=of)}'
    for (source, kind, of), count in sorted(sums.items())
  ]
