"""Batches as a pure function of (seed, step), over rows of tokens.

seqio is the registry: a task gives the text, its tokens (the preprocessors in
front of its cache placeholder) and, behind the placeholder, an `ApplyObjective`
whose attributes are read here; a mixture gives the rates. `cache` builds rows
from the tokens once, before step 0; from then on row number n of the run is
found by arithmetic: which task, which of its rows, which noise. So the only
state of the data is the step, and hosts agree without talking.
"""

import collections
import contextlib
import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from atm.data import (
  counter_rng,
  objectives,
  packing,
  task_registry,
  task_table,
)
from atm.data.token_store import TokenRows, read_manifest
from atm.data.vocabulary import Vocabulary

REMOTE_READS = 64  # rows of an object store that are read at a time
CYCLE = 1 << 20  # rows after which the pattern of tasks repeats


@dataclasses.dataclass
class MixturePart:
  """One task of a mixture: its rows, objective, and rate."""

  name: str
  language: str
  objective: objectives.Denoise | objectives.CLM | objectives.Pairs
  rows: TokenRows
  rate: float
  source: str = ''
  form: str = ''
  data_set: str = ''  # of pairs that are mixed by name

  @property
  def id(self) -> int:
    """Keys the task's shuffle and noise, whatever the mixture around it."""
    return zlib.crc32(self.name.encode())


def load_parts(
  name: str,
  split: str,
  vocabulary: Vocabulary,
  lengths: task_registry.Lengths,
  directory: str,
  passes: int | None = 1,
  verify: tuple[int, int] | None = (0, 1),
) -> list[MixturePart]:
  """Opens the rows that `cache.build` made of a task or mixture.

  Args:
    name: a seqio task or mixture.
    split: its split, such as 'train'.
    vocabulary: the vocabulary the tasks were configured with.
    lengths: encoder and decoder lengths.
    directory: has a folder of rows for each task and split.
    passes: see `cache.build`; None: as they were made.
    verify: see `token_store.TokenRows`.

  Raises:
    FileNotFoundError: there are no finished rows of a task.
    ValueError: an unknown name, rows made otherwise or damaged, or no rows.
  """
  mixture = task_registry.find_task(name)
  tasks, opened = task_registry.list_tasks(name, split), []
  for task in tasks:
    facts = task, split, vocabulary.sha256, lengths, passes
    made_from = task_registry.get_provenance(*facts)
    folder = task_registry.get_rows_folder(directory, task.name, split)
    try:
      opened.append(TokenRows(folder, made_from, verify))
    except FileNotFoundError as e:
      raise FileNotFoundError(
        f'no finished rows of {task.name!r} ({split}) in {directory!r}: build '
        f'them with `atm cache --gin.CACHE_DIR="\'{directory}\'"`'
      ) from e
    if split == 'train' and (labels := task_registry.get_labels(task)):
      labels.measured = {**opened[-1].counts, 'rows': len(opened[-1])}
  parts = []
  # All are opened first: a rate depends on the counts of every task.
  for task, rows in zip(tasks, opened):
    weighed = split == 'train' and not task_table.is_task(mixture)
    rate = mixture.get_rate(task) if weighed else 1.0
    if rate > 0 and len(rows):
      labels = task_registry.get_labels(task)
      parts.append(
        MixturePart(
          task.name, getattr(labels, 'language', 'all'),
          task_registry.get_objective(task), rows, rate,
          getattr(labels, 'source', task.name), getattr(labels, 'form', ''),
          getattr(labels, 'data_set', ''),
        )
      )  # fmt: skip
  if not parts:
    if split == 'validation' and all(
      getattr(task.source, 'by_content', False) for task in tasks
    ):
      why = task_registry.describe_too_few(name)
      raise ValueError(f'{why}. Then build the rows anew: {directory}')
    raise ValueError(f'{name!r} has no rows in its {split!r} split')
  return parts


def read_lengths(name: str, directory: str) -> task_registry.Lengths | None:
  """Reads the lengths of a mixture's training rows; None if there are none."""
  for task in task_registry.list_tasks(name, 'train')[:1]:
    folder = task_registry.get_rows_folder(directory, task.name, 'train')
    with contextlib.suppress(FileNotFoundError):
      return task_registry.Lengths(
        *read_manifest(folder)['made_from']['lengths']
      )
  return None


class Batches:
  """Batch number `step` of an endless mix of parts.

  Row n of the run belongs to the task that stands at n modulo CYCLE in a fixed
  random pattern which holds each task in proportion to its rate; it is that
  task's m-th row, m counted along the pattern. Which of the task's rows it is
  follows from a random permutation, another one each epoch (m // rows), and its
  noise is keyed by (seed, task, epoch, row).
  """

  def __init__(
    self,
    parts: list[MixturePart],
    vocabulary: Vocabulary,
    lengths: task_registry.Lengths,
    batch_size: int,
    seed: int,
    start_id: int | None = None,
  ):
    """Takes the model's `start_id`; None: the vocabulary's `<s>`."""
    self.parts, self.lengths = parts, lengths
    self.batch_size, self.seed = batch_size, seed
    self.ids = packing.SpecialIds.of(vocabulary, start_id)
    kinds = list(dict.fromkeys(part.objective for part in parts))
    self.kinds = np.array([kinds.index(part.objective) for part in parts])
    self.packs = any(kind.packs for kind in kinds)
    self._sizes = np.array([len(part.rows) for part in parts])
    self._task_ids = np.array([part.id for part in parts], np.int64)
    self.quota = quota = _apportion(np.array([part.rate for part in parts]))
    draw = counter_rng.uniform(counter_rng.make_key(seed, 0x6D6978), CYCLE)[0]
    pattern = np.repeat(np.arange(len(parts), dtype=np.int32), quota)
    self.pattern = pattern[np.argsort(draw)]
    by_part = np.argsort(self.pattern, kind='stable')
    self.rank = np.empty(CYCLE, np.int32)
    self.rank[by_part] = np.arange(CYCLE) - (np.cumsum(quota) - quota)[pattern]

  def locate(self, n: np.ndarray) -> tuple:
    """Returns (part, epoch, row), each [B], of rows of the run [B]."""
    part = self.pattern[n % CYCLE]
    m = n // CYCLE * self.quota[part] + self.rank[n % CYCLE]
    size = self._sizes[part]
    epoch = m // size
    key = counter_rng.make_key(self.seed, self._task_ids[part], epoch)
    row = counter_rng.permute(m % size, size, key)
    return part, epoch, row

  def count_rows(self, first: int, last: int) -> np.ndarray:
    """Counts the rows of each part in batches `first` to `last` - 1."""
    before, after = (
      self._count_before(n * self.batch_size) for n in (first, last)
    )
    return after - before

  def _count_before(self, n: int) -> np.ndarray:
    begun = np.bincount(self.pattern[: n % CYCLE], minlength=len(self.parts))
    return n // CYCLE * self.quota + begun

  def __call__(self, step: int, rows=slice(None)) -> dict:
    """Returns the arrays of batch `step`, or only some of its rows, for a host.

    Args:
      step: number of the batch.
      rows: a slice, or the rows' numbers, see `sharding.host_rows`.

    Returns:
      t5x's names (see `packing.frame_batch`), [B, S] and [B, T], and
      `objective` [B] int32, indices into `objectives.OBJECTIVE_NAMES`.
    """
    n = step * self.batch_size + np.arange(self.batch_size)[rows]
    return self.make_rows(*self.locate(n))

  def make_rows(self, part, epoch, row) -> dict:
    """Returns the arrays of any rows [B], in their order, see `__call__`."""
    batch, kinds = {}, self.kinds[part]
    for kind in np.unique(kinds):
      mine = np.flatnonzero(kinds == kind)
      arrays = make_examples(
        self.parts, part[mine], self.ids, self.lengths, self.seed, epoch[mine],
        row[mine],
      )  # fmt: skip
      for name, value in arrays.items():
        blank = np.zeros((len(part), *value.shape[1:]), value.dtype)
        batch.setdefault(name, blank)[mine] = value
    if not self.packs:
      del batch['encoder_positions'], batch['decoder_positions']
    return batch


def _apportion(rates: np.ndarray) -> np.ndarray:
  """Returns how many of CYCLE rows are of each part; at least one is."""
  exact = rates / rates.sum() * CYCLE
  quota = np.floor(exact).astype(np.int64)
  short = CYCLE - quota.sum()
  quota[np.argsort(quota - exact, kind='stable')[:short]] += 1
  for rare in np.flatnonzero(quota == 0):
    quota[rare], quota[np.argmax(quota)] = 1, quota.max() - 1
  return quota


def make_examples(parts, part, ids, lengths, seed, epoch, row) -> dict:
  """Returns the arrays of rows (part, epoch, row: [B]) of one objective."""
  objective = parts[part[0]].objective
  sequences = read_rows(parts, part, row)
  length = np.array([len(sequence) for sequence in sequences], np.int64)
  tokens = np.zeros((len(sequences), length.max()), np.int32)
  tokens[np.arange(length.max()) < length[:, None]] = np.concatenate(sequences)
  key = make_noise_keys(parts, seed, part, epoch, row)
  batch = objective.examples(tokens, length, key, ids, *lengths.both)
  number = objectives.OBJECTIVE_NAMES.index(objective.name)
  batch['objective'] = np.full(len(row), number, np.int32)
  return batch


def make_noise_keys(parts, seed: int, part, epoch, row) -> np.ndarray:
  """Returns [B] keys of the noise of rows (part, epoch, row: [B])."""
  tasks = np.array([each.id for each in parts], np.int64)
  return counter_rng.make_key(seed, tasks[part], epoch, row)


def read_rows(parts, part, row) -> list[np.ndarray]:
  """Returns the ids of some rows; reads many of an object store at a time."""
  stores = [parts[p].rows for p in part]
  read = lambda rows, number: rows.row(int(number))
  if not any(rows.remote for rows in stores):
    return list(map(read, stores, row))
  with ThreadPoolExecutor(REMOTE_READS) as pool:
    return list(pool.map(read, stores, row))


def prefetch(
  make: Callable[[int], dict], first: int, last: int, depth: int = 2
) -> Iterator[dict]:
  """Yields make(first), ..., make(last - 1), up to `depth` of them made ahead.

  One thread makes them in order; its errors are raised at their turn.
  """
  with ThreadPoolExecutor(1) as pool:
    queue = collections.deque()
    for step in range(first, last):
      queue.append(pool.submit(make, step))
      if len(queue) > depth:
        yield queue.popleft().result()
    while queue:
      yield queue.popleft().result()


def hash_parts(parts: Iterable[MixturePart]) -> str:
  """Returns a hash that changes whenever one of the parts' files does."""
  hashes = [(part.name, part.rows.sha256) for part in parts]
  return hashlib.sha256(repr(hashes).encode()).hexdigest()
