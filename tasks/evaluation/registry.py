"""Evaluation tasks by name: the paper's suites, and one on the shipped text.

`suite` makes the tasks that names and globs choose. Data is read when a task's
questions are made, see `dataset_files`; `data_check` reports which is there.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from atm import messages
from atm.data.languages import LANGUAGE_CODES
from atm.evals.task import MissingData, Question, Task, Tokenizer
from atm.inference import prompts
from atm_tasks import episodes
from atm_tasks.evaluation import (
  dataset_files,
  generation,
  in_context,
  text_context,
)
from atm_tasks.evaluation import multiple_choice as choices
from atm_tasks.evaluation.datasets import DATASETS, SUPERGLUE
from atm_tasks.evaluation.readers import RawExample


@dataclasses.dataclass(frozen=True)
class TaskSpec:
  """One task of the registry.

  Attributes:
    data: a key of DATASETS.
    format: how its examples become questions.
    metrics, chance: see `task.Task`.
    language: of the answer, and
    source_language: of the text, where it is another.
    split: the one the paper reports, where known.
    shots, shots_from: how many, of which split.
    choose: 'first', 'short' (the first under 192 words), 'drawn' by seed, or
      'own': an example's `choose_shots` gives its own, see `in_context`.
    set: of the reports.
  """

  data: str
  format: (
    generation.PromptFormat | generation.PairFormat
    | generation.SentenceFormat | choices.ChoiceFormat
  )  # fmt: skip
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
    """The language or direction, as `DataSet` names it."""
    source = f'{self.source_language}_' if self.source_language else ''
    return source + self.language


# --- The registry

Named = Iterator[tuple[str, TaskSpec]]


def _list_specs() -> Named:
  """Yields the name and spec of every task."""
  yield from _translations('flores101', split='test', shots_from='validation')
  yield from _summaries()
  for name in ('webnlg', 'e2e_nlg'):
    metrics = ('rouge2', 'rougeL', 'bleu', 'chrf')
    yield name, TaskSpec(name, generation.DATA_TO_TEXT_FORMAT, metrics, shots=1)
  yield from _superglue()
  yield 'squadv2', TaskSpec(
    'squadv2', generation.SQUADV2_FORMAT,
    ('squad_f1', 'squad_em', 'squad_has_answer_f1', 'squad_no_answer_f1'),
    split='validation',
  )  # fmt: skip
  yield from _choices('xnli', choices.write_nli, 'ar de en es fr hi', 100 / 3,
                      shots_from='validation')  # fmt: skip
  yield from _choices('xcopa', choices.write_copa, 'it ta', 50.0,
                      shots_from='validation')  # fmt: skip
  yield from _choices('pawsx', choices.write_pawsx, 'de en es fr ja', 50.0)
  yield from _choices('xwinograd', choices.write_xwinograd, 'en fr ja pt', 50.0,
                      shots_from='test')  # fmt: skip
  yield from _translations(
    'udhr_translate', split='validation', shots_from='train'
  )
  yield from _choices(
    'udhr_next', choices.write_continuation, ' '.join(LANGUAGE_CODES), 25.0,
    split='validation', shots_from='validation',
  )  # fmt: skip
  yield 'udhr_context', TaskSpec(
    'udhr_context', text_context.FORMAT, ('accuracy',), split='train',
    shots=episodes.MOST_SHOTS, choose='own',
    chance=100 / episodes.CHOICE_COUNT, set='udhr_context',
  )  # fmt: skip
  for name, metrics in (
    ('udhr_language', ('exact_match',)),
    ('pairs', ('exact_match', 'chrf')),
  ):
    yield (
      name,
      TaskSpec(name, generation.PairFormat(), metrics, split='validation'),
    )
  yield 'choices', TaskSpec(
    'choices', choices.LABELS_FORMAT,
    ('label_accuracy', 'macro_f1', 'balanced_accuracy'), split='validation',
  )  # fmt: skip
  for family in episodes.FAMILIES:
    data = f'in_context_{family}'
    own = partial(TaskSpec, data, shots=4, choose='own')
    written, chosen = in_context.make_formats(family)
    yield data, own(written, ('exact_match', 'chrf'))
    yield f'{data}_choice', own(
      chosen, ('accuracy',),
      chance=100 / episodes.CHOICE_COUNT,
      set=f'{data}_choice',
    )  # fmt: skip


def _translations(data: str, **fields) -> Named:
  """Yields all directions, with 1 shot: the first of the other split."""
  for source, target in itertools.permutations(LANGUAGE_CODES, 2):
    yield f'{data}_{source}_{target}', TaskSpec(
      data, generation.TRANSLATION_FORMAT, ('spbleu', 'chrf'), target, source,
      shots=1, choose='first', **fields,
    )  # fmt: skip


def _choices(
  data: str, write: Callable, languages: str, chance: float, **fields
) -> Named:
  """Yields tasks of choices in several languages."""
  for language in languages.split():
    yield f'{data}_{language}', TaskSpec(
      data, choices.ChoiceFormat(write), ('accuracy',), language,
      chance=chance, **fields,
    )  # fmt: skip


def _summaries() -> Named:
  """Yields summaries, 1 shot: the first training document under 192 words."""
  for data, languages in (
    ('xsum', ''),
    ('mlsum', 'de es fr'),
    ('xlsum', 'ar en es fr hi ja mr pt ta te'),
    ('wikilingua', 'ar de en es fr hi it ja pt'),
    ('cnn_dailymail', ''),
  ):
    for language in languages.split() or ['en']:
      yield f'{data}_{language}' if languages else data, TaskSpec(
        data, generation.SUMMARY_FORMAT, ('rouge2', 'rouge1', 'rougeL'),
        language, shots=1, choose='short',
      )  # fmt: skip


def _superglue() -> Named:
  """Yields the eight tasks of SuperGLUE."""
  special = {
    'cb': (choices.write_nli, ('accuracy', 'cb_f1'), 100 / 3),
    'multirc': (choices.write_multirc, ('multirc_f1a', 'multirc_em'), None),
    'record': (choices.write_record, ('record_f1', 'record_em'), None),
  }
  for task in SUPERGLUE:
    default = getattr(choices, f'write_{task}', None), ('accuracy',), 50.0
    write, metrics, chance = special.get(task, default)
    yield f'superglue_{task}', TaskSpec(
      f'superglue_{task}', choices.ChoiceFormat(write), metrics,
      split='validation', chance=chance, set='superglue',
    )  # fmt: skip


REGISTRY: dict[str, TaskSpec] = dict(_list_specs())


def match_names(names: str | Sequence[str]) -> list[str]:
  """Returns the tasks that names and globs mean, each once.

  Raises:
    ValueError: one means none; says the nearest.
  """
  chosen: dict[str, None] = {}
  for name in [names] if isinstance(names, str) else names:
    found = fnmatch.filter(REGISTRY, name)
    if not found:
      messages.check_choice('TASKS', name, REGISTRY)
    chosen.update(dict.fromkeys(found))
  return list(chosen)


# --- Tasks
NORMALIZE = ('mean', 'sum')
_check_choice = partial(messages.check_choice, optional=True)
_check_language = partial(messages.check_text, empty=False, optional=True)
SOURCE_CHECKS = {
  'names': partial(messages.check_texts, 'TASKS', single=True),
  'data_dir': partial(messages.check_path, 'DATA_DIR'),
  'shots': partial(messages.check_index, 'SHOTS', optional=True),
  'tfds_dir': partial(messages.check_path, 'TFDS_DATA_DIR', optional=True),
}


@messages.check_arguments(
  **SOURCE_CHECKS,
  mode=partial(_check_choice, 'MODE', known=prompts.MODES),
  normalize=partial(_check_choice, 'NORMALIZE', known=NORMALIZE),
  seed=partial(messages.check_seed, 'SEED'),
  source_language=partial(_check_language, 'SOURCE_LANGUAGE'),
  target_language=partial(_check_language, 'TARGET_LANGUAGE'),
)
def suite(
  names: str | Sequence[str],
  data_dir: str = 'data',
  split: str | None = None,
  shots: int | None = None,
  mode: str | None = None,
  normalize: str | None = None,
  seed: int = 0,
  tfds_dir: str | None = None,
  source_language: str | None = None,
  target_language: str | None = None,
) -> list[Task]:
  """Makes the tasks of these names.

  Args:
    names: names and globs of REGISTRY: 'xnli_*', 'flores101_en_*'.
    data_dir: holds a folder a set, see docs/evaluation_data.md.
    split: 'train', 'validation' or 'test'; None: the one the paper reports,
      where known (SuperGLUE and SQuADv2 have labels up to `validation`).
    shots: examples in front of each question; None: the paper's number, which
      is 1 for translations, summaries and data to text, else 0.
    mode: one of `prompts.MODES`; None: 'clm'.
    normalize: 'mean' or 'sum', of a choice's tokens; None: 'mean', for the
      paper does not say, and of `choices` 'sum'.
    seed: draws the shots where the paper does not name them.
    tfds_dir: where prepared TFDS data is.
    source_language, target_language: of the task `pairs`, where its lines do
      not say their own.

  Raises:
    ValueError: an unknown name, split, mode or normalisation; says the nearest.
  """
  mode = mode or 'clm'
  sources = select_sources(names, data_dir, split, shots, tfds_dir, seed)
  languages = source_language, target_language
  sources = [_name_languages(source, *languages) for source in sources]
  return [_make_task(source, mode, normalize) for source in sources]


def _name_languages(
  source: ExampleSource, source_language: str | None, target_language
) -> ExampleSource:
  """Returns a source whose pairs have languages where they say none."""
  if not isinstance(source.spec.format, generation.PairFormat):
    return source
  form = generation.PairFormat(source_language, target_language)
  spec = dataclasses.replace(source.spec, format=form)
  return dataclasses.replace(source, spec=spec)


def select_sources(
  names: str | Sequence[str],
  data_dir: str,
  split: str | None = None,
  shots: int | None = None,
  tfds_dir: str | None = None,
  seed: int = 0,
) -> list[ExampleSource]:
  """Returns the source of each task; see `suite` for the arguments."""
  sources = []
  for name in match_names(names):
    spec = REGISTRY[name]
    if split is not None:
      messages.check_choice(
        f'SPLIT of {name}', split, DATASETS[spec.data].splits
      )
      spec = dataclasses.replace(spec, split=split)
    if shots is not None:
      most = episodes.MOST_SHOTS if spec.choose == 'own' else None
      messages.check_number(f'SHOTS of {name}', shots, least=0, most=most)
      spec = dataclasses.replace(spec, shots=shots)
    sources.append(ExampleSource(name, spec, data_dir, tfds_dir, seed))
  return sources


def _make_task(source: ExampleSource, mode: str, normalize: str | None) -> Task:
  spec, fields = source.spec, {}
  if spec.format is generation.TRANSLATION_FORMAT:
    alone = dataclasses.replace(
      spec, format=generation.SENTENCE_FORMAT, shots=0
    )
    alone = dataclasses.replace(source, spec=alone)
    fields['by_languages'] = _make_task(alone, 'clm', normalize)
  elif isinstance(spec.format, generation.PairFormat):
    fields['asked_as_is'] = True
  if isinstance(spec.format, choices.ChoiceFormat):
    normalize = normalize or spec.format.normalize
    fields['ends'] = spec.format.ends
  if spec.format.generates:
    # In 'denoise' the decoder writes the prompt, too.
    clm = mode == 'clm'
    fields |= dict(
      answer=partial(spec.format.answer, mode=mode),
      max_tokens=spec.format.max_tokens if clm else 1023,
      stop=spec.format.stop if clm else (),
      truncate=spec.format.truncate,
    )
  return Task(
    name=source.name,
    set=spec.set or spec.data,
    language=spec.language,
    source_language=spec.source_language,
    metrics=spec.metrics,
    make_questions=partial(_make_questions, source, mode),
    mode=mode,
    shots=spec.shots,
    normalize=normalize or 'mean',
    chance=spec.chance,
    source=source.place,
    **fields,
  )


def _make_questions(
  source: ExampleSource, mode: str, tokenizer: Tokenizer | None
) -> list[Question]:
  """Makes the questions of a task; see `task.Task.make_questions`.

  Raises:
    MissingData: its data is not there.
    ValueError: it is not as it should be; names file and line.
  """
  spec = source.spec
  examples, shots = source.examples(spec.split), source.shots()
  if shots and spec.shots_from == spec.split:
    taken = {shot['id'] for shot in shots}
    examples = (e for e in examples if e['id'] not in taken)
  cut = lambda text, tokens: text
  if tokenizer is not None:
    cut = lambda text, tokens: prompts.cut_document(
      text, tokenizer.encode, tokenizer.decode, tokens
    )
  return [write_question(source, e, shots, mode, cut) for e in examples]


def write_question(
  source: ExampleSource, example: RawExample, shots, mode: str, cut
) -> Question:
  """Writes a question; raises ValueError with the place of the example."""
  spec = source.spec
  try:
    if spec.choose == 'own':
      shots = example['choose_shots'](spec.shots)
    return spec.format.question(example, shots, spec.language, mode, cut)
  except ValueError as e:
    place = f'{source.place}, example {example["id"]}'
    raise ValueError(f'{place}: {e}') from e


@dataclasses.dataclass(frozen=True)
class ExampleSource:
  """Where a task's examples come from."""

  name: str
  spec: TaskSpec
  data_dir: str
  tfds_dir: str | None
  seed: int

  def find(self, split: str) -> dataset_files.FoundSplit:
    """Finds a split; raises MissingData, see `dataset_files.find_split`."""
    data = DATASETS[self.spec.data]
    return dataset_files.find_split(
      data, self.spec.part, split, self.data_dir, self.tfds_dir
    )

  @property
  def place(self) -> str:
    """Where the questions are read, '' where they are not there."""
    try:
      return ', '.join(self.find(self.spec.split).places)
    except MissingData:
      return ''

  def examples(self, split: str) -> Iterator[RawExample]:
    return self.find(split).examples()

  def shots(self) -> list[RawExample]:
    """Returns the shots, the same for every question.

    Raises:
      ValueError: there are fewer examples.
    """
    k, split, choose = self.spec.shots, self.spec.shots_from, self.spec.choose
    if not k or choose == 'own':
      return []
    messages.check_choice(f'SHOTS of {self.name}: split', split,
                 DATASETS[self.spec.data].splits)  # fmt: skip
    pool = self.examples(split)
    if choose == 'short':
      return prompts.choose_shots(pool, k)
    pool = list(itertools.islice(pool, k if choose == 'first' else None))
    if len(pool) < k:
      raise ValueError(
        f'SHOTS = {k}: {self.name} has {len(pool)} examples in {split!r}'
      )
    if choose == 'drawn':
      key = self.seed % 2**64, zlib.crc32(self.name.encode())
      rng = np.random.default_rng(key)
      pool = [pool[i] for i in rng.choice(len(pool), k, replace=False)]
    return pool
