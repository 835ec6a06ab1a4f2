"""Fine-tuning tasks: pairs of input and target.

A pair is stored as a text, the JSON of [input, target], so that its source has
what all sources of `sources` have. Inputs are framed as `atm infer` frames a
prompt, targets end in `</s>`.

  pairs           JSONL with `input` and `target`, after `configure(pairs=...)`
  udhr_language   the shipped text: a sentence, and the language it is in
"""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from atm import fileio
from atm.data import languages, text_lines, text_reader, token_store
from atm.data.sentences import split_sentences
from atm.data.vocabulary import CLM_TOKEN
from atm.inference import prompts
from atm.messages import check_choice
from atm_tasks.pretraining import records, sources, tasks, text_folders
from atm_tasks.pretraining.text_source import SPLITS, RowsOnly, TextSource

PAIR_FIELDS = ('input', 'target')
HELD_OUT = 0.05  # share of a single file


class PairsSource(sources.RecordSource):
  """Pairs of a JSONL file, or of a folder with a file or more for each split.

  Args:
    path: a file, of whose pairs `held_out` are `validation`, chosen by their
      input; or a folder with train*.jsonl and validation*.jsonl. Either may
      end in .gz or .zst.
    held_out: a share; without effect on a folder.
    skip_bad: skip and count lines that cannot be read.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is of another kind, or `held_out` is no share.
  """

  def __init__(self, path: str, held_out: float, skip_bad: bool = False):
    self._parts = {split: _list_parts(path, split) for split in SPLITS}
    if os.path.isdir(path):
      parts = itertools.chain.from_iterable(self._parts.values())
      taken = {os.path.basename(part.path) for part in parts}
      unread = text_folders.list_unread(path, taken)
      text_folders.say_unread(f'PAIRS = {path!r}', tuple(unread))
    self.by_content, self.skip_bad = not os.path.isdir(path), skip_bad
    super().__init__(held_out if self.by_content else 0.0)

  @functools.cached_property
  def made_from(self) -> dict:
    """The settings and the pairs that rows depend on."""
    parts = itertools.chain.from_iterable(self._parts.values())
    digest = hashlib.sha256()
    for path in dict.fromkeys(part.path for part in parts):
      with open(path, 'rb') as f:
        digest.update(hashlib.file_digest(f, 'sha256').digest())
    return {'held_out': self.held_out, 'pairs': digest.hexdigest()}

  def parts(self, split: str) -> list[records.FilePart]:
    return self._parts[split]

  def parse(self, part: records.FilePart, record: bytes | None) -> str:
    text = text_lines.decode(record)
    if not text or text.isspace():
      return ''
    row = text_reader.parse_object(text, PAIR_FIELDS)
    for name in PAIR_FIELDS:
      text_reader.check_strings(name, row[name])
    return pair_to_text(*(row[name] for name in PAIR_FIELDS))

  def clean(self, document: str) -> str:
    return document  # spaces may mean something, in code say

  def draw(self, text: str) -> float:
    # Inputs are often alike, and so would be their CRCs.
    digest = hashlib.blake2b(json.loads(text)[0].encode(), digest_size=4)
    return int.from_bytes(digest.digest(), 'big') / 2**32


class PairRows(RowsOnly):
  """Pairs of which only a cache's rows are there, as on a training host."""

  def __init__(self, folder: str):
    super().__init__('pairs', held_out=0.0)
    self.named_by = 'PAIRS'
    facts = token_store.read_manifest(folder)['made_from']
    where = f'{folder}/{token_store.MANIFEST}, made_from'
    fileio.check_json(facts, {'held_out': float, 'pairs': str}, where)
    self.rows = {name: facts[name] for name in ('held_out', 'pairs')}

  @property
  def made_from(self) -> dict:
    return self.rows


class LanguagePairs(TextSource):
  """Sentences of the Declaration, each with the English name of its language.

  Splits are by article, as in `tasks.DeclarationSource`.
  """

  by_content = False

  def __init__(self):
    super().__init__(held_out=0.0)
    self.texts_of = {
      k: tasks.DeclarationSource(k) for k in languages.LANGUAGE_CODES
    }

  def list_shards(self, split: str) -> list[str]:
    return [s.list_shards(split)[0] for s in self.texts_of.values()]

  def documents(self, split: str, shard: int) -> Iterator[str]:
    language = languages.LANGUAGE_CODES[shard]
    for article in self.texts_of[language].documents(split, 0):
      for sentence in split_sentences(article):
        yield pair_to_text(sentence.strip(), languages.LANGUAGES[language])


def pair_to_text(source: str, target: str) -> str:
  """Writes a pair as the text that sources give."""
  return json.dumps([source, target], ensure_ascii=False)


def text_to_pair(text: str) -> dict[str, str]:
  """Reads a text of `pair_to_text`: {input, target}."""
  return dict(zip(PAIR_FIELDS, json.loads(text)))


def _list_parts(path: str, split: str) -> list[records.FilePart]:
  """Lists the files of a split; raises the errors of `PairsSource`."""
  if not isinstance(path, str):
    raise ValueError(f'PAIRS = {path!r}: expected a file or folder, in quotes')
  if not os.path.exists(path):
    raise FileNotFoundError(f'PAIRS = {path!r}: no such file or folder')
  paths = [path]
  if os.path.isdir(path):
    names = sorted(n for n in os.listdir(path) if n.lower().startswith(split))
    paths = [os.path.join(path, name) for name in names]
  is_jsonl = lambda path: text_lines.detect_text_format(path)[0] == 'jsonl'
  paths = list(filter(is_jsonl, paths))
  if not paths:
    raise ValueError(
      f'PAIRS = {path!r}: expected a .jsonl file, or a folder with train.jsonl '
      'and validation.jsonl; each may end in .gz or .zst'
    )
  for name in map(os.path.basename, paths if os.path.isdir(path) else ()):
    if not name.startswith(split):
      raise ValueError(
        f'PAIRS = {path!r}: {name} is not read. Did you mean {name.lower()!r}?'
      )
  for each in paths:
    fileio.check_regular(each)
  text_folders.check_copies(f'PAIRS = {path!r}', paths)
  return [unit for path in paths for unit in records.split_file(path, 64 << 20)]


class FramePairs:
  """Preprocessor: encodes pairs, cut to the lengths of a row.

  A text that is too long loses its end, an input not its `</s>`.

  Attributes:
    made_from: settings that the result depends on, besides the text.
  """

  def __init__(self, mode: str):
    """Takes one of `prompts.MODES`."""
    check_choice('PAIRS_MODE', mode, prompts.MODES)
    self.mode, self.made_from = mode, {'mode': mode}

  def pair(self, text: str, S: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a text of `pair_to_text`: int32 ids, at most S and T."""
    sp = tasks.VOCABULARY.tokenizer
    begin = [sp.bos_id()]
    if self.mode == 'clm':
      marker = sp.PieceToId(CLM_TOKEN)
      if sp.IdToPiece(marker) != CLM_TOKEN:
        raise ValueError(
          f"the vocabulary has no {CLM_TOKEN}: set PAIRS_MODE = 'denoise'"
        )
      begin.append(marker)
    source, target = map(sp.Encode, json.loads(text))
    source = [*begin, *source[: S - len(begin) - 1], sp.eos_id()]
    target = [*target, sp.eos_id()][:T]
    return np.array(source, np.int32), np.array(target, np.int32)

  def __call__(self, dataset: tf.data.Dataset, sequence_length=None):
    sizes = sequence_length or {}
    S, T = (sizes.get(side) or 1 << 30 for side in ('inputs', 'targets'))

    def frame(example):
      made = tf.numpy_function(
        lambda raw: self.pair(raw.decode(), S, T), (example['text'],),
        (tf.int32, tf.int32), stateful=False,
      )  # fmt: skip
      for ids in made:
        ids.set_shape([None])
      return dict(zip(('inputs', 'targets'), made))

    return dataset.map(frame)


def register_pairs(
  path: str | None,
  mode: str = 'clm',
  skip_bad: bool = False,
  cache_dir: str | None = None,
) -> None:
  """Registers `udhr_language`, and `pairs` of a path or of a cache's rows.

  Args:
    path, skip_bad: see `PairsSource`.
    mode: see `FramePairs`.
    cache_dir: a cache.
  """
  register = lambda name, source: tasks.register_task(
    name, source, [FramePairs(mode)]
  )
  register('udhr_language', LanguagePairs())
  if path is not None:
    register('pairs', PairsSource(path, HELD_OUT, skip_bad))
  elif cache_dir is not None:
    folder = f'{cache_dir.rstrip("/")}/pairs-train'
    if tf.io.gfile.exists(f'{folder}/{token_store.MANIFEST}'):
      register('pairs', PairRows(folder))
