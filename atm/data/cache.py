"""From a seqio task's text to rows of tokens on disk, once.

The work is cut in units: one shard of a source, in one form. A unit is read,
tokenised once, and made rows of by each objective that wants it; each of these
is a file, whose bytes depend on the text, the vocabulary and the objective
alone, not on who made it or when. A unit that is there is not made again, so a
build may be killed at any time; units are shared out over processes and over
machines that see the same folder. When all files of a task are there, its
manifest is written.
"""

from __future__ import annotations

import collections
import concurrent.futures
import glob
import itertools
import multiprocessing
import operator
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from etils import epath

from atm import fileio
from atm.data import cache_shards, counter_rng, packing, registry, token_store
from atm.data.cache_shards import CacheJob, CacheUnit
from atm.data.registry import Lengths
from atm.data.vocabulary import MODEL_FILE, Vocabulary
from atm.messages import clock_text

TEXTS_AT_ONCE = 256  # that are tokenised in one call


def build(
  mixture: str,
  vocabulary: str,
  lengths: dict[str, int],
  directory: str,
  splits: Iterable[str] = ('train', 'validation'),
  passes: int = 1,
  processes: int | None = None,
  share: tuple[int, int] = (0, 1),
  configure_tasks: Callable = lambda **named: None,
  prepare: Callable | None = None,
  say: Callable[[str], None] = print,
) -> bool:
  """Builds the rows of a task or mixture that are not there yet.

  Args:
    mixture: a seqio task or mixture.
    vocabulary: a SentencePiece file or folder.
    lengths: {'inputs': S, 'targets': T}: rows are cut for these.
    directory: gets a folder for each task and split.
    splits: those of the tasks to build.
    passes: how many times training rows are made of the documents, each time in
      another order, where rows join documents; a small text then does not meet
      the model in the same few rows over and over.
    processes: how many work; None: one a core.
    share: (i, n): of n machines this is number i, from 0, and takes every n-th
      unit.
    configure_tasks: called with the vocabulary's path before reading.
    prepare: called in every other process, gives it its `configure_tasks`; it
      must pickle. None: works in this process alone.
    say: told what is going on, a line at a time.

  Returns:
    whether all rows are there, those of other machines' units included.

  Raises:
    ValueError: an unknown name, bad text, rows made otherwise.
    OSError: a file could not be written; what is finished stays.
  """
  index, machines = check_share(share)
  if '://' in directory:
    raise ValueError(
      f'CACHE_DIR = {directory!r}: rows are written to a local folder; copy it '
      'to the object store then, training reads it there'
    )
  words, sizes = Vocabulary(vocabulary), Lengths.of(lengths)
  words = store_vocabulary(words, directory)
  configure_tasks(vocabulary=words.path)
  job = CacheJob(words.path, sizes, directory, passes)
  wanted = [
    (task, split)
    for split in splits
    for task in registry.list_tasks(mixture, split)
  ]
  if not wanted:
    raise ValueError(f'{mixture!r} has none of the splits {tuple(splits)}')
  every = cache_shards.list_units(wanted, job)
  cache_shards.check_finished_rows(every, words, job)
  # Shared out before looking which are there: machines do not start together.
  mine = [
    u for u in every[index::machines] if not cache_shards.is_done(u, words, job)
  ]
  if mine:
    say(f'building rows of tokens: {mixture}, {len(mine)} units, {directory}')
    count = processes or os.cpu_count() or 1
    run = _alone if prepare is None or count == 1 else _together
    progress = BuildProgress(mine, say)
    for unit, tokens in run(mine, job, count, prepare):
      progress.add(unit, tokens)
  done = write_manifests(every, words, job, say)
  for line in describe_omissions(read_counts(every, job)) if done else ():
    say(line)
  return done


def store_vocabulary(words: Vocabulary, directory: str) -> Vocabulary:
  """The vocabulary as it lies beside the rows; copies it where there is none.

  Raises:
    ValueError: another one lies there.
  """
  place = os.path.join(directory, 'vocabulary')
  if not os.path.exists(place):
    os.makedirs(place)
    path = os.path.join(place, MODEL_FILE)
    with open(f'{path}.partial-{os.getpid()}', 'wb') as f:
      f.write(words.model)
    os.replace(f.name, path)
  kept = Vocabulary(place)
  if kept.sha256 != words.sha256:
    raise ValueError(
      f'{directory!r} was made with another vocabulary than {words.path}: use '
      f'{kept.path}, or another CACHE_DIR'
    )
  return kept


def check_share(share) -> tuple[int, int]:
  """Raises ValueError unless (i, n) with 0 <= i < n."""
  pair = isinstance(share, tuple | list) and len(share) == 2
  if not pair or not all(isinstance(x, int) for x in share):
    raise ValueError(f'SHARE = {share!r}: expected (i, n), machine i of n')
  if not 0 <= share[0] < share[1]:
    raise ValueError(f'SHARE = {share!r}: expected (i, n) with 0 <= i < n')
  return share[0], share[1]


def _alone(mine, job, count, prepare):
  for unit in mine:
    yield unit, make_unit(unit, job)


def _together(mine, job, count, prepare):
  """Units in other processes, largest first; started anew, not forked."""
  context = multiprocessing.get_context('spawn')
  pool = concurrent.futures.ProcessPoolExecutor(
    min(count, len(mine)), context, _start, (prepare, job.vocabulary)
  )
  with pool:
    order = sorted(mine, key=lambda unit: -unit.size)
    running = {pool.submit(make_unit, unit, job): unit for unit in order}
    try:
      for done in concurrent.futures.as_completed(running):
        yield running[done], done.result()
    except BaseException:
      pool.shutdown(wait=True, cancel_futures=True)
      raise


def _start(prepare: Callable, vocabulary: str) -> None:
  prepare()(vocabulary=vocabulary)


class BuildProgress:
  """Says how far a build is, at most every ten seconds."""

  def __init__(self, mine: list[CacheUnit], say: Callable[[str], None]):
    self.say, self.count = say, len(mine)
    self.size = sum(unit.size for unit in mine)
    self.start = self.told = time.perf_counter()
    self.done = self.made = self.tokens = 0

  def add(self, unit: CacheUnit, tokens: int) -> None:
    self.done, self.made = self.done + 1, self.made + unit.size
    self.tokens += tokens
    now = time.perf_counter()
    if now - self.told < 10 and self.done < self.count:
      return
    self.told, spent = now, now - self.start
    left = spent * (self.size - self.made) / self.made
    self.say(
      f'{self.done:,}/{self.count:,} units  {self.tokens:,} tokens  '
      f'{self.tokens / spent:,.0f} tokens/s  {clock_text(left)} left'
    )


# --- What there is, and what there is to do


def open_cache(directory: str) -> tuple[Vocabulary, Lengths]:
  """The vocabulary and lengths that a cache was made with.

  Raises:
    FileNotFoundError: it has no finished rows.
  """
  for path in sorted(epath.Path(directory).glob(f'*/{token_store.MANIFEST}')):
    S, T = token_store.read_manifest(os.fspath(path.parent))['made_from'][
      'lengths'
    ]
    return Vocabulary(epath.Path(directory) / 'vocabulary'), Lengths(S, T)
  raise FileNotFoundError(
    f'CACHE_DIR = {directory!r}: no finished rows there; `atm cache` makes them'
  )


def write_manifests(
  every: list[CacheUnit], words: Vocabulary, job: CacheJob, say
) -> bool:
  """Writes the manifests of tasks whose files are all there.

  Returns:
    whether all tasks' are.

  Raises:
    ValueError: a task has no text to train on; or as `facts_of`.
  """
  missing = 0
  for task, split, mine in cache_shards.group_by_task(every):
    parts = [cache_shards.read_facts(task, unit, words, job) for unit in mine]
    absent = sum(part is None for part in parts)
    missing += absent
    if absent:
      continue
    if split == 'train' and not any(p['counts']['documents'] for p in parts):
      raise ValueError(f'task {task.name!r} has no text in its {split!r} split')
    folder = registry.get_rows_folder(job.directory, task.name, split)
    if not os.path.exists(os.path.join(folder, token_store.MANIFEST)):
      made_from = job.made_of(task, split, words)
      token_store.write_manifest(folder, made_from, parts)
    for left_over in glob.glob(
      os.path.join(glob.escape(folder), '*.partial-*')
    ):
      os.remove(left_over)
  if missing:
    say(
      f'{missing} files are still missing: other machines make them, or this '
      'command without SHARE'
    )
  return not missing


def read_counts(every: list[CacheUnit], job: CacheJob) -> Iterator[tuple]:
  """(source, language, counts) of every task's finished rows."""
  for task, split, _ in cache_shards.group_by_task(every):
    manifest = token_store.read_manifest(
      registry.get_rows_folder(job.directory, task.name, split)
    )
    apply = registry.get_apply(task)
    source = getattr(apply, 'source', task.name)
    yield (
      f'{source} ({split})',
      getattr(apply, 'language', ''),
      manifest['counts'],
    )


OMISSIONS = {
  'dropped': '{count:,} sentences dropped that {of} holds',
  'skipped': '{count:,} lines or records skipped',
  'full': '{count:,} pairs fill TASK_FEATURE_LENGTHS; what is longer is cut',
  'unknown': '{count:,} tokens are <unk>: characters not in the vocabulary',
}


def describe_omissions(counted: Iterable[tuple]) -> list[str]:
  """What was left out: sentences met in evaluation sets, bad lines, long ends.

  Args:
    counted: (source, language, counts); those of one text, which several tasks
      have, count once.
  """
  seen, sums = set(), collections.Counter()
  for source, language, counts in counted:
    for name, count in counts.items():
      kind, _, of = name.partition('/')
      if kind in OMISSIONS and (source, language, name) not in seen:
        seen.add((source, language, name))
        sums[source, kind, of] += count
  return [
    f'{source}: {OMISSIONS[kind].format(count=count, of=of)}'
    for (source, kind, of), count in sorted(sums.items())
  ]


# --- Making a unit


def make_unit(unit: CacheUnit, job: CacheJob) -> int:
  """Makes the rows of one unit for all its tasks; returns how many tokens."""
  import seqio

  words = Vocabulary(job.vocabulary)
  ids = packing.SpecialIds.of(words)
  tasks = [seqio.TaskRegistry.get(name) for name in unit.tasks]
  counts = collections.Counter(documents=0, sentences=0, tokens=0)
  with registry.shorten_tf_errors(tasks[0].name):
    documents = list(read_documents(tasks[0], unit, job, counts, words.unk_id))
  for task in tasks:
    path = unit.path(job.directory, task.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    mine = collections.Counter(counts)
    file = token_store.write_rows(
      path, make_rows(task, unit, documents, ids, job, mine)
    )
    made_from = job.made_of(task, unit.split, words)
    facts = {
      'made_from': made_from,
      'text': unit.text,
      'counts': dict(mine),
      'file': file,
    }
    fileio.write_json(cache_shards.get_facts_path(path), facts)
  return counts['tokens']


def make_rows(
  task, unit, documents: list, ids, job: CacheJob, counts
) -> Iterator:
  """The rows of a task; counts `examples` before they are packed."""
  objective = registry.get_objective(task)
  length = objective.row_length(*job.lengths.both)
  passes = job.passes_of(unit.split)
  if passes > 1 and objective.joins:
    key = zlib.crc32(task.name.encode())
    documents = repeat_shuffled(documents, passes, key)
  made = counted(objective.rows(documents, ids, length), counts)
  return (
    objective.pack(made, ids, *job.lengths.both) if objective.packs else made
  )


def counted(made: Iterator[np.ndarray], counts) -> Iterator[np.ndarray]:
  for row in made:
    counts['examples'] += 1
    yield row


def repeat_shuffled(items: list, passes: int, key: int) -> Iterator:
  """All items, `passes` times, each time in another order."""
  for number in range(passes):
    order = counter_rng.make_key(key, number)
    index = counter_rng.permute(np.arange(len(items)), len(items), order)
    yield from (items[i] for i in index)


def read_documents(
  task, unit: CacheUnit, job: CacheJob, counts, unknown: int
) -> Iterator:
  """The ids of a unit's documents, in order; pairs where the task has pairs.

  Adds to `counts`: documents, tokens, what the preprocessors count, `skipped`
  records; of pairs how many are as long as `full` lengths, and their tokens of
  the id `unknown`.
  """
  apply = registry.get_apply(task)
  steps = cache_shards.get_precache_steps(task) if apply else []
  direct = hasattr(task.source, 'texts') and all(
    hasattr(step, 'direct') for step in steps
  )
  if apply and direct:
    found = _read_direct(task, unit, steps, counts)
  elif [hasattr(step, 'pair') for step in task.preprocessors] == [True]:
    found = _read_pairs(task, unit, job, counts)
  else:
    found = _read_stream(task, unit, job, apply)
  for document in found:
    counts['documents'] += 1
    if isinstance(document, tuple):
      counts['inputs'] += len(document[0])
      counts['targets'] += len(document[1])
      counts['tokens'] += len(document[0]) + len(document[1])
      if any(map(operator.ge, map(len, document), job.lengths.both)):
        counts['full'] += 1
      if strange := sum(int((x == unknown).sum()) for x in document):
        counts['unknown'] += strange
    else:
      counts['tokens'] += len(document)
    yield document


def _read_direct(task, unit: CacheUnit, steps, counts) -> Iterator[np.ndarray]:
  for shard in unit.shards:
    texts = task.source.texts(unit.split, shard)
    while made := list(itertools.islice(texts, TEXTS_AT_ONCE)):
      for step in steps:
        made = step.direct(made, counts)
      yield from (document for document in made if len(document))
    if bad := task.source.bad(shard):
      counts['skipped'] += bad


def _read_pairs(
  task, unit: CacheUnit, job: CacheJob, counts
) -> Iterator[tuple]:
  """Pairs of texts that one preprocessor frames, without tf.data."""
  (frame,) = task.preprocessors
  for shard in unit.shards:
    for text in task.source.texts(unit.split, shard):
      yield frame.pair(text, *job.lengths.both)
    if bad := task.source.bad(shard):
      counts['skipped'] += bad


def _read_stream(task, unit: CacheUnit, job: CacheJob, apply) -> Iterator:
  import seqio

  one_each = len(unit.shards) == 1
  info = seqio.ShardInfo(unit.number, unit.count) if one_each else None
  if apply:
    dataset = task.source.get_dataset(
      unit.split, shuffle=False, shard_info=info
    )
    dataset = task.preprocess_precache(dataset)
    for example in dataset.as_numpy_iterator():
      yield example['targets']
    return
  S, T = job.lengths.both
  dataset = task.get_dataset(
    {'inputs': S, 'targets': T}, unit.split, shuffle=False, shard_info=info
  )
  for example in dataset.as_numpy_iterator():
    yield example['inputs'], example['targets']
