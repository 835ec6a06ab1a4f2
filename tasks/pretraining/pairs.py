"""Sources of pairs of input and target, to fine-tune on.

A pair is stored as a text, see `pair_text`, so that its source has what all
sources of `sources` have.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

from atm import fileio, storage
from atm.data import languages, text_lines, token_store
from atm.data.sentences import split_sentences
from atm.messages import quote
from atm_tasks.pretraining import records, sources, tasks, text_folders
from atm_tasks.pretraining.pair_text import (
  PAIR_FIELDS,
  Direction,
  PairReader,
  pair_to_text,
  text_to_direction,
)
from atm_tasks.pretraining.text_source import SPLITS, RowsOnly, TextSource

HELD_OUT = 0.05  # share of a single file


class PairsSource(sources.RecordSource):
  """Pairs of a file, or of a folder with a file or more for each split.

  Args:
    path: a file of JSONL or TSV, of whose pairs `held_out` are `validation`,
      chosen by their input; or a folder with train*.jsonl and validation*.jsonl
      (or .tsv); or two files, of inputs and of targets, line by line. Each may
      end in .gz or .zst.
    held_out: a share; without effect on a folder.
    skip_bad: skip and count lines that cannot be read.
    reader: reads a line.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is of another kind, or `held_out` is no share.
  """

  def __init__(
    self,
    path: str | tuple[str, str],
    held_out: float,
    skip_bad: bool = False,
    reader: PairReader = PairReader(),
  ):
    self.path, self.reader, self._targets = path, reader, None
    if not isinstance(path, str):  # two files: targets are read beside inputs
      path, self._targets = _check_aligned(path)
    self._parts = {
      split: [records.FilePart(path)]
      if self._targets
      else _list_parts(path, split)
      for split in SPLITS
    }
    if storage.is_folder(path):
      parts = itertools.chain.from_iterable(self._parts.values())
      taken = {os.path.basename(part.path) for part in parts}
      unread = text_folders.list_unread(path, taken)
      text_folders.say_unread(f'PAIRS = {path!r}', tuple(unread))
    self.by_content, self.skip_bad = not storage.is_folder(path), skip_bad
    super().__init__(held_out if self.by_content else 0.0)

  @functools.cached_property
  def made_from(self) -> dict:
    """The settings and the pairs that rows depend on."""
    parts = itertools.chain.from_iterable(self._parts.values())
    digest = hashlib.sha256()
    paths = dict.fromkeys(part.path for part in parts)
    for path in (*paths, *filter(None, [self._targets])):
      with storage.open_binary(path) as f:
        digest.update(hashlib.file_digest(f, 'sha256').digest())
    facts = {'held_out': self.held_out, 'pairs': digest.hexdigest()}
    given = [self.reader.source_language, self.reader.target_language]
    # Rows made before pairs had languages or columns say nothing of them.
    facts |= {'default_languages': given} if any(given) else {}
    columns = self.reader.columns
    return facts | ({'columns': list(columns)} if columns else {})

  def parts(self, split: str) -> list[records.FilePart]:
    return self._parts[split]

  def read(self, part: records.FilePart) -> Iterator[tuple[int, Any]]:
    if self._targets is None:
      return super().read(part)
    return _read_aligned(part.path, self._targets)

  def parse(self, part: records.FilePart, record) -> str:
    if self._targets is not None:
      texts = dict(zip(PAIR_FIELDS, map(text_lines.decode, record)))
      # A line that one side lacks is blank there, to keep the others' places.
      if not all(text.strip() for text in texts.values()):
        return ''
      return _join(self.reader.read_row(texts))
    text = text_lines.decode(record)
    if not text or text.isspace():
      return ''
    if part.stored[0] != 'tsv':
      return _join(self.reader.read(text))
    header = _read_header(part.path) if self.reader.has_header else ()
    if header and text.split('\t') == list(header):
      return ''
    return _join(self.reader.read_columns(text, header))

  def clean(self, document: str) -> str:
    return document  # spaces may mean something, in code say

  def draw(self, text: str) -> float:
    # Inputs are often alike, and so would be their CRCs.
    source = json.loads(text)[0]
    source = source if isinstance(source, str) else json.dumps(source)
    digest = hashlib.blake2b(source.encode(), digest_size=4)
    return int.from_bytes(digest.digest(), 'big') / 2**32

  def count_directions(self) -> dict[Direction, int]:
    """Counts the pairs of each direction, held-out ones of a file included.

    Returns none where the first pair names no languages.

    Raises:
      ValueError: a line that cannot be read, or has no languages as the first
        has; names file and line.
    """
    parts = itertools.chain.from_iterable(self._parts.values())
    paths = dict.fromkeys(part.path for part in parts)
    paths = (*paths, *filter(None, [self._targets]))
    files = tuple(
      (path, storage.get_size(path), storage.get_time(path)) for path in paths
    )
    return _count_directions(self.path, self.skip_bad, self.reader, files)


class PairRows(RowsOnly):
  """Pairs of which only a cache's rows are there, as on a training host."""

  def __init__(self, folder: str):
    super().__init__('pairs', held_out=0.0)
    self.named_by = 'PAIRS'
    facts = token_store.read_manifest(folder)['made_from']
    where = f'{folder}/{token_store.MANIFEST}, made_from'
    entries = {
      'held_out': float, 'pairs': str, 'languages?': [str],
      'default_languages?': list, 'columns?': list, 'data_set?': str,
    }  # fmt: skip
    fileio.check_json(facts, entries, where)
    names = 'held_out', 'pairs', 'default_languages', 'columns'
    self.rows = {name: facts[name] for name in names if name in facts}
    # None: the rows are not of one direction alone.
    self.direction = tuple(facts.get('languages', ())) or None
    self.data_set = facts.get('data_set', '')

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


def _list_parts(path: str, split: str) -> list[records.FilePart]:
  """Lists the files of a split; raises the errors of `PairsSource`."""
  if not isinstance(path, str):
    raise ValueError(f'PAIRS = {path!r}: expected a file or folder, in quotes')
  if not storage.exists(path):
    raise FileNotFoundError(f'PAIRS = {path!r}: no such file or folder')
  paths = [path]
  if is_folder := storage.is_folder(path):
    names = sorted(
      n for n in storage.list_names(path) if n.lower().startswith(split)
    )
    paths = [os.path.join(path, name) for name in names]
  kind = lambda path: text_lines.detect_text_format(path)[0]
  paths = [path for path in paths if kind(path) in ('jsonl', 'tsv')]
  if not paths:
    raise ValueError(
      f'PAIRS = {path!r}: expected a .jsonl or .tsv file, or a folder with '
      'train.jsonl and validation.jsonl, or .tsv; each may end in .gz or .zst'
    )
  for name in map(os.path.basename, paths if is_folder else ()):
    if not name.startswith(split):
      raise ValueError(
        f'PAIRS = {path!r}: {name} is not read. Did you mean {name.lower()!r}?'
      )
  for each in paths:
    fileio.check_regular(each)
  text_folders.check_copies(f'PAIRS = {path!r}', paths)
  return [unit for path in paths for unit in records.split_file(path, 64 << 20)]


def _check_aligned(paths) -> tuple[str, str]:
  """Returns the files of inputs and of targets; raises the errors of one."""
  if not (isinstance(paths, list | tuple) and len(paths) == 2):
    raise ValueError(
      f'PAIRS = {quote(paths)}: expected a file or folder, or two files, of '
      'inputs and of targets'
    )
  for path in paths:
    if not isinstance(path, str) or not storage.exists(path):
      raise FileNotFoundError(f'PAIRS = {quote(paths)}: no file {path!r}')
    fileio.check_regular(path)
  return tuple(paths)


def _read_aligned(inputs: str, targets: str) -> Iterator[tuple[int, tuple]]:
  """Yields (number, (line, line)) of two files that are equally long."""
  lines = (text_lines.read_lines(path) for path in (inputs, targets))
  for number, pair in enumerate(itertools.zip_longest(*lines), 1):
    if None in pair:
      longer = targets if pair[0] is None else inputs
      raise ValueError(
        f'PAIRS: {longer} has a line {number:,}, and '
        f'{inputs if longer == targets else targets} has not: expected two '
        'files whose lines belong together'
      )
    yield number, pair


@functools.lru_cache(maxsize=64)
def _read_header(path: str) -> tuple[str, ...]:
  """Returns the names in the first line of a TSV file."""
  first = next(text_lines.read_lines(path), b'')
  return tuple(text_lines.decode(first, 1).split('\t'))


def _join(pair: tuple[str, str, Direction | None]) -> str:
  """Returns the text of what a `PairReader` read."""
  source, target, direction = pair
  return pair_to_text(source, target, direction or ())


@functools.lru_cache(maxsize=16)  # tasks are registered several times in a run
def _count_directions(
  path: str | tuple[str, str],
  skip_bad: bool,
  reader: PairReader,
  files: tuple,
) -> dict[Direction, int]:
  """Counts the pairs of each direction, see `PairsSource.count_directions`.

  `files` keys the cache: files that have changed are counted anew.
  """
  del files
  source, counts = PairsSource(path, 0.0, skip_bad, reader), {}
  for split in SPLITS[:1] if source.by_content else SPLITS:
    for shard in range(len(source.list_shards(split))):
      for text in source.documents(split, shard):
        if not text:
          continue  # a blank line, or a header
        direction = text_to_direction(text)
        if direction is None:
          return {}
        if not source.reader.required:
          source.reader = dataclasses.replace(reader, required=True)
        # Of a folder only those to train on count.
        counts[direction] = counts.get(direction, 0) + (split == 'train')
  return counts
