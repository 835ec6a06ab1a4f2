"""The units of work of a cache, and what is there of each.

A unit is one shard of a source, in one form; it becomes a file for each task
that shares this text. Beside a file lie its facts: what it was made from, the
text's name and size, counts. By them a file is known as done, or refused.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterator

from atm.data import registry, token_store
from atm.data.registry import Lengths
from atm.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class CacheUnit:
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
    return os.path.join(
      registry.get_rows_folder(directory, task, self.split), name
    )


@dataclasses.dataclass(frozen=True)
class CacheJob:
  """What a worker needs to know of all units."""

  vocabulary: str
  lengths: Lengths
  directory: str
  passes: int

  def passes_of(self, split: str) -> int:
    """Held-out rows are made once."""
    return self.passes if split == 'train' else 1

  def made_of(self, task, split: str, words: Vocabulary) -> dict:
    """See `registry.get_provenance`."""
    passes = self.passes_of(split)
    return registry.get_provenance(task, split, words, self.lengths, passes)


def list_units(wanted: list[tuple], job: CacheJob) -> list[CacheUnit]:
  """The units of (task, split) pairs; tasks of one text are one unit."""
  groups = collections.defaultdict(list)
  for task, split in wanted:
    groups[(split, id(task.source), *_get_text_key(task))].append(task)
  made = []
  for (split, *_), tasks in groups.items():
    with registry.shorten_tf_errors(tasks[0].name):
      shards = [describe_shard(s) for s in tasks[0].source.list_shards(split)]
    names = tuple(task.name for task in tasks)
    each = [[number] for number in range(len(shards))]
    # Several passes join the documents of all shards, each in another order.
    joined = job.passes_of(split) > 1 and shards
    groups_of = [range(len(shards))] if joined else each
    for number, group in enumerate(groups_of):
      text, sizes = zip(*(shards[i] for i in group))
      place = names, split, number, len(groups_of)
      made.append(CacheUnit(*place, tuple(group), text, sum(sizes)))
  return made


def _get_text_key(task) -> tuple[int, ...]:
  """Identities of what stands in front of a task's cache placeholder."""
  if registry.get_apply(task) is None:
    return (id(task),)  # its inputs and targets are nobody else's
  return tuple(id(step) for step in get_precache_steps(task))


def get_precache_steps(task) -> list:
  """The preprocessors in front of a task's cache placeholder."""
  import seqio

  steps = list(task.preprocessors)
  kinds = [isinstance(step, seqio.CacheDatasetPlaceholder) for step in steps]
  if not any(kinds):
    raise ValueError(f'task {task.name!r} has no seqio.CacheDatasetPlaceholder')
  return steps[: kinds.index(True)]


def describe_shard(shard: str) -> tuple[str, int]:
  """(name and size to tell it by, bytes) of 'path' or 'path#k/n'."""
  path, _, part = shard.partition('#')
  if not os.path.exists(path):
    return shard, 1
  size = os.path.getsize(path)
  of = int(part.split('/')[1]) if part else 1
  return f'{os.path.basename(shard)} of {size} bytes', max(1, size // of)


def get_facts_path(path: str) -> str:
  return os.path.splitext(path)[0] + '.json'


def read_facts(
  task, unit: CacheUnit, words: Vocabulary, job: CacheJob
) -> dict | None:
  """What is kept beside a task's file of a unit; None where it is not there.

  Raises:
    ValueError: it was made otherwise, or of other text.
  """
  path = unit.path(job.directory, task.name)
  if not os.path.exists(path) or not os.path.exists(get_facts_path(path)):
    return None
  with open(get_facts_path(path)) as f:
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


def group_by_task(every: list[CacheUnit]) -> Iterator[tuple]:
  """(task, split, its units, in order)."""
  import seqio

  found = collections.defaultdict(list)
  for unit in every:
    for name in unit.tasks:
      found[name, unit.split].append(unit)
  for (name, split), mine in found.items():
    yield seqio.TaskRegistry.get(name), split, mine


def check_finished_rows(
  every: list[CacheUnit], words: Vocabulary, job: CacheJob
) -> None:
  """Raises ValueError where finished rows were made otherwise."""
  for task, split, mine in group_by_task(every):
    folder = registry.get_rows_folder(job.directory, task.name, split)
    if not os.path.exists(os.path.join(folder, token_store.MANIFEST)):
      continue
    made = token_store.TokenRows(
      folder, job.made_of(task, split, words), verify=None
    )
    files = [os.path.basename(u.path(job.directory, task.name)) for u in mine]
    if [file['name'] for file in made.files] != files:
      raise ValueError(
        f'{folder} was made of {len(made.files)} pieces of text, but there are '
        f'{len(files)} now. Remove the folder to build it again, or '
        'name another.'
      )


def is_done(unit: CacheUnit, words: Vocabulary, job: CacheJob) -> bool:
  """Whether all files of a unit are there; raises as `read_facts`."""
  import seqio

  tasks = map(seqio.TaskRegistry.get, unit.tasks)
  return all([read_facts(task, unit, words, job) for task in tasks])
