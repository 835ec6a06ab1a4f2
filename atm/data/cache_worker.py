"""Turns one unit of text into files of token rows."""

import collections
import dataclasses
import itertools
import operator
import os
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from atm import storage
from atm.data import (
  cache_shards,
  counter_rng,
  task_registry,
  task_table,
  token_store,
)
from atm.data.cache_shards import CacheJob, CacheUnit
from atm.data.packing import SpecialIds
from atm.data.vocabulary import open_vocabulary

TEXTS_AT_ONCE = 256  # that are tokenised in one call


def make_unit(unit: CacheUnit, job: CacheJob) -> collections.Counter:
  """Writes the files of one unit, one for each task; returns its counts.

  They are `rows` and `bytes` written, and those of the text, which counts once:
  documents, tokens and the like.
  """
  vocabulary = open_vocabulary(job.vocabulary)
  ids = SpecialIds.of(vocabulary)
  tasks = [task_table.get_task(name) for name in unit.tasks]
  read = share_pairs if task_registry.frames_pairs(tasks[0]) else share_text
  with task_registry.shorten_tf_errors(tasks[0].name):
    shared = read(tasks, unit, job, vocabulary.unk_id)
  counts = collections.Counter()
  for task, (documents, task_counts) in zip(tasks, shared):
    path = unit.get_path(job, task.name)
    storage.make_folder(os.path.dirname(path))
    rows = make_rows(task, unit, documents, ids, job, task_counts)
    facts = {
      'made_from': job.get_provenance(task, unit.split),
      'text': unit.text,
      'file': token_store.write_rows(path, rows),
      'counts': dict(task_counts),  # after the rows: they add `examples`
    }
    # The facts come last: a file without them is made again.
    token_store.write_sealed(cache_shards.get_facts_path(path), facts)
    counts.update({name: facts['file'][name] for name in ('rows', 'bytes')})
  of_text = [counted for _, counted in shared]
  for counted in of_text if read is share_pairs else of_text[:1]:
    counts.update(counted)
  return counts


def make_rows(
  task, unit, documents: list, ids, job: CacheJob, counts
) -> Iterator[np.ndarray]:
  """Yields the rows of a task; counts `examples` before they are packed."""
  objective = task_registry.get_objective(task)
  sizes, passes = job.lengths.both, job.passes_of(unit.split)
  if passes > 1 and objective.joins:
    key = zlib.crc32(task.name.encode())
    documents = repeat_shuffled(documents, passes, key)
  rows = objective.rows(documents, ids, objective.row_length(*sizes))
  rows = _count_examples(rows, counts)
  return objective.pack(rows, ids, *sizes) if objective.packs else rows


def _count_examples(rows: Iterable, counts) -> Iterator:
  for row in rows:
    counts['examples'] += 1
    yield row


def repeat_shuffled(items: list, passes: int, key: int) -> Iterator:
  """Yields all items `passes` times, each time in another order."""
  for number in range(passes):
    order = counter_rng.make_key(key, number)
    for i in counter_rng.permute(np.arange(len(items)), len(items), order):
      yield items[i]


# What each task of a unit gets of it: documents, and their counts.
Shared = list[tuple[list, collections.Counter]]


def _new_counts() -> collections.Counter:
  return collections.Counter(documents=0, sentences=0, tokens=0)


def share_text(tasks, unit: CacheUnit, job: CacheJob, unk_id: int) -> Shared:
  """Reads a unit whose text is the same for all of its tasks, see below."""
  counts = _new_counts()
  documents = list(read_documents(tasks[0], unit, job, counts, unk_id))
  return [(documents, collections.Counter(counts)) for _ in tasks]


def share_pairs(tasks, unit: CacheUnit, job: CacheJob, unk_id: int) -> Shared:
  """Reads a unit once, each pair of which is one task's, see `FramePairs`."""
  steps = [task.preprocessors[0] for task in tasks]
  numbers = {step.direction: i for i, step in enumerate(steps)}
  shared = [([], _new_counts()) for _ in tasks]
  for texts in _read_shards(tasks[0].source, unit, shared[0][1]):
    for text in texts:
      number = numbers.get(steps[0].read_direction(text), numbers.get(None))
      if number is None:  # of a task that this mixture does not have
        continue
      documents, counts = shared[number]
      document = steps[number].pair(text, *job.lengths.both)
      _count_document(document, job, counts, unk_id)
      documents.append(document)
  return shared


def read_documents(
  task, unit: CacheUnit, job: CacheJob, counts, unk_id: int
) -> Iterator:
  """Yields a unit's documents as ids [n], in order; pairs of ids for pairs.

  Args:
    task: a seqio task that has the unit's text.
    counts: gets documents, tokens, all that the preprocessors count, `skipped`
      records; see `_count_document`.
  """
  apply = task_registry.get_apply(task)
  steps = cache_shards.get_precache_steps(task) if apply else task.preprocessors
  # seqio's own readers are for other tasks: tf.data is several times slower.
  if apply and hasattr(task.source, 'texts') and _all_have(steps, 'direct'):
    documents = _tokenise(task.source, unit, steps, counts)
  else:
    documents = _read_seqio(task, unit, job, apply)
  for document in documents:
    _count_document(document, job, counts, unk_id)
    yield document


def _count_document(document, job: CacheJob, counts, unk_id: int) -> None:
  """Counts a document, its tokens and, of a pair, what is noteworthy.

  That is `full`, as long as the job's lengths, and `unknown` tokens.
  """
  counts['documents'] += 1
  if not isinstance(document, tuple):
    counts['tokens'] += len(document)
    return
  inputs, targets = sizes = [len(side) for side in document]
  counts.update(inputs=inputs, targets=targets, tokens=sum(sizes))
  full = any(map(operator.ge, sizes, job.lengths.both))
  unknown = sum(int((side == unk_id).sum()) for side in document)
  # The plus drops zeros: a manifest names only those there are.
  counts.update(+collections.Counter(full=int(full), unknown=unknown))


def _all_have(steps, name: str) -> bool:
  return all(hasattr(step, name) for step in steps)


def _read_shards(source, unit: CacheUnit, counts) -> Iterator[Iterator]:
  """Yields each shard's texts; counts the records that were skipped."""
  for shard in unit.shards:
    yield source.texts(unit.split, shard)
    if bad := source.bad(shard):
      counts['skipped'] += bad


def _tokenise(source, unit: CacheUnit, steps, counts) -> Iterator[np.ndarray]:
  for texts in _read_shards(source, unit, counts):
    while batch := list(itertools.islice(texts, TEXTS_AT_ONCE)):
      for step in steps:
        batch = step.direct(batch, counts)
      yield from (document for document in batch if len(document))


def _read_seqio(task, unit: CacheUnit, job: CacheJob, apply) -> Iterator:
  """Reads documents with seqio's own readers, which know any source."""
  import seqio

  one_each = len(unit.shards) == 1
  shard = seqio.ShardInfo(unit.number, unit.count) if one_each else None
  how = {'shuffle': False, 'shard_info': shard}
  if apply:
    dataset = task.source.get_dataset(unit.split, **how)
    dataset, names = task.preprocess_precache(dataset), ['targets']
  else:
    lengths, names = dataclasses.asdict(job.lengths), ['inputs', 'targets']
    dataset = task.get_dataset(lengths, unit.split, **how)
  return map(operator.itemgetter(*names), dataset.as_numpy_iterator())
