"""Tasks and mixtures of atm; importing this package registers them.

  udhr   the shipped text: the Declaration of Human Rights, 12 languages
  paper  Wikipedia and mC4 in 12 languages, written and spoken form, from TFDS
         or from folders of the same shape
  text   any folder of text by language, after `configure(text_dir=...)`
  in_context
         generated episodes of in-context learning, see `episodes`

Each of these is a mixture of denoising and CLM, 80 : 20, over tasks named
`udhr_en_denoise`, `mc4_te_spoken_clm`, ..., and with the ending `_ul2` one of
UL2's denoisers, see `atm.data.ul2`. The vocabulary is named once, by
`configure(vocabulary=...)`, before a task's tokens are read. Tasks of pairs, to
fine-tune on, are in `pairs`. Evaluation tasks are no seqio tasks: `suite` makes
them, see `evaluation`.

The folder is tasks/, the import name `atm_tasks`.
"""

import dataclasses
import functools
from functools import partial

from atm.data import task_table, token_store, ul2
from atm.data.languages import LANGUAGE_CODES
from atm.inference import prompts
from atm.messages import (
  check_arguments,
  check_choice,
  check_number,
  check_path,
  check_text,
  quote,
)
from atm_tasks.episodes import FAMILIES
from atm_tasks.evaluation.data_check import data_table
from atm_tasks.evaluation.registry import suite
from atm_tasks.pretraining import decontaminate as decontaminate_lib
from atm_tasks.pretraining import seqio_import, tasks
from atm_tasks.pretraining.pair_sets import (
  PairPaths,
  check_pair_paths,
  check_pair_weights,
)
from atm_tasks.pretraining.pair_tasks import know_languages, register_pairs
from atm_tasks.pretraining.pair_text import PairReader
from atm_tasks.pretraining.tasks import Mixing
from atm_tasks.pretraining.text_forms import spoken

__all__ = [
  'Mixing', 'configure', 'configured', 'data_table', 'pretrain', 'spoken',
  'suite',
]  # fmt: skip

WIKIPEDIA = 'wikipedia/20230601.{language}'
MC4 = 'c4/multilingual'


def check_decontaminate(sets) -> dict[str, str] | None:
  """Returns evaluation set -> its files, or None; raises ValueError else."""
  if sets is None:
    return None
  if not isinstance(sets, dict):
    raise ValueError(
      f"DECONTAMINATE = {quote(sets)}: expected {{'SET': 'FILES'}}, or None"
    )
  return {
    check_text('a set of DECONTAMINATE', name): check_path(
      f'DECONTAMINATE[{quote(name)}]', path
    )
    for name, path in sets.items()
  }


def check_columns(value) -> tuple[str | int, str | int] | None:
  """Returns PAIRS_COLUMNS; raises ValueError unless they are two or None."""
  if value is None:
    return None
  good = lambda x: (
    (isinstance(x, str) and x.strip() != '') or (type(x) is int and x > 0)
  )
  if isinstance(value, list | tuple) and len(value) == 2:
    if all(map(good, value)):
      return tuple(value)
  raise ValueError(
    f'PAIRS_COLUMNS = {quote(value)}: expected two names, numbers from 1 or '
    "templates, such as ('Question: {question}', 'answer'), or None"
  )


@check_arguments(
  vocabulary=partial(check_path, 'VOCABULARY', optional=True),
  text_dir=partial(check_path, 'TEXT_DIR', optional=True),
  wikipedia=partial(check_path, 'WIKIPEDIA', optional=True),
  mc4=partial(check_path, 'MC4', optional=True),
  tfds_dir=partial(check_path, 'TFDS_DIR', optional=True),
  held_out=partial(check_number, 'HELD_OUT', least=0, below=1, whole=False),
  decontaminate=check_decontaminate,
  cache_dir=partial(check_path, 'CACHE_DIR', optional=True),
  pairs=check_pair_paths,
  pairs_columns=check_columns,
  pairs_mode=partial(
    check_choice, 'PAIRS_MODE', known=prompts.MODES, optional=True
  ),
  pairs_weights=check_pair_weights,
  pairs_temperature=partial(
    check_number, 'PAIRS_TEMPERATURE', least=1, whole=False, optional=True
  ),
  source_language=partial(
    check_text, 'SOURCE_LANGUAGE', empty=False, optional=True
  ),
  target_language=partial(
    check_text, 'TARGET_LANGUAGE', empty=False, optional=True
  ),
)
def configure(
  vocabulary: str | None = None,
  text_dir: str | None = None,
  wikipedia: str | None = WIKIPEDIA,
  mc4: str | None = MC4,
  tfds_dir: str | None = None,
  held_out: float = 0.01,
  skip_bad: bool = False,
  mixing: Mixing = Mixing(),
  paper_packing: bool = True,
  decontaminate: dict[str, str] | None = None,
  cache_dir: str | None = None,
  pairs: PairPaths | dict[str, PairPaths] | None = None,
  pairs_mode: str | None = None,
  pairs_temperature: float | None = None,
  source_language: str | None = None,
  target_language: str | None = None,
  pairs_columns: tuple[str | int, str | int] | None = None,
  pairs_weights: dict[str, float] | None = None,
) -> None:
  """Names what the tasks read, and registers them anew.

  Args:
    vocabulary: a SentencePiece model file; read when tokens are first needed.
    text_dir: a folder of text, registered as the mixture `text`: LANG.txt (a
      document or paragraph a line), LANG.jsonl (an object with a `text` field a
      line), either with .gz or .zst, LANG.parquet, LANG.tfrecord, or many such
      files in LANG/; see `sources.FolderSource`.
    wikipedia, mc4: what `paper` is made of: a TFDS data set, with `{language}`
      where its config names it, or such a folder; None leaves it out, unless
      `cache_dir` has its rows.
    tfds_dir: where TFDS data is; TFDS_DATA_DIR or ~/tensorflow_datasets.
    held_out: share of a language's documents in the `validation` split, where a
      source has none of its own; of few documents a number of them, see
      `text_source.TextSource.bound`.
    skip_bad: skip and count lines and records that cannot be read.
    mixing: how languages, sources, forms and objectives mix.
    paper_packing: a CLM row holds one document, as in the paper; otherwise as
      many as fit.
    decontaminate: evaluation set -> its files; sentences that share a 13-gram
      with one are dropped, see `decontaminate.Index.read`.
    cache_dir: a cache; where no text is named, the languages of `text` and
      `paper` are those it has rows of, and its counts give the mixtures' rates
      to seqio's own readers.
    pairs: fine-tuning pairs, see `pairs.PairsSource`, registered as the task
      `pairs`, or where they name their languages as a mixture of a task for
      each direction, see `pair_tasks.register_pairs`; or several sets of them
      by name, as a mixture of theirs.
    pairs_mode: how their inputs are framed, one of `prompts.MODES`; prompt the
      model in the same. None: as the model reads, see `FramePairs`.
    pairs_temperature: T of the directions' shares, count ** (1 / T); 1: as they
      are. None: directions are not told apart.
    source_language, target_language: of pairs that do not say their own.
    pairs_columns: of their inputs and targets, see `pair_text.PairReader`.
    pairs_weights: set of pairs -> its weight, see `pair_sets.PairRates`.

  Raises:
    ValueError: no text there, or an argument out of range.
  """
  if vocabulary is not None:
    tasks.WORDS.use(vocabulary)
  index = load_index_lazily(tuple(sorted((decontaminate or {}).items())))
  found = partial(
    tasks.find_sources, held_out=held_out, skip_bad=skip_bad, data_dir=tfds_dir,
    cache_dir=cache_dir,
  )  # fmt: skip
  paper = found('wikipedia', wikipedia) | found('mc4', mc4)
  text = found('text', text_dir)
  register_mixtures(
    {'paper': paper, 'text': text}, mixing, paper_packing, index
  )
  reader = PairReader(source_language, target_language, columns=pairs_columns)
  if pairs is not None and vocabulary is not None:
    frame = tasks.WORDS.words.input_format
    reader = know_languages(reader, frame, pairs_mode)
  register_pairs(
    pairs,
    pairs_mode,
    skip_bad,
    cache_dir,
    pairs_temperature,
    reader,
    pairs_weights,
  )
  if cache_dir is not None:
    load_counts(cache_dir)


def register_mixtures(
  found: dict[str, dict], mixing: Mixing, paper_packing: bool, index
) -> None:
  """Registers the mixtures of texts, each with the objectives of UL2, too.

  Args:
    found: name of a mixture -> its texts; a mixture without any is left out.
    mixing, paper_packing, index: see `tasks.register_mixture`.
  """
  udhr = {('udhr', k): tasks.DeclarationSource(k) for k in LANGUAGE_CODES}
  generated = {('in_context', k): tasks.EpisodeSource(k) for k in FAMILIES}
  alike = dict(language_power=0.0, text_spoken=0.0, text_written=1.0)
  denoisers = ul2.list_denoisers(not paper_packing)
  for ending, objectives in (('', None), ('_ul2', denoisers)):
    register = partial(
      tasks.register_mixture, paper_packing=paper_packing, index=index,
      objectives=objectives,
    )  # fmt: skip
    register(f'udhr{ending}', udhr, tasks.UDHR)
    others = register(
      f'in_context{ending}', generated, dataclasses.replace(mixing, **alike)
    )
    for name, texts in found.items():
      if texts:
        register(f'{name}{ending}', texts, mixing, others=others)


def configured(**named):
  """Calls `configure(**named)`; returns the `seqio.Vocabulary` of all tasks.

  For t5x's gin files.
  """
  configure(**named)
  return tasks.VOCABULARY


@functools.cache
def load_index_lazily(sets: tuple[tuple[str, str], ...]):
  """Reads evaluation sets when called, once; None where there are none."""
  if not sets:
    return None
  return functools.cache(lambda: decontaminate_lib.Index.read(dict(sets)))


def load_counts(cache_dir: str) -> None:
  """Gives every task that has rows in `cache_dir` their counts."""
  for name, task in task_table.get_registries()[1].items():
    folder = f'{cache_dir.rstrip("/")}/{name}-train'
    if token_store.has_manifest(folder):
      manifest = token_store.read_manifest(folder)
      apply = task.preprocessors[-1]
      apply.measured = {**manifest['counts'], 'rows': manifest['rows']}


# What a gin file that imports this package may bind.
GIN = (Mixing, configure, data_table, spoken, suite)

configure()
seqio_import.watch_for_seqio()
