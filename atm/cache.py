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
import dataclasses
import glob
import itertools
import json
import multiprocessing
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from etils import epath

from atm import data, noise, objectives, rows
from atm.data import Lengths
from atm.metrics import clock_text
from atm.vocabulary import MODEL_FILE, Vocabulary

TEXTS_AT_ONCE = 256  # that are tokenised in one call


@dataclasses.dataclass(frozen=True)
class Unit:
  """Some shards, mostly one, of the text that some tasks share.

  Attributes:
    number, count: which unit of how many of this text and split.
    shards: numbers of the source's shards it reads.
    text: a name and size for each, to tell whether the text has changed.
    size: their bytes, where they are files.
  """

  tasks: tuple[str, ...]
  split: str
  number: int
  count: int
  shards: tuple[int, ...]
  text: tuple[str, ...]
  size: int

  def path(self, directory: str, task: str) -> str:
    """The unit's file of a task."""
    name = f'rows-{self.number:05d}-of-{self.count:05d}.array_record'
    return os.path.join(data.rows_folder(directory, task, self.split), name)


@dataclasses.dataclass(frozen=True)
class Job:
  """What a worker needs to know of all units."""

  vocabulary: str
  lengths: Lengths
  directory: str
  passes: int

  def passes_of(self, split: str) -> int:
    """Held-out rows are made once."""
    return self.passes if split == 'train' else 1

  def made_of(self, task, split: str, words: Vocabulary) -> dict:
    """See `data.made_of`."""
    passes = self.passes_of(split)
    return data.made_of(task, split, words, self.lengths, passes)


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
  words = keep_vocabulary(words, directory)
  configure_tasks(vocabulary=words.path)
  job = Job(words.path, sizes, directory, passes)
  wanted = [
    (task, split) for split in splits for task in data.tasks_of(mixture, split)
  ]
  if not wanted:
    raise ValueError(f'{mixture!r} has none of the splits {tuple(splits)}')
  every = units(wanted, job)
  refuse_others(every, words, job)
  # Shared out before looking which are there: machines do not start together.
  mine = [u for u in every[index::machines] if not is_done(u, words, job)]
  if mine:
    say(f'building rows of tokens: {mixture}, {len(mine)} units, {directory}')
    count = processes or os.cpu_count() or 1
    run = _alone if prepare is None or count == 1 else _together
    progress = Progress(mine, say)
    for unit, tokens in run(mine, job, count, prepare):
      progress.add(unit, tokens)
  done = finish(every, words, job, say)
  for line in losses(told(every, job)) if done else ():
    say(line)
  return done


def keep_vocabulary(words: Vocabulary, directory: str) -> Vocabulary:
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
    yield unit, make(unit, job)


def _together(mine, job, count, prepare):
  """Units in other processes, largest first; started anew, not forked."""
  context = multiprocessing.get_context('spawn')
  pool = concurrent.futures.ProcessPoolExecutor(
    min(count, len(mine)), context, _start, (prepare, job.vocabulary)
  )
  with pool:
    order = sorted(mine, key=lambda unit: -unit.size)
    running = {pool.submit(make, unit, job): unit for unit in order}
    try:
      for done in concurrent.futures.as_completed(running):
        yield running[done], done.result()
    except BaseException:
      pool.shutdown(wait=True, cancel_futures=True)
      raise


def _start(prepare: Callable, vocabulary: str) -> None:
  prepare()(vocabulary=vocabulary)


class Progress:
  """Says how far a build is, at most every ten seconds."""

  def __init__(self, mine: list[Unit], say: Callable[[str], None]):
    self.say, self.count = say, len(mine)
    self.size = sum(unit.size for unit in mine)
    self.start = self.told = time.perf_counter()
    self.done = self.made = self.tokens = 0

  def add(self, unit: Unit, tokens: int) -> None:
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


def beside(directory: str) -> tuple[Vocabulary, Lengths]:
  """The vocabulary and lengths that a cache was made with.

  Raises:
    FileNotFoundError: it has no finished rows.
  """
  for path in sorted(epath.Path(directory).glob(f'*/{rows.MANIFEST}')):
    S, T = rows.read_manifest(os.fspath(path.parent))['made_from']['lengths']
    return Vocabulary(epath.Path(directory) / 'vocabulary'), Lengths(S, T)
  raise FileNotFoundError(
    f'CACHE_DIR = {directory!r}: no finished rows there; `atm cache` makes them'
  )


def units(wanted: list[tuple], job: Job) -> list[Unit]:
  """The units of (task, split) pairs; tasks of one text are one unit."""
  groups = collections.defaultdict(list)
  for task, split in wanted:
    groups[(split, id(task.source), *before(task))].append(task)
  made = []
  for (split, *_), tasks in groups.items():
    with data.plain_errors(tasks[0].name):
      shards = [shard_facts(s) for s in tasks[0].source.list_shards(split)]
    names = tuple(task.name for task in tasks)
    each = [[number] for number in range(len(shards))]
    # Several passes join the documents of all shards, each in another order.
    joined = job.passes_of(split) > 1 and shards
    groups_of = [range(len(shards))] if joined else each
    for number, group in enumerate(groups_of):
      text, sizes = zip(*(shards[i] for i in group))
      place = names, split, number, len(groups_of)
      made.append(Unit(*place, tuple(group), text, sum(sizes)))
  return made


def before(task) -> tuple[int, ...]:
  """Identities of what stands in front of a task's cache placeholder."""
  if data.apply_of(task) is None:
    return (id(task),)  # its inputs and targets are nobody else's
  return tuple(id(step) for step in steps_before(task))


def steps_before(task) -> list:
  """The preprocessors in front of a task's cache placeholder."""
  import seqio

  steps = list(task.preprocessors)
  kinds = [isinstance(step, seqio.CacheDatasetPlaceholder) for step in steps]
  if not any(kinds):
    raise ValueError(f'task {task.name!r} has no seqio.CacheDatasetPlaceholder')
  return steps[: kinds.index(True)]


def shard_facts(shard: str) -> tuple[str, int]:
  """(name and size to tell it by, bytes) of 'path' or 'path#k/n'."""
  path, _, part = shard.partition('#')
  if not os.path.exists(path):
    return shard, 1
  size = os.path.getsize(path)
  of = int(part.split('/')[1]) if part else 1
  return f'{os.path.basename(shard)} of {size} bytes', max(1, size // of)


def facts_path(path: str) -> str:
  return os.path.splitext(path)[0] + '.json'


def facts_of(task, unit: Unit, words: Vocabulary, job: Job) -> dict | None:
  """What is kept beside a task's file of a unit; None where it is not there.

  Raises:
    ValueError: it was made otherwise, or of other text.
  """
  path = unit.path(job.directory, task.name)
  if not os.path.exists(path) or not os.path.exists(facts_path(path)):
    return None
  with open(facts_path(path)) as f:
    facts = json.load(f)
  made_from = job.made_of(task, unit.split, words)
  for what, found, wanted in (
    *((k, facts['made_from'].get(k), made_from.get(k))
      for k in {**facts['made_from'], **made_from}),
    ('text', facts['text'], list(unit.text)),
  ):  # fmt: skip
    if found != wanted:
      raise ValueError(
        f'{path} was made with {what} = {found!r}, but this run has '
        f'{wanted!r}. Remove {os.path.dirname(path)} to build it again, or '
        'name another.'
      )
  return facts


def by_task(every: list[Unit]) -> Iterator[tuple]:
  """(task, split, its units, in order)."""
  import seqio

  found = collections.defaultdict(list)
  for unit in every:
    for name in unit.tasks:
      found[name, unit.split].append(unit)
  for (name, split), mine in found.items():
    yield seqio.TaskRegistry.get(name), split, mine


def refuse_others(every: list[Unit], words: Vocabulary, job: Job) -> None:
  """Raises ValueError where finished rows were made otherwise."""
  for task, split, mine in by_task(every):
    folder = data.rows_folder(job.directory, task.name, split)
    if not os.path.exists(os.path.join(folder, rows.MANIFEST)):
      continue
    made = rows.Rows(folder, job.made_of(task, split, words), verify=None)
    files = [os.path.basename(u.path(job.directory, task.name)) for u in mine]
    if [file['name'] for file in made.files] != files:
      raise ValueError(
        f'{folder} was made of {len(made.files)} pieces of text, but there are '
        f'{len(files)} now. Remove the folder to build it again, or '
        'name another.'
      )


def is_done(unit: Unit, words: Vocabulary, job: Job) -> bool:
  """Whether all files of a unit are there; raises as `facts_of`."""
  import seqio

  tasks = map(seqio.TaskRegistry.get, unit.tasks)
  return all([facts_of(task, unit, words, job) for task in tasks])


def finish(every: list[Unit], words: Vocabulary, job: Job, say) -> bool:
  """Writes the manifests of tasks whose files are all there.

  Returns:
    whether all tasks' are.

  Raises:
    ValueError: a task has no text to train on; or as `facts_of`.
  """
  missing = 0
  for task, split, mine in by_task(every):
    parts = [facts_of(task, unit, words, job) for unit in mine]
    absent = sum(part is None for part in parts)
    missing += absent
    if absent:
      continue
    if split == 'train' and not any(p['counts']['documents'] for p in parts):
      raise ValueError(f'task {task.name!r} has no text in its {split!r} split')
    folder = data.rows_folder(job.directory, task.name, split)
    if not os.path.exists(os.path.join(folder, rows.MANIFEST)):
      made_from = job.made_of(task, split, words)
      rows.finish(folder, made_from, parts)
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


def told(every: list[Unit], job: Job) -> Iterator[tuple]:
  """(source, language, counts) of every task's finished rows."""
  for task, split, _ in by_task(every):
    manifest = rows.read_manifest(
      data.rows_folder(job.directory, task.name, split)
    )
    apply = data.apply_of(task)
    source = getattr(apply, 'source', task.name)
    yield (
      f'{source} ({split})',
      getattr(apply, 'language', ''),
      manifest['counts'],
    )


def losses(counted: Iterable[tuple]) -> list[str]:
  """What was left out: sentences met in evaluation sets, and bad lines.

  Args:
    counted: (source, language, counts); those of one text, which several tasks
      have, count once.
  """
  seen, sums = set(), collections.Counter()
  for source, language, counts in counted:
    for name, count in counts.items():
      kind, _, of = name.partition('/')
      if (
        kind in ('dropped', 'skipped') and (source, language, name) not in seen
      ):
        seen.add((source, language, name))
        sums[source, kind, of] += count
  return [
    f'{source}: {count:,} sentences dropped that {of} holds'
    if kind == 'dropped'
    else f'{source}: {count:,} lines or records skipped'
    for (source, kind, of), count in sorted(sums.items())
  ]


# --- Making a unit


def make(unit: Unit, job: Job) -> int:
  """Makes the rows of one unit for all its tasks; returns how many tokens."""
  import seqio

  words = Vocabulary(job.vocabulary)
  ids = objectives.Ids.of(words)
  tasks = [seqio.TaskRegistry.get(name) for name in unit.tasks]
  counts = collections.Counter(documents=0, sentences=0, tokens=0)
  with data.plain_errors(tasks[0].name):
    documents = list(read(tasks[0], unit, job, counts))
  for task in tasks:
    path = unit.path(job.directory, task.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    mine = collections.Counter(counts)
    file = rows.write(path, rows_of(task, unit, documents, ids, job, mine))
    made_from = job.made_of(task, unit.split, words)
    facts = {
      'made_from': made_from,
      'text': unit.text,
      'counts': dict(mine),
      'file': file,
    }
    rows.write_json(facts_path(path), facts)
  return counts['tokens']


def rows_of(task, unit, documents: list, ids, job: Job, counts) -> Iterator:
  """The rows of a task; counts `examples` before they are packed."""
  objective = data.objective_of(task)
  length = objective.row_length(*job.lengths.both)
  passes = job.passes_of(unit.split)
  if passes > 1 and objective.joins:
    key = zlib.crc32(task.name.encode())
    documents = shuffled(documents, passes, key)
  made = counted(objective.rows(documents, ids, length), counts)
  return (
    objective.pack(made, ids, *job.lengths.both) if objective.packs else made
  )


def counted(made: Iterator[np.ndarray], counts) -> Iterator[np.ndarray]:
  for row in made:
    counts['examples'] += 1
    yield row


def shuffled(items: list, passes: int, key: int) -> Iterator:
  """All items, `passes` times, each time in another order."""
  for number in range(passes):
    order = noise.keys(key, number)
    index = data.permute(np.arange(len(items)), len(items), order)
    yield from (items[i] for i in index)


def read(task, unit: Unit, job: Job, counts) -> Iterator:
  """The ids of a unit's documents, in order; pairs where the task has pairs.

  Adds to `counts`: documents, tokens, what the preprocessors count, and
  `skipped` records.
  """
  apply = data.apply_of(task)
  steps = steps_before(task) if apply else []
  direct = hasattr(task.source, 'texts') and all(
    hasattr(step, 'direct') for step in steps
  )
  if apply and direct:
    found = _read_direct(task, unit, steps, counts)
  else:
    found = _read_stream(task, unit, job, apply)
  for document in found:
    counts['documents'] += 1
    if isinstance(document, tuple):
      counts['inputs'] += len(document[0])
      counts['targets'] += len(document[1])
      counts['tokens'] += len(document[0]) + len(document[1])
    else:
      counts['tokens'] += len(document)
    yield document


def _read_direct(task, unit: Unit, steps, counts) -> Iterator[np.ndarray]:
  for shard in unit.shards:
    texts = task.source.texts(unit.split, shard)
    while made := list(itertools.islice(texts, TEXTS_AT_ONCE)):
      for step in steps:
        made = step.direct(made, counts)
      yield from (document for document in made if len(document))
    if bad := task.source.bad(shard):
      counts['skipped'] += bad


def _read_stream(task, unit: Unit, job: Job, apply) -> Iterator:
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
