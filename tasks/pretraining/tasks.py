"""Pre-training tasks: denoising and CLM over text, and their mixtures.

A task's preprocessors up to the cache placeholder are deterministic: text to
its form, text to ids, one document an example. Each also works on some texts in
plain Python, `direct`, which is how `atm.cache` reads; the ids become rows
once, and the objective is applied to them by index. What stands behind the
placeholder applies the same objective as a stream, for seqio's own readers and
for t5x.

Tasks are named SOURCE_LANG[_spoken]_OBJECTIVE: `mc4_te_spoken_denoise`.
"""

import collections
import functools
import os
import re
from collections.abc import Callable, Iterator

import numpy as np

from atm import storage
from atm.data import counter_rng, packing, task_table, text_reader
from atm.data import objectives as objectives_lib
from atm.data.languages import LANGUAGE_CODES
from atm.data.sentences import count_sentences
from atm_tasks import episodes
from atm_tasks.pretraining import (
  seqio_import,
  sources,
  text_folders,
  text_forms,
)
from atm_tasks.pretraining.late_vocabulary import LateVocabulary
from atm_tasks.pretraining.mixing import Mixing
from atm_tasks.pretraining.text_source import RowsOnly, TextSource

# Equal languages, written form: the shipped text is the same in all.
UDHR = Mixing(language_power=0.0)


WORDS = LateVocabulary()  # of all tasks


def __getattr__(name: str):
  """Returns VOCABULARY, which tasks of others name: it imports TensorFlow."""
  if name != 'VOCABULARY':
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from atm_tasks.pretraining import seqio_tasks

  return seqio_tasks.VOCABULARY


# --- Preprocessors


class PrepareText:
  """Preprocessor: decontaminates a text and gives it its form.

  Args:
    form: 'written' or 'spoken'.
    index: returns a `decontaminate.Index`; None: nothing is dropped.
  """

  def __init__(self, form: str, index=None):
    self.form, self.index = form, index

  @property
  def made_from(self) -> dict:
    """The settings that the result depends on, besides the text."""
    settings = {'form': self.form}
    if self.index is not None:
      settings['decontaminated'] = self.index().sha256
    return settings

  def direct(self, texts: list[str], counts: collections.Counter) -> list[str]:
    """Returns the texts as they are trained on; adds to `counts`.

    `sentences` of what stays, and `dropped/SET` where sentences are dropped
    that share an n-gram with evaluation set SET.
    """
    if self.index is not None:
      texts = [self._clean(written, counts) for written in texts]
    counts['sentences'] += sum(map(count_sentences, texts))
    return [*map(text_forms.spoken, texts)] if self.form == 'spoken' else texts

  def _clean(self, written: str, counts: collections.Counter) -> str:
    kept, dropped = self.index().clean(written)
    for name, count in dropped.items():
      counts[f'dropped/{name}'] += count
    return kept

  def __call__(self, dataset):
    """Returns a tf.data.Dataset of prepared texts, for seqio's own readers."""
    if self.form == 'written' and self.index is None:
      return dataset
    import tensorflow as tf

    def prepare(raw):
      return self.direct([raw.decode()], collections.Counter())[0].encode()

    def each(example):
      text = tf.numpy_function(
        prepare, (example['text'],), tf.string, stateful=False
      )
      text.set_shape([])
      return {**example, 'text': text}

    return dataset.map(each)


class Tokenize:
  """Preprocessor: {text} -> {text, targets}, ids without special pieces."""

  made_from: dict = {}

  def direct(self, texts: list[str], counts) -> list[np.ndarray]:
    """Encodes each text: int32 ids."""
    del counts
    return WORDS.words.encode_batch(texts)

  def __call__(self, dataset):
    """Returns a tf.data.Dataset of ids, for seqio's own readers."""
    import tensorflow as tf

    from atm_tasks.pretraining.seqio_tasks import VOCABULARY

    encode = VOCABULARY.encode_tf
    return dataset.map(
      lambda e: {'text': e['text'], 'targets': encode(e['text'])},
      num_parallel_calls=tf.data.AUTOTUNE,
    )


class ApplyObjective:
  """Preprocessor: applies an objective to a stream of documents.

  `atm.data` reads the attributes off it and works by index. (Not a dataclass:
  seqio would want to set `sequence_length` on it.)

  Attributes:
    objective, language, source, form: what the task is.
    measured: {'rows', 'sentences', ...} of the task's training rows, set by
      who opens them; mixtures weigh by it.
  """

  def __init__(self, objective, language: str, source: str, form: str):
    self.objective, self.language = objective, language
    self.source, self.form = source, form
    self.measured: dict | None = None

  def __call__(self, dataset, sequence_length):
    """Returns a tf.data.Dataset of examples, for seqio's own readers."""
    import seqio
    import tensorflow as tf

    S, T = sequence_length['inputs'], sequence_length['targets']
    ids = packing.SpecialIds.of(WORDS.words)
    length = self.objective.row_length(S, T)

    def rows():
      documents = (e['targets'] for e in dataset.as_numpy_iterator())
      yield from self.objective.rows(documents, ids, length)

    def example(row, seed):
      key = counter_rng.make_key(*seed)[None]
      batch = self.objective.examples(
        row[None], np.array([len(row)]), key, ids, S, T
      )
      inputs = batch['encoder_input_tokens'][batch['encoder_segment_ids'] > 0]
      targets = batch['decoder_target_tokens'][batch['decoder_segment_ids'] > 0]
      return inputs, targets

    number = objectives_lib.OBJECTIVE_NAMES.index(self.objective.name)

    @functools.partial(seqio.map_over_dataset, num_seeds=1)
    def noised(row, seed):
      inputs, targets = tf.numpy_function(
        example, (row, seed), (tf.int32, tf.int32), stateful=False
      )
      inputs.set_shape([None])
      targets.set_shape([None])
      return {'inputs': inputs, 'targets': targets, 'objective': number}

    spec = tf.TensorSpec([None], tf.int32)
    return noised(tf.data.Dataset.from_generator(rows, output_signature=spec))


# --- Rates


class MixtureRates:
  """Rates of the tasks of a mixture, from measured counts.

  Of examples of one objective a language gets q ~ p ** power, p its share of
  sentences; within a language a source and form gets its part of rows, each
  counted as often as the source is repeated in that form.
  """

  def __init__(self, name: str, power: float):
    self.name, self.power = name, power
    self.tasks: dict[str, tuple[ApplyObjective, float, float]] = {}

  def add(
    self, task: str, apply: ApplyObjective, share: float, repeat: float
  ) -> None:
    self.tasks[task] = (apply, share, repeat)

  def __call__(self, task) -> float:
    return self.rates()[task.name]

  def rates(self) -> dict[str, float]:
    """Returns task -> rate; they sum to 1.

    Raises:
      ValueError: a task's text was not measured yet.
    """
    for task, (apply, *_) in self.tasks.items():
      if apply.measured is None and not self._needs_no_counts():
        raise ValueError(
          f'the rates of {self.name!r} follow from counts of its text, and '
          f'{task!r} was not counted yet: run `atm cache`, then name its '
          'folder: atm_tasks.configure(cache_dir=...)'
        )
    known = self._needs_no_counts() and {'rows': 1, 'sentences': 1}
    return compute_rates(
      {
        task: {
          'objective': (apply.objective.name, apply.objective.variant),
          'language': apply.language,
          'share': share, 'repeat': repeat, **(known or apply.measured),
        }
        for task, (apply, share, repeat) in self.tasks.items()
      },
      self.power,
    )  # fmt: skip

  def _needs_no_counts(self) -> bool:
    """Tells whether languages are equal, each with one source and form."""
    groups = {(a.objective, a.language) for a, *_ in self.tasks.values()}
    return self.power == 0 and len(groups) == len(self.tasks)


def compute_rates(tasks: dict[str, dict], power: float) -> dict[str, float]:
  """Computes task -> rate; a language without rows has no part.

  Args:
    tasks: {objective, language, share, repeat, rows, sentences} of each.
    power: of a language's share of sentences.
  """
  sentences, rows, total = (collections.Counter() for _ in range(3))
  for task in tasks.values():
    key = task['objective'], task['language']
    rows[key] += task['repeat'] * task['rows']
    sentences[key] += task['repeat'] * task['sentences']
  q = {key: sentences[key] ** power if rows[key] else 0.0 for key in rows}
  for (objective, _), value in q.items():
    total[objective] += value
  rates = {}
  for name, task in tasks.items():
    key = task['objective'], task['language']
    rates[name] = 0.0
    if q[key]:
      part = task['repeat'] * task['rows'] / rows[key]
      rates[name] = task['share'] * (q[key] / total[key[0]]) * part
  return rates


# --- Registration


def register_mixture(
  name: str,
  found: dict[tuple[str, str], TextSource],
  mixing: Mixing,
  paper_packing: bool = True,
  index=None,
  others: MixtureRates | None = None,
  objectives: list[tuple] | None = None,
) -> MixtureRates:
  """Registers the tasks of some sources, and the mixture NAME of them.

  Args:
    name: of the mixture.
    found: (source, language) -> its text; the source's name begins its tasks'.
    mixing: how they mix.
    paper_packing: one document a CLM row; else several, see `objectives.CLM`.
    index: see `PrepareText`.
    objectives: (objective, share) of each; None: those of `mixing`.
    others: of tasks that have `mixing.in_context` of the rows; None: they have
      none.

  Returns:
    the rates of the sources' tasks.
  """
  rate = MixtureRates(name, mixing.language_power)
  if objectives is None:
    objectives = mixing.objectives(not paper_packing)
  for (source, language), texts in found.items():
    kind = source if hasattr(mixing, f'{source}_written') else 'text'
    for form, repeat in mixing.forms(kind).items():
      before = [PrepareText(form, index), Tokenize()]
      for objective, share in objectives:
        parts = source, language, form, objective.variant, objective.name
        task = '_'.join(x for x in parts if x and x != 'written')
        apply = ApplyObjective(objective, language, source, form)
        steps = [*before, task_table.CachePlaceholder(), apply]
        register_task(task, texts, steps)
        rate.add(task, apply, share, repeat)
  rates = dict.fromkeys(rate.tasks, rate)
  if others is not None and mixing.in_context:
    share = mixing.in_context
    rates = {
      **dict.fromkeys(rate.tasks, lambda task: (1 - share) * rate(task)),
      **dict.fromkeys(others.tasks, lambda task: share * others(task)),
    }
  add_mixture(name, rates)
  return rate


def register_task(name: str, source: TextSource, preprocessors: list) -> None:
  """Registers a task of this vocabulary in place of any of its name."""
  task = task_table.TASKS[name] = task_table.TextTask(
    name, source, preprocessors
  )
  if seqio_tasks := seqio_import.get_seqio_tasks():
    seqio_tasks.register_seqio_task(task)


def add_mixture(name: str, rates: dict[str, Callable]) -> None:
  """Registers a mixture of tasks in place of any of its name."""
  mixture = task_table.MIXTURES[name] = task_table.TextMixture(name, rates)
  if seqio_tasks := seqio_import.get_seqio_tasks():
    seqio_tasks.register_seqio_mixture(mixture)


def unregister(name: str) -> None:
  """Makes the name of a task or mixture free."""
  task_table.TASKS.pop(name, None)
  task_table.MIXTURES.pop(name, None)
  if seqio_tasks := seqio_import.get_seqio_tasks():
    seqio_tasks.unregister_seqio_name(name)


def is_held_out(article: str) -> bool:
  """Tells whether an article of the Declaration is `validation`."""
  return article.isdigit() and int(article) % 10 == 3


class DeclarationSource(TextSource):
  """The Declaration of Human Rights; articles 3, 13, 23 are `validation`."""

  by_content = False

  def __init__(self, language: str):
    super().__init__(held_out=0.0)
    folder = os.path.join(os.path.dirname(__file__), '../udhr')
    self.path = os.path.join(folder, f'{language}.tsv')

  def list_shards(self, split: str) -> list[str]:
    return [self.path]

  def documents(self, split: str, shard: int) -> Iterator[str]:
    for _, line in text_reader.read_text_lines(self.path):
      article, _, written = line.partition('\t')
      if is_held_out(article) == (split == 'validation'):
        yield written


class EpisodeSource(TextSource):
  """Generated episodes of a family of `episodes.FAMILIES`, a document each."""

  by_content = False
  UNIT = 5_000

  def __init__(self, family: str):
    super().__init__(held_out=0.0)
    self.family = family

  @property
  def made_from(self) -> dict:
    """The settings that rows depend on: how many episodes there are."""
    return {'episodes': episodes.EPISODES['train']}

  def list_shards(self, split: str) -> list[str]:
    """Lists units of UNIT episodes: their first numbers."""
    starts = range(0, episodes.EPISODES[split], self.UNIT)
    return [f'{self.family} {split} {start}' for start in starts]

  def documents(self, split: str, shard: int) -> Iterator[str]:
    start = shard * self.UNIT
    stop = min(start + self.UNIT, episodes.EPISODES[split])
    for number in range(start, stop):
      episode = episodes.draw_episode(self.family, split, number)
      yield episodes.write_document(self.family, episode)


def find_sources(
  source: str,
  place: str | None,
  held_out: float,
  skip_bad: bool,
  data_dir: str | None,
  cache_dir: str | None,
) -> dict[tuple[str, str], TextSource]:
  """Finds (source, language) -> text, of a folder or of a TFDS data set.

  A place that holds `{language}`, or is TFDS' c4/multilingual, is TFDS', and
  has all of LANGUAGE_CODES; any other is a folder, and has those found there.
  Without a place it is what `cache_dir` has rows of.
  """
  if place is None:
    made = {k: RowsOnly(source, held_out)
            for k in list_cached_languages(cache_dir, source)}  # fmt: skip
  elif '{language}' in place or place.startswith('c4/multilingual'):
    made = {k: sources.TfdsSource(place, k, held_out, data_dir)
            for k in LANGUAGE_CODES}  # fmt: skip
  else:
    made = {k: sources.FolderSource(place, k, held_out, skip_bad=skip_bad)
            for k in text_folders.list_languages(place)}  # fmt: skip
  return {(source, k): found for k, found in made.items()}


def list_cached_languages(cache_dir: str | None, source: str) -> list[str]:
  """Lists the languages of a source that a cache has rows of."""
  if cache_dir is None or not storage.is_folder(cache_dir):
    return []
  names = '|'.join(objectives_lib.OBJECTIVE_NAMES)
  variant = r'(?:_(?:s|[rx]\d+_\d+))?'  # of `ul2`
  pattern = re.compile(
    rf'{source}_(.+?)(?:_spoken)?{variant}_(?:{names})-train'
  )
  found = map(pattern.fullmatch, storage.list_names(cache_dir))
  return sorted({match[1] for match in found if match})
