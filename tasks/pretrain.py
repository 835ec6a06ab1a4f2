"""Pre-training tasks: denoising and CLM over text, and their 80 : 20 mixture.

A task's preprocessors up to the cache placeholder are deterministic: text to
ids, one document an example. `atm.rows` takes the ids from there, makes rows of
them once, and applies the objective itself, by index. What stands behind the
placeholder applies the same objective as a stream, for seqio's own readers and
for t5x.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import re
import zlib
from collections.abc import Iterator

import numpy as np
import seqio
import tensorflow as tf

from atm import objectives

LANGUAGES = (
  'ar', 'de', 'en', 'es', 'fr', 'hi', 'it', 'ja', 'mr', 'pt', 'ta', 'te',
)  # fmt: skip
SPLITS = ('train', 'validation')
# Section 3 of the paper: 80% of examples are denoised, 20% continued.
OBJECTIVES = ((objectives.Denoise(), 0.8), (objectives.CLM(), 0.2))
# Section 2.1: languages are sampled in proportion to counts ** 0.5.
LANGUAGE_POWER = 0.5


class LateVocabulary(seqio.SentencePieceVocabulary):
  """A SentencePiece vocabulary whose file is named after registration."""

  def __init__(self):
    super().__init__('')

  def use(self, path: str) -> None:
    self._sentencepiece_model_file = path
    self._model = None

  def _model_context(self):
    if not self._sentencepiece_model_file:
      raise ValueError(
        'no vocabulary is named yet: call atm_tasks.configure(vocabulary=...)'
      )
    return super()._model_context()

  @property
  def pad_id(self) -> int:
    return self.tokenizer.pad_id()

  def __str__(self) -> str:
    return f'LateVocabulary({self._sentencepiece_model_file!r})'


VOCABULARY = LateVocabulary()


def tokenize(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """{text} -> {text, targets}: ids without special pieces."""
  return dataset.map(
    lambda e: {'text': e['text'], 'targets': VOCABULARY.encode_tf(e['text'])},
    num_parallel_calls=tf.data.AUTOTUNE,
  )


class Apply:
  """The preprocessor that applies an objective to a stream of documents.

  `atm.data` reads `objective` and `language` off it and works by index.
  (Not a dataclass: seqio would want to set `sequence_length` on it.)
  """

  def __init__(
    self, objective: objectives.Denoise | objectives.CLM, language: str
  ):
    self.objective, self.language = objective, language

  def __call__(self, dataset, sequence_length):
    S, T = sequence_length['inputs'], sequence_length['targets']
    sp = VOCABULARY.tokenizer
    piece = sp.PieceToId
    ids = objectives.Ids(
      sp.pad_id(), sp.bos_id(), sp.eos_id(), piece('[CLM]'), piece('[DOC]')
    )
    length = self.objective.row_length(S, T)

    def rows():
      documents = (e['targets'] for e in dataset.as_numpy_iterator())
      yield from self.objective.rows(documents, ids, length)

    def example(row, seed):
      batch = self.objective.examples(
        row[None], np.array([len(row)]), objectives.keys(*seed)[None], ids, S, T
      )
      inputs = batch['encoder_input_tokens'][batch['encoder_segment_ids'] > 0]
      targets = batch['decoder_target_tokens'][batch['decoder_segment_ids'] > 0]
      return inputs, targets

    @functools.partial(seqio.map_over_dataset, num_seeds=1)
    def noise(row, seed):
      inputs, targets = tf.numpy_function(
        example, (row, seed), (tf.int32, tf.int32), stateful=False
      )
      inputs.set_shape([None])
      targets.set_shape([None])
      return {'inputs': inputs, 'targets': targets}

    spec = tf.TensorSpec([None], tf.int32)
    return noise(tf.data.Dataset.from_generator(rows, output_signature=spec))


def _texts(read) -> seqio.FunctionDataSource:
  """A source of {text} from `read(split)`, an iterator over strings."""

  def dataset_fn(split, shuffle_files=False, seed=None):
    del shuffle_files, seed
    dataset = tf.data.Dataset.from_generator(
      lambda: read(split), output_signature=tf.TensorSpec([], tf.string)
    )
    return dataset.map(lambda text: {'text': text})

  return seqio.FunctionDataSource(dataset_fn, splits=SPLITS)


def register(name: str, readers: dict, counts: dict) -> None:
  """Registers NAME_LANG_OBJECTIVE for each language, and the mixture NAME.

  Args:
    name: prefix of the tasks, name of the mixture.
    readers: language -> `read(split)`.
    counts: language -> how many texts; languages mix by counts ** 0.5.
  """
  for old in list(seqio.MixtureRegistry.names()):
    if old == name:
      seqio.MixtureRegistry.remove(old)
  shares = {k: counts[k] ** LANGUAGE_POWER for k in readers}
  feature = seqio.Feature(VOCABULARY, add_eos=False)
  rates = []
  for language, read in readers.items():
    source = _texts(read)
    for objective, share in OBJECTIVES:
      task = f'{name}_{language}_{objective.name}'
      if task in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task)
      seqio.TaskRegistry.add(
        task,
        source=source,
        preprocessors=[
          tokenize,
          seqio.CacheDatasetPlaceholder(),
          Apply(objective, language),
        ],
        output_features={'inputs': feature, 'targets': feature},
      )
      rates.append((task, share * shares[language] / sum(shares.values())))
  seqio.MixtureRegistry.add(name, rates)


def register_udhr(name: str) -> None:
  """The shipped text; articles 3, 13 and 23 are its validation split."""

  def read(language: str, split: str) -> Iterator[str]:
    folder = os.path.join(os.path.dirname(__file__), 'udhr')
    with open(os.path.join(folder, f'{language}.tsv'), encoding='utf-8') as f:
      for line in f:
        article, _, text = line.rstrip('\n').partition('\t')
        held_out = article.isdigit() and int(article) % 10 == 3
        if text and held_out == (split == 'validation'):
          yield text

  readers = {k: functools.partial(read, k) for k in LANGUAGES}
  register(name, readers, {k: 1 for k in LANGUAGES})


def read_file(path: str) -> Iterator[str]:
  """The texts of a LANG.txt or LANG.jsonl, blank ones left out.

  Raises:
    ValueError: a line is not UTF-8, or not a JSON object with `text`.
  """
  with open(path, 'rb') as f:
    for number, raw in enumerate(f, 1):
      try:
        text = raw.decode('utf-8').strip()
        if text and path.endswith('.jsonl'):
          text = json.loads(text)['text'].strip()
      except (UnicodeDecodeError, KeyError, TypeError, AttributeError,
              json.JSONDecodeError) as e:  # fmt: skip
        expected = 'an object with a string `text`'
        if isinstance(e, UnicodeDecodeError):
          expected = 'UTF-8'
        raise ValueError(
          f'{path}, line {number}: expected {expected}; got {raw[:60]!r}'
        ) from e
      if text:
        yield ' '.join(text.split())


def register_folder(name: str, folder: str, held_out: float) -> None:
  """Registers every LANG.txt and LANG.jsonl of a folder, see `configure`."""
  if not 0 <= held_out < 1:
    raise ValueError(f'held_out = {held_out}: expected a share in [0, 1)')
  paths = sorted(
    glob.glob(os.path.join(folder, '*.txt'))
    + glob.glob(os.path.join(folder, '*.jsonl'))
  )
  files: dict[str, list[str]] = {}
  for path in paths:
    language = os.path.splitext(os.path.basename(path))[0]
    if not re.fullmatch(r'[A-Za-z0-9_]+', language):
      raise ValueError(f'{path}: a file is named by its language, like en.txt')
    files.setdefault(language, []).append(path)
  if not files:
    raise ValueError(f'TEXT_DIR = {folder!r}: no LANG.txt or LANG.jsonl there')

  def read(language: str, split: str) -> Iterator[str]:
    for path in files[language]:
      for text in read_file(path):
        # By content, so that a repeated text stays on one side.
        share = zlib.crc32(text.encode()) / 2**32
        if (share < held_out) == (split == 'validation'):
          yield text

  counts = {}
  for language in files:
    counts[language] = sum(1 for p in files[language] for _ in open(p, 'rb'))
  empty = [k for k, n in counts.items() if not n]
  if empty:
    raise ValueError(f'TEXT_DIR = {folder!r}: no text in {empty[0]!r}')
  readers = {k: functools.partial(read, k) for k in files}
  register(name, readers, counts)
