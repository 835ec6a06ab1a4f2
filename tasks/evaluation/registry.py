"""Evaluation tasks by name: the paper's suites, and one on the shipped text.

`suite` makes the tasks that names and globs choose. Data is read when a task is
asked for its questions, see `sets`; `check` says what is there.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from atm.data.languages import LANGUAGE_CODES
from atm.evals.task import MissingData, Question, Task, Tokenizer
from atm.inference import prompts
from atm.messages import check_choice
from atm_tasks.evaluation import dataset_files, generation, multiple_choice
from atm_tasks.evaluation.datasets import DATASETS, SUPERGLUE
from atm_tasks.evaluation.readers import Example

NORMALIZE = ('mean', 'sum')


@dataclasses.dataclass(frozen=True)
class Entry:
  """One task of the registry.

  Attributes:
    data: a key of DATASETS.
    kind: how its examples become questions.
    metrics, chance: see `task.Task`.
    language: of the answer, and
    source_language: of the text, where it is another.
    split: the one the paper reports, where known.
    shots, shots_from: how many, of which split.
    choose: 'first', 'short' (the first under 192 words) or 'drawn' by seed.
    set: of the reports.
  """

  data: str
  kind: generation.Kind | generation.Plain | multiple_choice.Kind
  metrics: tuple[str, ...]
  language: str = 'en'
  source_language: str | None = None
  split: str = 'test'
  shots: int = 0
  shots_from: str = 'train'
  choose: str = 'drawn'
  chance: float | None = None
  set: str = ''

  @property
  def part(self) -> str:
    source = f'{self.source_language}_' if self.source_language else ''
    return source + self.language


# --- The registry


def _registry() -> Iterator[tuple[str, Entry]]:
  for source, target in itertools.permutations(LANGUAGE_CODES, 2):
    yield (
      f'flores101_{source}_{target}',
      _translation(
        'flores101', source, target, split='test', shots_from='validation'
      ),
    )
  yield from _summaries()
  for name in ('webnlg', 'e2e_nlg'):
    yield name, Entry(
      name, generation.DATA_TO_TEXT, ('rouge2', 'rougeL', 'bleu', 'chrf'),
      shots=1,
    )  # fmt: skip
  yield from _superglue()
  yield 'squadv2', Entry(
    'squadv2', generation.SQUADV2,
    ('squad_f1', 'squad_em', 'squad_has_answer_f1', 'squad_no_answer_f1'),
    split='validation',
  )  # fmt: skip
  for language in ('ar', 'de', 'en', 'es', 'fr', 'hi'):
    yield (
      f'xnli_{language}',
      _choices(
        'xnli', multiple_choice.nli, language, 100 / 3, shots_from='validation'
      ),
    )
  for language in ('it', 'ta'):
    yield (
      f'xcopa_{language}',
      _choices(
        'xcopa', multiple_choice.copa, language, 50.0, shots_from='validation'
      ),
    )
  for language in ('de', 'en', 'es', 'fr', 'ja'):
    yield (
      f'pawsx_{language}',
      _choices('pawsx', multiple_choice.pawsx, language, 50.0),
    )
  for language in ('en', 'fr', 'ja', 'pt'):
    yield (
      f'xwinograd_{language}',
      _choices(
        'xwinograd',
        multiple_choice.xwinograd,
        language,
        50.0,
        shots_from='test',
      ),
    )
  for source, target in itertools.permutations(LANGUAGE_CODES, 2):
    yield (
      f'udhr_translate_{source}_{target}',
      _translation(
        'udhr_translate', source, target, split='validation', shots_from='train'
      ),
    )
  for language in LANGUAGE_CODES:
    yield f'udhr_next_{language}', _choices(
      'udhr_next', multiple_choice.continuation, language, 25.0,
      split='validation',
      shots_from='validation',
    )  # fmt: skip
  yield 'udhr_language', _pairs('udhr_language', 'exact_match')
  yield 'pairs', _pairs('pairs', 'exact_match', 'chrf')


def _pairs(data: str, *metrics: str) -> Entry:
  return Entry(data, generation.Plain(), metrics, split='validation')


def _translation(data: str, source: str, target: str, **named) -> Entry:
  """1 shot: the first of the other split."""
  return Entry(
    data, generation.TRANSLATION, ('spbleu', 'chrf'), target, source,
    shots=1, choose='first', **named,
  )  # fmt: skip


def _choices(data: str, write, language: str, chance: float, **named) -> Entry:
  kind = multiple_choice.Kind(write)
  return Entry(data, kind, ('accuracy',), language, chance=chance, **named)


def _summaries() -> Iterator[tuple[str, Entry]]:
  """1 shot: the first training document under 192 words."""
  found = [('xsum', 'xsum', 'en')]
  for name, languages in (
    ('mlsum', 'de es fr'),
    ('xlsum', 'ar en es fr hi ja mr pt ta te'),
    ('wikilingua', 'ar de en es fr hi it ja pt'),
  ):
    found += [(f'{name}_{k}', name, k) for k in languages.split()]
  for name, data, language in [*found, ('cnn_dailymail',) * 2 + ('en',)]:
    yield name, Entry(
      data, generation.SUMMARY, ('rouge2', 'rouge1', 'rougeL'), language,
      shots=1, choose='short',
    )  # fmt: skip


def _superglue() -> Iterator[tuple[str, Entry]]:
  special = {
    'cb': (multiple_choice.nli, ('accuracy', 'cb_f1'), 100 / 3),
    'multirc': (multiple_choice.multirc, ('multirc_f1a', 'multirc_em'), None),
    'record': (multiple_choice.record, ('record_f1', 'record_em'), None),
  }
  for task in SUPERGLUE:
    default = getattr(multiple_choice, task, None), ('accuracy',), 50.0
    write, metrics, chance = special.get(task, default)
    yield f'superglue_{task}', Entry(
      f'superglue_{task}', multiple_choice.Kind(write), metrics,
      split='validation',
      chance=chance, set='superglue',
    )  # fmt: skip


REGISTRY: dict[str, Entry] = dict(_registry())


def choose(names: str | Sequence[str]) -> list[str]:
  """The tasks that names and globs mean, each once.

  Raises:
    ValueError: one means none; says the nearest.
  """
  chosen: dict[str, None] = {}
  for name in [names] if isinstance(names, str) else names:
    found = fnmatch.filter(REGISTRY, name)
    if not found:
      check_choice('TASKS', name, REGISTRY)
    chosen.update(dict.fromkeys(found))
  return list(chosen)


# --- Tasks


def suite(
  names: str | Sequence[str],
  data_dir: str = 'data',
  split: str | None = None,
  shots: int | None = None,
  mode: str | None = None,
  normalize: str | None = None,
  seed: int = 0,
  tfds_dir: str | None = None,
) -> list[Task]:
  """Tasks of these names.

  Args:
    names: names and globs of REGISTRY: 'xnli_*', 'flores101_en_*'.
    data_dir: holds a folder a set, see docs/evaluation_data.md.
    split: 'train', 'validation' or 'test'; None: the one the paper reports,
      where known (SuperGLUE and SQuADv2 have labels up to `validation`).
    shots: examples in front of each question; None: the paper's number, which
      is 1 for translations, summaries and data to text, else 0.
    mode: one of `prompts.MODES`; None: 'clm'.
    normalize: 'mean' or 'sum', of a choice's tokens; None: 'mean', for the
      paper does not say.
    seed: draws the shots where the paper does not name them.
    tfds_dir: where prepared TFDS data is.

  Raises:
    ValueError: an unknown name, split, mode or normalisation; says the nearest.
  """
  mode = 'clm' if mode is None else mode
  normalize = 'mean' if normalize is None else normalize
  check_choice('MODE', mode, prompts.MODES)
  check_choice('NORMALIZE', normalize, NORMALIZE)
  if shots is not None and shots < 0:
    raise ValueError(f'SHOTS = {shots}: expected 0 or more')
  made = []
  for name in choose(names):
    entry = _with(name, split, shots)
    source = Source(name, entry, data_dir, tfds_dir, seed)
    made.append(_task(source, mode, normalize))
  return made


def _with(name: str, split: str | None, shots: int | None) -> Entry:
  """The entry with what was asked for in place of its own."""
  entry = REGISTRY[name]
  if split is not None:
    check_choice(f'SPLIT of {name}', split, DATASETS[entry.data].splits)
    entry = dataclasses.replace(entry, split=split)
  if shots is not None:
    entry = dataclasses.replace(entry, shots=shots)
  return entry


def _task(source: Source, mode: str, normalize: str) -> Task:
  entry, named = source.entry, {}
  kind = entry.kind
  if kind.generates:
    # In 'denoise' the decoder writes the prompt, too.
    clm = mode == 'clm'
    named = dict(
      answer=functools.partial(kind.answer, mode=mode),
      max_tokens=kind.max_tokens if clm else 1023,
      stop=kind.stop if clm else (),
      keep_side=kind.keep_side,
    )
  return Task(
    name=source.name,
    set=entry.set or entry.data,
    language=entry.language,
    source_language=entry.source_language,
    metrics=entry.metrics,
    make_questions=functools.partial(_ask, source, mode),
    mode=mode,
    shots=entry.shots,
    normalize=normalize,
    chance=entry.chance,
    source=source.place,
    **named,
  )


def _ask(
  source: Source, mode: str, vocabulary: Tokenizer | None
) -> list[Question]:
  """The questions of a task; see `task.Task.make_questions`.

  Raises:
    MissingData: its data is not there.
    ValueError: it is not as it should be; names file and line.
  """
  entry = source.entry
  examples, shots = source.examples(entry.split), source.shots()
  if shots and entry.shots_from == entry.split:
    taken = {shot['id'] for shot in shots}
    examples = (e for e in examples if e['id'] not in taken)
  cut = lambda text, tokens: text
  if vocabulary is not None:
    cut = lambda text, tokens: prompts.cut_document(
      text, vocabulary.encode, vocabulary.decode, tokens
    )
  return [
    entry.kind.question(example, shots, entry.language, mode, cut)
    for example in examples
  ]


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a task's examples come from."""

  name: str
  entry: Entry
  data_dir: str
  tfds_dir: str | None
  seed: int

  def find(self, split: str) -> dataset_files.Found:
    """Raises MissingData, see `sets.find`."""
    data = DATASETS[self.entry.data]
    return dataset_files.find(
      data, self.entry.part, split, self.data_dir, self.tfds_dir
    )

  @property
  def place(self) -> str:
    """Where its questions are read, '' where they are not there."""
    try:
      return ', '.join(self.find(self.entry.split).places)
    except MissingData:
      return ''

  def examples(self, split: str) -> Iterator[Example]:
    return self.find(split).examples()

  def shots(self) -> list[Example]:
    """The shots, the same for every question.

    Raises:
      ValueError: there are fewer examples.
    """
    k, split = self.entry.shots, self.entry.shots_from
    if not k:
      return []
    check_choice(f'SHOTS of {self.name}: split', split,
                 DATASETS[self.entry.data].splits)  # fmt: skip
    pool = self.examples(split)
    if self.entry.choose == 'short':
      return prompts.choose_shots(pool, k)
    pool = list(
      itertools.islice(pool, k if self.entry.choose == 'first' else None)
    )
    if len(pool) < k:
      raise ValueError(
        f'SHOTS = {k}: {self.name} has {len(pool)} examples in {split!r}'
      )
    if self.entry.choose == 'drawn':
      rng = np.random.default_rng([self.seed, zlib.crc32(self.name.encode())])
      pool = [pool[i] for i in rng.choice(len(pool), k, replace=False)]
    return pool


# --- Looking at the data


@dataclasses.dataclass(frozen=True)
class Row:
  """What `check` found of one file, or of the folder of many.

  Attributes:
    set: the data set.
    file: its path, or what was looked for.
    examples: how many were read for a task, at most; None where none could.
    problem: what is missing or wrong, '' where all is well.
    where: where to get it.
  """

  set: str
  file: str
  examples: int | None
  problem: str = ''
  where: str = ''


def check(
  names: str | Sequence[str],
  data_dir: str = 'data',
  split: str | None = None,
  shots: int | None = None,
  tfds_dir: str | None = None,
) -> list[Row]:
  """Reads all that tasks need, whole, and says what is missing or wrong.

  Args: see `suite`.
  """
  rows: dict[tuple[str, str], Row] = {}
  for name in choose(names):
    entry = _with(name, split, shots)
    source = Source(name, entry, data_dir, tfds_dir, 0)
    needed = [entry.split, *[entry.shots_from] * bool(entry.shots)]
    for one in dict.fromkeys(needed):
      for row in _look(source, one):
        other = rows.setdefault((row.set, row.file), row)
        more = (row.examples or 0) > (other.examples or 0)
        if not other.problem and (row.problem or more):
          rows[row.set, row.file] = row
  return list(rows.values())


def _look(source: Source, split: str) -> list[Row]:
  data = source.entry.data
  try:
    found = source.find(split)
  except dataset_files.Missing as e:
    return [Row(data, file, None, 'missing', e.where) for file in e.files]
  try:
    count = sum(1 for _ in found.examples())
  except ValueError as e:
    return [Row(data, ', '.join(found.places), None, str(e))]
  problem = '' if count else 'no examples'
  return [Row(data, path, count, problem) for path in found.places]


def table(rows: Sequence[Row]) -> str:
  """The rows as text, and where to get what is missing, once each."""
  lines = [('set', 'examples', 'file', '')]
  for row in rows:
    count = '-' if row.examples is None else f'{row.examples:,}'
    lines.append((row.set, count, row.file, row.problem))
  wide = [max(len(line[i]) for line in lines) for i in range(2)]
  text = [
    f'{name:<{wide[0]}}  {count:>{wide[1]}}  {file}  {problem}'.rstrip()
    for name, count, file, problem in lines
  ]
  where = {row.set: row.where for row in reversed(rows) if row.where}
  text += [''] * bool(where)
  return '\n'.join([*text, *(f'{k}: {where[k]}' for k in reversed(where))])


def data_table(
  names: str | Sequence[str],
  data_dir: str = 'data',
  split: str | None = None,
  shots: int | None = None,
  tfds_dir: str | None = None,
) -> str:
  """What `check` finds, as text."""
  return table(check(names, data_dir, split, shots, tfds_dir))
