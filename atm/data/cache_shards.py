"""Units of work of a cache build, and how far each of them is.

A unit is one shard of a source, in one form; each task that shares this text
gets a file of it. Beside a file lie its facts: provenance, the text's name and
size, counts. They tell whether a file is done, or was made otherwise.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator

from atm import storage
from atm.data import task_registry, task_table, token_store
from atm.data.task_registry import Lengths


@dataclasses.dataclass(frozen=True)
class CacheJob:
  """Settings of a build, which every worker gets, see `cache.build`."""

  vocabulary: str  # its path, see `vocabulary.open_vocabulary`
  vocabulary_sha256: str
  lengths: Lengths
  directory: str
  passes: int

  def passes_of(self, split: str) -> int:
    """Returns the passes over a split's text; held-out rows are made once."""
    return self.passes if split == 'train' else 1

  def get_folder(self, task: str, split: str) -> str:
    """Returns the folder of a task's rows."""
    return task_registry.get_rows_folder(self.directory, task, split)

  def get_provenance(self, task, split: str) -> dict:
    """Returns facts that rows depend on, see `task_registry.get_provenance`."""
    return task_registry.get_provenance(
      task, split, self.vocabulary_sha256, self.lengths, self.passes_of(split)
    )


@dataclasses.dataclass(frozen=True)
class CacheUnit:
  """Shards, mostly one, of the text that some tasks share."""

  tasks: tuple[str, ...]  # names of the tasks that get a file of it
  split: str
  number: int  # of `count` units of this text and split
  count: int
  shards: tuple[int, ...]  # numbers of the source's shards it reads
  text: tuple[str, ...]  # names and sizes of shards, to tell if text changed
  size: int  # bytes of the shards, where they are files

  def get_path(self, job: CacheJob, task: str) -> str:
    """Returns the path of the unit's file of a task."""
    name = f'rows-{self.number:05d}-of-{self.count:05d}.array_record'
    return os.path.join(job.get_folder(task, self.split), name)

  def read_facts(self, task, job: CacheJob) -> dict | None:
    """Returns the facts of a task's file; None: not made yet.

    Raises:
      ValueError: the file was made otherwise, or of other text.
    """
    path = self.get_path(job, task.name)
    if not storage.exists(path) or not storage.exists(get_facts_path(path)):
      return None
    facts = token_store.read_sealed(get_facts_path(path), token_store.FACTS)
    actual = {**facts['made_from'], 'text': facts['text']}
    expected = job.get_provenance(task, self.split) | {'text': list(self.text)}
    # Facts that this run does not know count, too: rows of newer code.
    expected = dict.fromkeys(actual) | expected
    token_store.check_provenance(path, actual, expected, os.path.dirname(path))
    return facts

  def is_done(self, job: CacheJob) -> bool:
    """Tells whether all files are there; raises as `read_facts`."""
    tasks = [task_table.get_task(name) for name in self.tasks]
    # A list: each file is checked, also behind one that is missing.
    return all([self.read_facts(task, job) for task in tasks])


def list_missing(units: list[CacheUnit], job: CacheJob) -> list[CacheUnit]:
  """Returns the units that are not done; raises as `CacheUnit.read_facts`."""
  remote = storage.is_remote(job.directory)
  done = storage.map_files(lambda unit: unit.is_done(job), units, remote)
  return [unit for unit, there in zip(units, done) if not there]


def list_units(wanted: list[tuple], job: CacheJob) -> list[CacheUnit]:
  """Returns the units of (task, split) pairs; tasks of one text share units."""
  groups, units = collections.defaultdict(list), []
  for task, split in wanted:
    groups[split, id(task.source), *_get_text_key(task)].append(task)
  for (split, *_), tasks in groups.items():
    with task_registry.shorten_tf_errors(tasks[0].name):
      named = tasks[0].source.list_shards(split)
      remote = any(map(storage.is_remote, named))
      shards = storage.map_files(describe_shard, named, remote)
    names = tuple(task.name for task in tasks)
    numbers = [(i,) for i in range(len(shards))]
    if job.passes_of(split) > 1 and shards:
      # Several passes join the documents of all shards, each in another order.
      numbers = [tuple(range(len(shards)))]
    for i, chosen in enumerate(numbers):
      text, sizes = zip(*(shards[k] for k in chosen))
      what = names, split, i, len(numbers), chosen, text, sum(sizes)
      units.append(CacheUnit(*what))
  return units


def _get_text_key(task) -> tuple[int, ...]:
  """Returns a key that is equal for tasks that read a source together."""
  if task_registry.frames_pairs(task):
    return ()  # tasks of one source share its pairs out
  # Without ApplyObjective, a task has inputs and targets of its own.
  if task_registry.get_apply(task) is None:
    return (id(task),)
  return tuple(id(step) for step in get_precache_steps(task))


def get_precache_steps(task) -> list:
  """Returns the preprocessors before a task's CacheDatasetPlaceholder."""
  steps = list(task.preprocessors)
  for number, step in enumerate(steps):
    if task_table.is_placeholder(step):
      return steps[:number]
  raise ValueError(f'task {task.name!r} has no seqio.CacheDatasetPlaceholder')


def describe_shard(shard: str) -> tuple[str, int]:
  """Returns (name and size to tell it by, bytes) of 'path' or 'path#k/n'."""
  path, _, part = shard.partition('#')
  if not storage.exists(path):
    return shard, 1
  size = storage.get_size(path)
  of = int(part.split('/')[1]) if part else 1
  return f'{os.path.basename(shard)} of {size} bytes', max(1, size // of)


def get_facts_path(path: str) -> str:
  """Returns where the facts of a file of rows lie."""
  return os.path.splitext(path)[0] + '.json'


def group_by_task(units: list[CacheUnit]) -> Iterator[tuple]:
  """Yields (task, split, its units, in order)."""
  groups = collections.defaultdict(list)
  for unit in units:
    for name in unit.tasks:
      groups[name, unit.split].append(unit)
  for (name, split), of_task in groups.items():
    yield task_table.get_task(name), split, of_task


def check_finished_rows(units: list[CacheUnit], job: CacheJob) -> None:
  """Raises ValueError if a task's finished rows were made otherwise."""
  for task, split, of_task in group_by_task(units):
    folder = job.get_folder(task.name, split)
    if not token_store.has_manifest(folder):
      continue
    made_from = job.get_provenance(task, split)
    files = token_store.TokenRows(folder, made_from, verify=None).files
    names = [os.path.basename(u.get_path(job, task.name)) for u in of_task]
    if [file['name'] for file in files] != names:
      raise ValueError(
        f'{folder} was made of {len(files)} pieces of text, but there are '
        f'{len(names)} now. Remove it to build it again, or name another.'
      )
