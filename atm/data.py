"""Batches as a pure function of (seed, step), over rows of tokens.

seqio is the registry: a task gives the text, its tokens (the preprocessors in
front of its cache placeholder) and, behind the placeholder, an `Apply` object
whose `objective` and `language` are read here; a mixture gives the rates. Rows
are built from the tokens once, before step 0; from then on example number n of
the run is found by arithmetic: which task, which of its rows, which noise. So
the only state of the data is the step, and hosts agree without talking.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from atm import objectives, sharding
from atm import vocabulary as vocabulary_lib
from atm.rows import Rows, build
from atm.vocabulary import Vocabulary

CYCLE = 1 << 16  # examples after which the pattern of tasks repeats


@dataclasses.dataclass
class Part:
  """One task: its rows, its objective, and its share of the examples."""

  name: str
  language: str
  objective: objectives.Denoise | objectives.CLM
  rows: Rows
  rate: float

  @property
  def id(self) -> int:
    """Keys the task's shuffle and noise, whatever the mixture around it."""
    return zlib.crc32(self.name.encode())


def find(name: str):
  """The seqio task or mixture of that name.

  Raises:
    ValueError: there is none; suggests the nearest.
  """
  import seqio  # takes seconds: TensorFlow

  known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
  if name not in known:
    raise ValueError(
      f'MIXTURE_OR_TASK_NAME = {name!r}: no such seqio task or mixture.'
      + sharding.did_you_mean(name, known)
      + (' Set TEXT_DIR to register it.' if name == 'text' else '')
    )
  return seqio.get_mixture_or_task(name)


def apply_of(task):
  """The `Apply` preprocessor of a seqio task.

  Raises:
    ValueError: it has none.
  """
  for preprocessor in task.preprocessors:
    if hasattr(preprocessor, 'objective'):
      return preprocessor
  raise ValueError(
    f'task {task.name!r} has no pre-training objective: expected an '
    'atm_tasks.pretrain.Apply among its preprocessors'
  )


def texts(name: str, split: str = 'train') -> Iterator[tuple[str, str]]:
  """Pairs (language, text) of a task or of all tasks of a mixture.

  Tasks that share a source (the objectives of one text) are read once.
  """
  import seqio

  sources = {}
  for task in seqio.get_subtasks(find(name)):
    sources.setdefault(id(task.source), task)
  for task in sources.values():
    dataset = task.source.get_dataset(split, shuffle=False)
    language = apply_of(task).language
    with _plain_errors(task.name):
      for example in dataset.as_numpy_iterator():
        yield language, example['text'].decode('utf-8')


class _plain_errors:
  """Turns an error raised inside tf.data into its last line."""

  def __init__(self, task: str):
    self.task = task

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if error is not None and 'tensorflow' in (kind.__module__ or ''):
      found = re.findall(r'^\w*Error: (.*)$', str(error), re.M)
      message = found[-1] if found else str(error)
      raise ValueError(f'reading task {self.task!r}: {message}') from error


def documents(task, split: str) -> Iterator[np.ndarray]:
  """The token ids of a seqio task's documents, in order."""
  dataset = task.source.get_dataset(split, shuffle=False)
  with _plain_errors(task.name):
    for example in task.preprocess_precache(dataset).as_numpy_iterator():
      yield example['targets']


@dataclasses.dataclass(frozen=True)
class Lengths:
  """TASK_FEATURE_LENGTHS: encoder length S, decoder length T, in tokens."""

  inputs: int
  targets: int

  @classmethod
  def of(cls, lengths: dict[str, int]) -> Lengths:
    """Raises ValueError unless exactly `inputs` and `targets`, positive."""
    if set(lengths) != {'inputs', 'targets'} or any(
      not isinstance(n, int) or n < 8 for n in lengths.values()
    ):
      raise ValueError(
        f'TASK_FEATURE_LENGTHS = {lengths!r}: expected '
        "{'inputs': n, 'targets': m}, whole numbers of at least 8"
      )
    return cls(**lengths)

  @property
  def both(self) -> tuple[int, int]:
    return self.inputs, self.targets


def load(
  name: str,
  split: str,
  vocabulary: Vocabulary,
  lengths: Lengths,
  directory: str,
  passes: int = 1,
  say=lambda text: None,
) -> list[Part]:
  """The parts of a task or mixture; builds the rows that are not there yet.

  Args:
    name: a seqio task or mixture.
    split: its split, such as 'train'.
    vocabulary: the vocabulary the tasks were configured with.
    lengths: encoder and decoder lengths.
    directory: gets a folder of rows for each task and split.
    passes: how many times rows are made of the documents, each time in another
      order, where rows join documents; a small text then does not meet the
      model in the same few rows over and over.
    say: told what is going on, a line at a time.

  Raises:
    ValueError: an unknown name, a task without objective, rows made
      otherwise, or no rows at all.
  """
  import seqio

  mixture = find(name)
  ids = objectives.Ids.of(vocabulary)
  parts, told = [], False
  for task in seqio.get_subtasks(mixture):
    apply = apply_of(task)
    length = apply.objective.row_length(lengths.inputs, lengths.targets)
    made_from = {
      'task': task.name,
      'split': split,
      'objective': repr(apply.objective),
      'row_length': length,
      'passes': passes,
      'vocabulary': vocabulary.sha256,
    }
    folder = os.path.join(directory, f'{task.name}-{split}')
    if not os.path.exists(folder):
      if not told:
        say(f'building rows of tokens: {name} ({split}), in {directory}')
      told = True
      order = documents(task, split)
      if passes > 1 and apply.objective.joins:
        order = shuffled(list(order), passes, zlib.crc32(task.name.encode()))
      rows = apply.objective.rows(order, ids, length)
      build(folder, rows, made_from)
    rate = 1.0 if mixture is task else mixture.get_rate(task)
    rows = Rows(folder, made_from)
    if rate > 0 and len(rows):
      parts.append(Part(task.name, apply.language, apply.objective, rows, rate))
  if not parts:
    raise ValueError(f'{name!r} has no rows in its {split!r} split')
  return parts


def shuffled(items: list, passes: int, key: int) -> Iterator:
  """All items, `passes` times, each time in another order."""
  for number in range(passes):
    index = np.arange(len(items))
    yield from (
      items[i] for i in permute(index, len(items), objectives.keys(key, number))
    )


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
  """A random permutation of range(n), evaluated at `index`, without a table.

  A Feistel network over the smallest even number of bits that holds n, walked
  until it falls below n (Black and Rogaway, 2002).

  Args:
    index: [B] integers in [0, n).
    n: how many are permuted.
    key: [B] or scalar uint64; another key is another permutation.
  """
  half = np.uint64(max(1, (max(2, n) - 1).bit_length() + 1) // 2)
  low = np.uint64((1 << int(half)) - 1)
  x = np.asarray(index).astype(np.uint64)
  key = np.broadcast_to(key, x.shape)
  walking = np.ones(x.shape, bool)
  while walking.any():
    left, right = x >> half, x & low
    for number in range(4):
      left, right = right, left ^ (objectives.keys(key, number, right) & low)
    x = np.where(walking, (left << half) | right, x)
    walking = x >= n
  return x.astype(np.int64)


class Batches:
  """Batch number `step` of an endless mix of parts.

  Example n belongs to the task that stands at n modulo CYCLE in a fixed random
  pattern which holds each task in proportion to its rate; it is that task's
  m-th example, m counted along the pattern. Its row is a random permutation of
  the task's rows, another one each epoch (m // rows), and its noise is keyed
  by (seed, task, epoch, row).
  """

  def __init__(
    self,
    parts: list[Part],
    vocabulary: Vocabulary,
    lengths: Lengths,
    batch_size: int,
    seed: int,
  ):
    self.parts, self.lengths = parts, lengths
    self.batch_size, self.seed = batch_size, seed
    self.ids = objectives.Ids.of(vocabulary)
    rates = np.array([part.rate for part in parts])
    exact = rates / rates.sum() * CYCLE
    quota = np.floor(exact).astype(np.int64)
    short = CYCLE - quota.sum()
    quota[np.argsort(quota - exact, kind='stable')[:short]] += 1
    if (quota == 0).any():
      rare = parts[int(np.argmin(exact))].name
      raise ValueError(f'task {rare!r} has less than 1 in {CYCLE} examples')
    draw = objectives.uniforms(objectives.keys(seed, 0x6D6978), CYCLE)[0]
    self.pattern = np.repeat(np.arange(len(parts)), quota)[np.argsort(draw)]
    self.rank = np.zeros(CYCLE, np.int64)
    for i in range(len(parts)):
      self.rank[self.pattern == i] = np.arange(quota[i])
    self.quota = quota

  def place(self, n: np.ndarray) -> tuple:
    """Example numbers [B] -> (part, epoch, row), each [B]."""
    part = self.pattern[n % CYCLE]
    m = n // CYCLE * self.quota[part] + self.rank[n % CYCLE]
    size = np.array([len(p.rows) for p in self.parts])[part]
    epoch = m // size
    row = np.zeros_like(m)
    for i in np.unique(part):
      mine = part == i
      key = objectives.keys(self.seed, self.parts[i].id, epoch[mine])
      row[mine] = permute(m[mine] % size[mine], len(self.parts[i].rows), key)
    return part, epoch, row

  def __call__(self, step: int, rows: slice = slice(None)) -> dict:
    """The arrays of batch `step`, or only some of its rows, for one host.

    Returns:
      t5x's names (see `objectives.frame`), [B, S] and [B, T], and
      `objective` [B] int32, indices into `objectives.NAMES`.
    """
    n = step * self.batch_size + np.arange(self.batch_size)[rows]
    return self._make(*self.place(n))

  def _make(self, part, epoch, row) -> dict:
    batch: dict[str, np.ndarray] = {}
    for i in np.unique(part):
      mine = np.flatnonzero(part == i)
      made = examples(
        self.parts[i], self.ids, self.lengths, self.seed, epoch[mine], row[mine]
      )
      for name, value in made.items():
        if name not in batch:
          batch[name] = np.zeros((len(part), *value.shape[1:]), value.dtype)
        batch[name][mine] = value
    return batch


def examples(part, ids, lengths, seed, epoch, row) -> dict:
  """The arrays of some rows of a part; noise keyed by (seed, epoch, row)."""
  S, T = lengths.inputs, lengths.targets
  width = part.objective.row_length(S, T)
  tokens, length = part.rows.read(row, width)
  key = objectives.keys(seed, part.id, epoch, row)
  batch = part.objective.examples(tokens, length, key, ids, S, T)
  number = objectives.NAMES.index(part.objective.name)
  batch['objective'] = np.full(len(row), number, np.int32)
  return batch


def evaluation_batches(
  parts: Iterable[Part],
  vocabulary: Vocabulary,
  lengths: Lengths,
  batch_size: int,
  seed: int,
  rows_each: int,
) -> Iterator[tuple[np.ndarray, dict]]:
  """The first rows of every part once, with the noise of epoch 0.

  Yields:
    (owner, batch): `owner` [B] is an index into parts, or -1 for the rows that
    fill up the last batch, whose loss weights and segment ids are 0.
  """
  parts = list(parts)
  ids = objectives.Ids.of(vocabulary)
  made, owners = [], []
  for i, part in enumerate(parts):
    row = np.arange(min(rows_each, len(part.rows)))
    made.append(examples(part, ids, lengths, seed, 0 * row, row))
    owners.append(np.full(len(row), i))
  owner = np.concatenate(owners)
  whole = {k: np.concatenate([m[k] for m in made]) for k in made[0]}
  fill = -len(owner) % batch_size
  owner = np.concatenate([owner, np.full(fill, -1)])
  for name, value in whole.items():
    blank = np.zeros((fill, *value.shape[1:]), value.dtype)
    if name.endswith('_tokens'):
      blank += ids.pad
    whole[name] = np.concatenate([value, blank])
  for start in range(0, len(owner), batch_size):
    part = slice(start, start + batch_size)
    yield owner[part], {name: value[part] for name, value in whole.items()}


def vocab(
  mixture: str,
  directory: str,
  size: int,
  train: Callable = vocabulary_lib.train,
  spoken: Callable[[str], str] = str,
  spoken_share: float = 0.0,
  configure_tasks: Callable = lambda: None,
  say: Callable[[str], None] = print,
) -> Vocabulary:
  """Trains a vocabulary on a seqio task's text, with a report beside it.

  Args:
    mixture: a seqio task or mixture.
    directory: gets the model and report.json.
    size: number of pieces.
    train: called with (texts, directory, size), see `vocabulary.train`.
    spoken: gives a text's spoken form.
    spoken_share: share of texts in spoken form; the paper's is 0.7.
    configure_tasks: called before the mixture is looked up.
    say: prints a line.
  """
  if not 0 <= spoken_share <= 1:
    raise ValueError(f'SPOKEN_SHARE = {spoken_share}: expected 0 to 1')
  configure_tasks()
  say(f'training a vocabulary of {size:,} pieces on the text of {mixture}')
  written = (text for _, text in texts(mixture))
  forms = vocabulary_lib.forms(written, spoken, spoken_share)
  made = train(forms, directory, size)
  rows = vocabulary_lib.coverage(made, texts(mixture))
  say(vocabulary_lib.write_report(made, rows))
  return made


@functools.cache
def host_rows(batch_size: int, host: int, hosts: int) -> slice:
  """The rows of a global batch that host number `host` feeds.

  Raises:
    ValueError: the batch does not divide by the number of hosts.
  """
  if batch_size % hosts:
    raise ValueError(f'BATCH_SIZE = {batch_size}: {hosts} hosts must divide it')
  each = batch_size // hosts
  return slice(host * each, (host + 1) * each)
