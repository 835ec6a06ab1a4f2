"""Turns one unit of text into files of token rows."""

import collections
import dataclasses
import itertools
import operator
import os
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from atm.data import cache_shards, counter_rng, task_registry, token_store
from atm.data.cache_shards import CacheJob, CacheUnit
from atm.data.packing import SpecialIds
from atm.data.vocabulary import open_vocabulary

TEXTS_AT_ONCE = 256  # that are tokenised in one call


def make_unit(unit: CacheUnit, job: CacheJob) -> int:
  """Writes the files of one unit, one for each task; returns its tokens."""
  import seqio

  vocabulary = open_vocabulary(job.vocabulary)
  ids = SpecialIds.of(vocabulary)
  tasks = [seqio.TaskRegistry.get(name) for name in unit.tasks]
  counts = collections.Counter(documents=0, sentences=0, tokens=0)
  with task_registry.shorten_tf_errors(tasks[0].name):
    documents = list(
      read_documents(tasks[0], unit, job, counts, vocabulary.unk_id)
    )
  for task in tasks:
    path = unit.get_path(job, task.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    task_counts = collections.Counter(counts)
    rows = make_rows(task, unit, documents, ids, job, task_counts)
    facts = {
      'made_from': job.get_provenance(task, unit.split),
      'text': unit.text,
      'file': token_store.write_rows(path, rows),
      'counts': dict(task_counts),  # after the rows: they add `examples`
    }
    # The facts come last: a file without them is made again.
    token_store.write_sealed(cache_shards.get_facts_path(path), facts)
  return counts['tokens']


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


def read_documents(
  task, unit: CacheUnit, job: CacheJob, counts, unk_id: int
) -> Iterator:
  """Yields a unit's documents as ids [n], in order; pairs of ids for pairs.

  Args:
    task: a seqio task that has the unit's text.
    counts: gets documents, tokens, all that the preprocessors count, `skipped`
      records; pairs as long as the job's lengths (`full`), `unknown` tokens.
  """
  apply = task_registry.get_apply(task)
  steps = cache_shards.get_precache_steps(task) if apply else task.preprocessors
  # seqio's own readers are for other tasks: tf.data is several times slower.
  if apply and hasattr(task.source, 'texts') and _all_have(steps, 'direct'):
    documents = _tokenise(task.source, unit, steps, counts)
  elif not apply and len(steps) == 1 and _all_have(steps, 'pair'):
    documents = (
      steps[0].pair(text, *job.lengths.both)
      for texts in _read_shards(task.source, unit, counts)
      for text in texts
    )
  else:
    documents = _read_seqio(task, unit, job, apply)
  for document in documents:
    counts['documents'] += 1
    if not isinstance(document, tuple):
      counts['tokens'] += len(document)
    else:
      inputs, targets = sizes = [len(side) for side in document]
      counts.update(inputs=inputs, targets=targets, tokens=sum(sizes))
      full = any(map(operator.ge, sizes, job.lengths.both))
      unknown = sum(int((side == unk_id).sum()) for side in document)
      # The plus drops zeros: a manifest names only those there are.
      counts.update(+collections.Counter(full=int(full), unknown=unknown))
    yield document


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
