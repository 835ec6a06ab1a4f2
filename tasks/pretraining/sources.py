"""Sources of text by language: folders and TFDS data sets.

Their base is `text_source.TextSource`.
"""

import collections
import functools
import glob
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

from atm import storage
from atm.data import text_lines
from atm.messages import check_choice, check_number
from atm_tasks.pretraining import records, text_folders
from atm_tasks.pretraining.text_source import SPLITS, TextSource

_SHARD = re.compile(r'\.(tfrecord|array_record)')
_READ_ERRORS = (OSError, RuntimeError, LookupError, ValueError)

# --- A folder


class RecordSource(TextSource):
  """Texts that are records of files, read one at a time.

  Attributes:
    skip_bad: skip records that cannot be read, and count them.
    text_field: the field, column or feature that `read_records` looks for.
  """

  skip_bad = False
  text_field = 'text'

  def __init__(self, held_out: float):
    super().__init__(held_out)
    self._bad: dict[int, int] = {}

  def parts(self, split: str) -> list[records.FilePart]:
    """Lists the parts of files that hold a split."""
    raise NotImplementedError

  def read(self, part: records.FilePart) -> Iterator[tuple[int, Any]]:
    """Yields the number and content of a part's records."""
    return records.read_records(part, self.text_field)

  def parse(self, part: records.FilePart, record: bytes | None) -> str:
    """Returns the document of a record; raises `records.BadRecord`."""
    return records.parse_record(part, record, self.text_field)

  def list_shards(self, split: str) -> list[str]:
    """Lists the parts: a file, or 'path#k/n'."""
    check_choice('split', split, SPLITS)
    return [str(part) for part in self.parts(split)]

  def bad(self, shard: int) -> int:
    return self._bad.get(shard, 0)

  @functools.cached_property
  def bound(self) -> float:
    bound = super().bound
    self._bad.clear()  # what was skipped on the way is no reading's
    return bound

  def documents(self, split: str, shard: int) -> Iterator[str]:
    part, number = self.parts(split)[shard], 0
    self._bad[shard] = 0  # of an earlier reading, or of the other split
    found = self.read(part)
    while True:
      number += 1  # of what comes next, or of where the file breaks
      try:
        number, record = next(found)
        yield self.parse(part, record)
      except StopIteration:
        return
      except records.BadRecord as e:
        if not self.skip_bad:
          place = records.describe_place(part, e.number or number)
          raise ValueError(f'{place}: {e}') from e
        self._bad[shard] += 1


class FolderSource(RecordSource):
  """The documents of one language in a folder, of an object store, too.

  They are in LANG.EXT, LANG-anything.EXT, LANG.anything.EXT and LANG/**.EXT;
  EXT is txt (a document a line), jsonl or json (an object a line, or an array
  of them), each also with .gz, .zst, .bz2 or .xz, parquet, or tfrecord (of
  tf.train.Example), also with -00000-of-00012 or .gz.

  Args:
    folder: the folder.
    language: LANG.
    held_out: share of the texts in the `validation` split.
    text_field: the field, column or feature that holds the text.
    skip_bad: skip what cannot be read, and count it in `skipped`; a file that
      breaks in the middle keeps what came before.
    piece_bytes: plain text and Parquet beyond this size is several parts.

  Raises:
    ValueError: no such text, or an argument out of range.
  """

  def __init__(
    self,
    folder: str,
    language: str,
    held_out: float = 0.01,
    text_field: str = 'text',
    skip_bad: bool = False,
    piece_bytes: int = 64 << 20,
  ):
    super().__init__(held_out)
    self.files = text_folders.find_files(folder, language).get(language)
    if not self.files:
      known = ', '.join(text_folders.list_languages(folder))
      raise ValueError(
        f'TEXT_DIR = {folder!r}: no text of {language!r} there. Known: {known}.'
      )
    text_folders.check_copies(f'TEXT_DIR = {folder!r}', self.files)
    if any(records.detect_format(path)[1] == 'zst' for path in self.files):
      text_lines.import_zstandard()
    self.text_field, self.skip_bad = text_field, skip_bad
    self.piece_bytes = check_number('piece_bytes', piece_bytes, least=1)

  @functools.cached_property
  def units(self) -> list[records.FilePart]:
    """The parts of all files, which have both splits."""
    found = (records.split_file(path, self.piece_bytes) for path in self.files)
    return list(itertools.chain.from_iterable(found))

  def parts(self, split: str) -> list[records.FilePart]:
    return self.units

  @property
  def skipped(self) -> collections.Counter:
    """Path -> its records that the last reading skipped."""
    counts = collections.Counter()
    for shard, count in self._bad.items():
      counts[self.units[shard].path] += count
    return +counts


# --- TFDS


class TfdsSource(TextSource):
  """The documents of one language in a TFDS data set prepared on disk.

  Where the data set has no validation split, it is a share by content of
  `train`, not a slice such as train[:1%]: as with folders, a repeated text
  stays on one side and the share does not depend on the order of the files.
  Reading `validation` then costs a pass over all of it, once.

  Args:
    name: such as 'wikipedia/20230601.{language}', a config for each language,
      or 'c4/multilingual', whose splits are 'en', 'en-validation', ...; the
      newest version is read unless ':1.0.0' ends the name.
    language: the language.
    held_out: share in `validation`, where that is not stored apart.
    data_dir: where data sets are; TFDS_DATA_DIR or ~/tensorflow_datasets.

  Reading raises ValueError where the data set is not there, or has no such
  language or no text.
  """

  def __init__(
    self,
    name: str,
    language: str,
    held_out: float = 0.01,
    data_dir: str | None = None,
  ):
    super().__init__(held_out)
    self.pattern, self.language, self.data_dir = name, language, data_dir
    self.name = name.replace('{language}', language)

  @functools.cached_property
  def _builder(self):
    """Opened when first read: naming a data set costs nothing."""
    return _open_prepared(self.name, self.data_dir)[0]

  @functools.cached_property
  def _folder(self) -> str:
    """The data set's folder, whose shards an object store's builder lacks."""
    return _open_prepared(self.name, self.data_dir)[1]

  @functools.cached_property
  def _stored(self) -> dict[str, str]:
    """Our splits -> the data set's."""
    splits = self._builder.info.splits
    train, held = self.language, f'{self.language}-validation'
    if '{language}' in self.pattern and train not in splits:
      train, held = 'train', 'validation'
    if train not in splits:
      raise ValueError(
        f'TFDS {self.pattern!r}: no split {train!r}. Known: '
        f'{", ".join(splits)}. A config for each language is written like '
        'wikipedia/20230601.{language}'
      )
    return {'train': train, 'validation': held if held in splits else train}

  @property
  def by_content(self) -> bool:
    return len(set(self._stored.values())) == 1

  def _numbers(self, split: str) -> list[int]:
    """Returns the numbers of the split's files that are not empty."""
    check_choice('split', split, SPLITS)
    lengths = self._builder.info.splits[self._stored[split]].shard_lengths
    return [i for i, length in enumerate(lengths) if length]

  def list_shards(self, split: str) -> list[str]:
    """Lists the split's files that are not empty."""
    numbers = self._numbers(split)
    return [self._get_path(split, i) for i in numbers]

  def _get_path(self, split: str, number: int) -> str:
    """Returns the path of a file of a split."""
    paths = self._builder.info.splits[self._stored[split]].filepaths
    return os.path.join(self._folder, os.path.basename(paths[number]))

  def documents(self, split: str, shard: int) -> Iterator[str]:
    number, done = self._numbers(split)[shard], 0
    info = self._builder.info.splits[self._stored[split]]
    length = info.shard_lengths[number]
    try:
      for raw in self._examples(split, number):
        yield records.parse_example(raw, 'text')
        done += 1
      if done < length:
        raise records.BadRecord(f'{length} records', done)
    except (*_READ_ERRORS, records.BadRecord) as e:
      if not isinstance(e, records.BadRecord):
        e = records.BadRecord('a whole record', records.shorten_error(e))
      path = self._get_path(split, number)
      raise ValueError(f'{path}, record {done + 1}: {e}') from e

  def _examples(self, split: str, number: int) -> Iterator[bytes]:
    """Yields the serialized tf.train.Examples of file `number` of a split."""
    # Parsing them here, not one by one in tf.data, is several times as fast.
    path = self._get_path(split, number)
    if self._builder.info.file_format.value == 'tfrecord':
      yield from records.read_tfrecord(path)
    else:
      yield from records.read_array_record(path)


def find_prepared(name: str, data_dir: str | None) -> tuple[str | None, str]:
  """Finds the newest version of a TFDS data set that is prepared on disk.

  Args:
    name: 'wikipedia/20230601.en'; ':1.0.0' behind it names the version.
    data_dir: where TFDS data is; TFDS_DATA_DIR or ~/tensorflow_datasets.

  Returns:
    (its folder or None, where it was looked for and how to prepare it).
  """
  data_dir = data_dir or os.environ.get('TFDS_DATA_DIR')
  data_dir = os.path.expanduser(data_dir or '~/tensorflow_datasets')
  name, _, version = name.partition(':')
  pattern = os.path.join(data_dir, name, version or '*.*.*', 'features.json')
  root = data_dir if storage.is_remote(data_dir) else glob.escape(data_dir)
  found = storage.find_paths(pattern.replace(data_dir, root, 1))
  folders = [os.path.dirname(path) for path in found]
  numbers = lambda path: [int(n) for n in re.findall(r'\d+', path)[-3:]]
  folders = [f for f in folders if re.search(r'\d+\.\d+\.\d+$', f)]
  hint = (
    f'looked for {pattern}. Prepare it with '
    f'`tfds build {name} --data_dir={data_dir}`'
  )
  return max(folders, key=numbers, default=None), hint


def _open_prepared(name: str, data_dir: str | None) -> tuple:
  """Opens a prepared data set; neither downloads nor prepares.

  Returns:
    (its builder, its folder): of an object store, the builder's own folder has
    what describes the data, without the shards.

  Raises:
    ValueError: there are none, or they are of another kind.
  """
  import tensorflow_datasets as tfds

  folder, hint = find_prepared(name, data_dir)
  if folder is None:
    raise ValueError(f'TFDS {name.split(":")[0]!r}: not prepared, {hint}')
  described = storage.fetch(folder, lambda name: not _SHARD.search(name))
  builder = tfds.builder_from_directory(described)
  kind, features = builder.info.file_format.value, builder.info.features
  if kind not in ('tfrecord', 'array_record') or 'text' not in features:
    raise ValueError(
      f'TFDS {name!r}: expected tfrecord or array_record with a feature '
      f'`text`; got {kind} with {sorted(features)}'
    )
  return builder, folder
