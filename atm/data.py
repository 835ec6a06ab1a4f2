"""Batches as a pure function of (seed, step), over rows of tokens.

seqio is the registry: a task gives the text, its tokens (the preprocessors in
front of its cache placeholder) and, behind the placeholder, an `Apply` object
whose attributes are read here; a mixture gives the rates. `atm.cache` builds
rows from the tokens once, before step 0; from then on row number n of the run
is found by arithmetic: which task, which of its rows, which noise. So the only
state of the data is the step, and hosts agree without talking.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from atm import noise, objectives, sharding
from atm import vocabulary as vocabulary_lib
from atm.rows import Rows
from atm.vocabulary import Vocabulary

REMOTE_READS = 64  # rows of an object store that are read at a time
NEEDS = {'text': 'TEXT_DIR', 'pairs': 'PAIRS, or CACHE_DIR of rows of them,'}
CYCLE = 1 << 20  # rows after which the pattern of tasks repeats


@dataclasses.dataclass
class Part:
  """One task: its rows, its objective, and its share of the examples."""

  name: str
  language: str
  objective: objectives.Denoise | objectives.CLM | objectives.Pairs
  rows: Rows
  rate: float
  source: str = ''
  form: str = ''

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
      + (
        f' Set {NEEDS[name]} to register it.'
        if name in NEEDS
        else sharding.did_you_mean(name, known)
      )
    )
  return seqio.get_mixture_or_task(name)


def apply_of(task):
  """The `Apply` preprocessor of a seqio task, or None."""
  for preprocessor in task.preprocessors:
    if hasattr(preprocessor, 'objective'):
      return preprocessor
  return None


def objective_of(task):
  """A task's objective; `Pairs` where it has inputs and targets of its own."""
  apply = apply_of(task)
  return apply.objective if apply else objectives.Pairs()


def texts(name: str, split: str = 'train') -> Iterator[tuple[str, str]]:
  """Pairs (language, text) of a task or of all tasks of a mixture.

  Tasks that share a source (the forms and objectives of one text) are read
  once.
  """
  sources = {}
  for task in tasks_of(name, split):
    sources.setdefault(id(task.source), task)
  for task in sources.values():
    apply = apply_of(task)
    language, empty = apply.language if apply else 'all', True
    with plain_errors(task.name):
      for text in raw_texts(task.source, split):
        empty = False
        yield language, text
    if empty and split == 'train':
      raise ValueError(f'no text in {language!r}, of task {task.name!r}')


def raw_texts(source, split: str) -> Iterator[str]:
  """The texts of a seqio source, without tf.data where it can."""
  if hasattr(source, 'texts'):
    for shard in range(len(source.list_shards(split))):
      yield from source.texts(split, shard)
    return
  dataset = source.get_dataset(split, shuffle=False)
  if 'text' not in dataset.element_spec:
    raise ValueError(
      f'expected examples with `text`; got {sorted(dataset.element_spec)}'
    )
  for example in dataset.as_numpy_iterator():
    yield example['text'].decode('utf-8')


class plain_errors:
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


@dataclasses.dataclass(frozen=True)
class Lengths:
  """TASK_FEATURE_LENGTHS: encoder length S, decoder length T, in tokens."""

  inputs: int
  targets: int

  @classmethod
  def of(cls, lengths: dict[str, int]) -> Lengths:
    """Raises ValueError unless exactly `inputs` and `targets`, positive."""
    named = isinstance(lengths, dict) and set(lengths) == {'inputs', 'targets'}
    if not named or any(
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
  passes: int | None = 1,
  verify: tuple[int, int] | None = (0, 1),
) -> list[Part]:
  """The parts of a task or mixture, from rows that `atm.cache` has built.

  Args:
    name: a seqio task or mixture.
    split: its split, such as 'train'.
    vocabulary: the vocabulary the tasks were configured with.
    lengths: encoder and decoder lengths.
    directory: has a folder of rows for each task and split.
    passes: see `cache.build`; None: as they were made.
    verify: see `rows.Rows`.

  Raises:
    FileNotFoundError: there are no finished rows of a task.
    ValueError: an unknown name, rows made otherwise or damaged, or no rows.
  """
  import seqio

  mixture, tasks = find(name), tasks_of(name, split)
  opened = []
  for task in tasks:
    folder = rows_folder(directory, task.name, split)
    made_from = made_of(task, split, vocabulary, lengths, passes)
    try:
      opened.append(Rows(folder, made_from, verify))
    except FileNotFoundError as e:
      raise FileNotFoundError(
        f'no finished rows of {task.name!r} ({split}) in {directory!r}: build '
        f'them with `atm cache --gin.CACHE_DIR="\'{directory}\'"`'
      ) from e
    if split == 'train' and (apply := apply_of(task)):
      apply.measured = {**opened[-1].counts, 'rows': len(opened[-1])}
  parts = []
  for task, rows in zip(tasks, opened):
    weighed = split == 'train' and not isinstance(mixture, seqio.Task)
    rate = mixture.get_rate(task) if weighed else 1.0
    if rate > 0 and len(rows):
      apply = apply_of(task)
      parts.append(
        Part(
          task.name, getattr(apply, 'language', 'all'), objective_of(task),
          rows, rate, getattr(apply, 'source', task.name),
          getattr(apply, 'form', ''),
        )
      )  # fmt: skip
  if not parts:
    drawn = [getattr(task.source, 'by_content', False) for task in tasks]
    hint = ''
    if split == 'validation' and all(drawn):
      hint = '; it is too small for a share of it to be held out'
      if name == 'pairs':
        hint += ': use a folder with train.jsonl and validation.jsonl'
    raise ValueError(f'{name!r} has no rows in its {split!r} split{hint}')
  return parts


def tasks_of(name: str, split: str) -> list:
  """The tasks of a task or mixture that have the split."""
  import seqio

  return [t for t in seqio.get_subtasks(find(name)) if split in t.splits]


def rows_folder(directory: str, task: str, split: str) -> str:
  return f'{directory.rstrip("/")}/{task}-{split}'


def made_of(task, split: str, vocabulary, lengths: Lengths, passes: int):
  """What a task's rows depend on, besides its text."""
  objective = objective_of(task)
  facts = {
    'task': task.name,
    'split': split,
    'objective': repr(objective),
    'lengths': list(lengths.both),
    'vocabulary': vocabulary.sha256,
  }
  if passes is not None:
    facts['passes'] = passes
  for part in (task.source, *task.preprocessors):
    facts |= getattr(part, 'made_from', {})
  return facts


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
    parts: list[Part],
    vocabulary: Vocabulary,
    lengths: Lengths,
    batch_size: int,
    seed: int,
  ):
    self.parts, self.lengths = parts, lengths
    self.batch_size, self.seed = batch_size, seed
    self.ids = objectives.Ids.of(vocabulary)
    kinds = list(dict.fromkeys(part.objective for part in parts))
    self.kinds = np.array([kinds.index(part.objective) for part in parts])
    self.packs = any(kind.packs for kind in kinds)
    self._sizes = np.array([len(part.rows) for part in parts])
    self._task_ids = np.array([part.id for part in parts], np.int64)
    rates = np.array([part.rate for part in parts])
    exact = rates / rates.sum() * CYCLE
    quota = np.floor(exact).astype(np.int64)
    short = CYCLE - quota.sum()
    quota[np.argsort(quota - exact, kind='stable')[:short]] += 1
    for rare in np.flatnonzero(quota == 0):  # at least one in a cycle
      quota[rare], quota[np.argmax(quota)] = 1, quota.max() - 1
    draw = noise.uniforms(noise.keys(seed, 0x6D6978), CYCLE)[0]
    pattern = np.repeat(np.arange(len(parts), dtype=np.int32), quota)
    self.pattern = pattern[np.argsort(draw)]
    by_part = np.argsort(self.pattern, kind='stable')
    self.rank = np.empty(CYCLE, np.int32)
    self.rank[by_part] = np.arange(CYCLE) - (np.cumsum(quota) - quota)[pattern]
    self.quota = quota

  def place(self, n: np.ndarray) -> tuple:
    """Numbers of rows of the run [B] -> (part, epoch, row), each [B]."""
    part = self.pattern[n % CYCLE]
    m = n // CYCLE * self.quota[part] + self.rank[n % CYCLE]
    size = self._sizes[part]
    epoch = m // size
    key = noise.keys(self.seed, self._task_ids[part], epoch)
    row = noise.permute(m % size, size, key)
    return part, epoch, row

  def __call__(self, step: int, rows=slice(None)) -> dict:
    """The arrays of batch `step`, or only some of its rows, for one host.

    Args:
      step: number of the batch.
      rows: a slice, or the rows' numbers, see `sharding.host_rows`.

    Returns:
      t5x's names (see `objectives.frame`), [B, S] and [B, T], and
      `objective` [B] int32, indices into `objectives.NAMES`.
    """
    n = step * self.batch_size + np.arange(self.batch_size)[rows]
    return self._make(*self.place(n))

  def _make(self, part, epoch, row) -> dict:
    batch: dict[str, np.ndarray] = {}
    for mine in self._by_objective(part):
      made = examples(
        self.parts, part[mine], self.ids, self.lengths, self.seed, epoch[mine],
        row[mine],
      )  # fmt: skip
      for name, value in made.items():
        if name not in batch:
          batch[name] = np.zeros((len(part), *value.shape[1:]), value.dtype)
        batch[name][mine] = value
    if not self.packs:
      del batch['encoder_positions'], batch['decoder_positions']
    return batch

  def _by_objective(self, part: np.ndarray) -> Iterator[np.ndarray]:
    """Places of a batch whose rows one call makes."""
    kind = self.kinds[part]
    for number in np.unique(kind):
      yield np.flatnonzero(kind == number)


def examples(parts, part, ids, lengths, seed, epoch, row) -> dict:
  """The arrays of some rows of parts that have one objective.

  Noise is keyed by (seed, task, epoch, row).

  Args:
    parts: all parts.
    part, epoch, row: [B].
  """
  S, T = lengths.both
  objective = parts[part[0]].objective
  read = rows_of(parts, part, row)
  length = np.array([len(tokens) for tokens in read], np.int64)
  tokens = np.zeros((len(read), length.max()), np.int32)
  for i, ids_read in enumerate(read):
    tokens[i, : len(ids_read)] = ids_read
  task = np.array([p.id for p in parts], np.int64)[part]
  key = noise.keys(seed, task, epoch, row)
  batch = objective.examples(tokens, length, key, ids, S, T)
  number = objectives.NAMES.index(objective.name)
  batch['objective'] = np.full(len(row), number, np.int32)
  return batch


def rows_of(parts, part, row) -> list[np.ndarray]:
  """The ids of some rows; those of an object store many at a time."""
  each = [(parts[p].rows, int(r)) for p, r in zip(part, row)]
  read = lambda pair: pair[0].row(pair[1])
  if not any(rows.remote for rows, _ in each):
    return [read(pair) for pair in each]
  with ThreadPoolExecutor(REMOTE_READS) as pool:
    return list(pool.map(read, each))


def ahead(
  make: Callable[[int], dict], first: int, last: int, depth: int = 2
) -> Iterator[dict]:
  """make(first), ..., make(last - 1), up to `depth` of them made beforehand.

  They are made one after another in a thread, while the caller does something
  else; what it raises is raised here, at its turn.
  """
  with ThreadPoolExecutor(1) as pool:
    made = collections.deque()
    for step in range(first, last):
      made.append(pool.submit(make, step))
      if len(made) > depth:
        yield made.popleft().result()
    while made:
      yield made.popleft().result()


def digest(parts: Iterable[Part]) -> str:
  """What the parts' rows are: changes whenever one of their files does."""
  told = [(part.name, part.rows.sha256) for part in parts]
  return hashlib.sha256(repr(told).encode()).hexdigest()


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
