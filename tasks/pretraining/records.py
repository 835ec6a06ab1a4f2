"""Reads the records of a file, or of a part of one, in any known format.

A record is bytes: a line, a cell of a Parquet column or a serialized
tf.train.Example, of which `parse_record` makes text. Both raise `BadRecord`, so
that the caller may name the place, or skip it.
"""

import codecs
import collections
import dataclasses
import functools
import json
import os
import re
import zlib
from collections.abc import Iterator

import tensorflow as tf

BATCH = 256  # records in memory at once
_SHARD = r'(?:-\d+-of-\d+)?'
_STORED = re.compile(
  r'.*\.(?:(txt|jsonl?)(?:\.(gz|zst))?|(parquet)'
  rf'|(tfrecord){_SHARD}(?:\.(gz){_SHARD})?)'
)


class BadRecord(Exception):
  """A record that cannot be read."""

  def __init__(self, expected: str, got):
    super().__init__(f'expected {expected}; got {got}')


@dataclasses.dataclass(frozen=True)
class FilePart:
  """Part k of n, from 0, of a file: a unit of work."""

  path: str
  k: int = 0
  n: int = 1

  @functools.cached_property
  def stored(self) -> tuple[str, str]:
    return detect_format(self.path)

  def __str__(self) -> str:
    return self.path if self.n == 1 else f'{self.path}#{self.k}/{self.n}'

  def span(self, total: int) -> tuple[int, int]:
    """Returns this part's [start, end) of `total` bytes or row groups."""
    return total * self.k // self.n, total * (self.k + 1) // self.n


def detect_format(path: str) -> tuple[str, str] | None:
  """Returns (format, compression) by a file's name; None for other names."""
  match = _STORED.fullmatch(path)
  if not match:
    return None
  text, text_packing, parquet, records, record_packing = match.groups()
  kind = 'jsonl' if text == 'json' else text or parquet or records
  return kind, text_packing or record_packing or ''


def split_file(path: str, piece_bytes: int) -> list[FilePart]:
  """Splits text and Parquet into parts of `piece_bytes`; others are one."""
  kind, packing = detect_format(path)
  if packing or kind == 'tfrecord':
    return [FilePart(path)]
  n = max(1, -(-os.path.getsize(path) // piece_bytes))
  if kind == 'parquet' and n > 1:
    try:
      n = max(1, min(n, _parquet(path).num_row_groups))
    except BadRecord:
      n = 1  # reading it will tell
  return [FilePart(path, k, n) for k in range(n)]


def read_records(unit: FilePart, field: str) -> Iterator[bytes | None]:
  """Yields the lines, cells or serialized examples of a part.

  Raises:
    BadRecord: the rest cannot be read.
  """
  kind, packing = unit.stored
  if kind == 'parquet':
    yield from _read_cells(unit, field)
  elif kind == 'tfrecord':
    yield from read_tfrecord(unit.path, packing)
  else:
    lines = (
      _split_lines(_decompress(unit.path, packing))
      if packing
      else _read_lines(unit)
    )
    first = next(lines, b'')
    yield first if unit.k else first.removeprefix(codecs.BOM_UTF8)
    yield from lines


def parse_record(unit: FilePart, record: bytes | None, field: str) -> str:
  """Returns the text of a record of a part.

  Raises:
    BadRecord: it is not UTF-8, or has no string `field`.
  """
  kind, _ = unit.stored
  if kind == 'jsonl':
    return _parse_json(record, field)
  if kind == 'tfrecord':
    return parse_example(record, field)
  if record is None:
    raise BadRecord(f'a string `{field}`', 'null')
  return decode_utf8(record)


def describe_place(unit: FilePart, number: int) -> str:
  """Names the place in its file of record `number`, from 1, of a part."""
  kind, _ = unit.stored
  what = 'line' if kind in ('txt', 'jsonl') else 'record'
  return f'{unit.path}, {what} {_count_before(unit, kind) + number}'


def decode_utf8(raw: bytes) -> str:
  """Decodes bytes; raises BadRecord unless they are UTF-8."""
  try:
    return raw.decode('utf-8')
  except UnicodeDecodeError as e:
    near = raw[max(0, e.start - 20) : e.start + 40]
    raise BadRecord('UTF-8', repr(near)) from e


def _parse_json(raw: bytes, field: str) -> str:
  line = decode_utf8(raw)
  if not line or line.isspace():
    return ''
  try:
    text = json.loads(line)[field]
    if b'\\u' in raw:
      text.encode()  # half of a surrogate pair cannot be
    if isinstance(text, str):
      return text
  except (ValueError, LookupError, TypeError, AttributeError,
          RecursionError):  # fmt: skip
    pass
  raise BadRecord(f'an object with a string `{field}`', repr(raw[:60]))


def parse_example(raw: bytes, field: str) -> str:
  """Returns the text of a serialized tf.train.Example, or raises BadRecord."""
  expected = f'a tf.train.Example with a bytes feature `{field}`'
  try:
    features = tf.train.Example.FromString(raw).features.feature
  except Exception as e:  # protobuf's class is not ours to import
    raise BadRecord(expected, repr(raw[:60])) from e
  if field not in features or len(features[field].bytes_list.value) != 1:
    raise BadRecord(expected, f'features {sorted(features)}')
  return decode_utf8(features[field].bytes_list.value[0])


def _first_line(f, start: int) -> int:
  """Goes to where the first line begins that begins at `start` or behind."""
  f.seek(max(0, start - 1))
  return start - 1 + len(f.readline()) if start else 0


def _read_lines(unit: FilePart) -> Iterator[bytes]:
  """Yields the lines that begin in the part."""
  start, end = unit.span(os.path.getsize(unit.path))
  with open(unit.path, 'rb', buffering=1 << 20) as f:
    at = _first_line(f, start)
    while at < end and (line := f.readline()):
      at += len(line)
      yield line


def _count_before(unit: FilePart, kind: str) -> int:
  """Counts the lines or rows of the file before the part."""
  if unit.n == 1:
    return 0
  if kind == 'parquet':
    file = _parquet(unit.path)
    start, _ = unit.span(file.num_row_groups)
    return sum(file.metadata.row_group(i).num_rows for i in range(start))
  with open(unit.path, 'rb') as f:
    left = _first_line(f, unit.span(os.path.getsize(unit.path))[0])
    f.seek(0)
    count = 0
    while left > 0 and (chunk := f.read(min(left, 1 << 20))):
      count, left = count + chunk.count(b'\n'), left - len(chunk)
  return count


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
  """Yields the lines of a stream of bytes, without their ends."""
  pending = []
  for chunk in chunks:
    first, *rest = chunk.split(b'\n')
    pending.append(first)
    if rest:
      yield b''.join(pending)
      yield from rest[:-1]
      pending = rest[-1:]
  if last := b''.join(pending):
    yield last


def import_zstandard():
  """Imports an optional module; its absence says what to install."""
  try:
    import zstandard
  except ImportError as e:
    raise ImportError(
      "reading .zst needs zstandard: pip install 'atm[zstd]'"
    ) from e
  return zstandard


def _decompress(path: str, packing: str) -> Iterator[bytes]:
  """Yields the bytes of a compressed file of any number of members.

  Raises:
    BadRecord: it is corrupt, or ends too early.
  """
  if packing == 'gz':
    error, new = zlib.error, functools.partial(zlib.decompressobj, wbits=31)
  else:
    zstandard = import_zstandard()
    error = zstandard.ZstdError
    new = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
  expected = f'.{packing} data to its end'
  member, whole = new(), False
  with open(path, 'rb') as f:
    while chunk := f.read(1 << 16):
      # Zeros may pad a member.
      while chunk := chunk.lstrip(b'\0') if whole else chunk:
        try:
          yield member.decompress(chunk)
        except error as e:
          raise BadRecord(expected, e) from e
        chunk, whole = member.unused_data, member.eof
        if whole:
          member = new()
  if not whole:
    raise BadRecord(expected, 'the end of the file')


def read_tfrecord(path: str, packing: str = '') -> Iterator[bytes]:
  """Yields the records of a TFRecord file; raises BadRecord where it breaks."""
  options = {'compression_type': 'GZIP' if packing else ''}
  done = 0
  # A batch is lost with its first bad record, so those are read one by one.
  for size in (BATCH, 1):
    dataset = tf.data.TFRecordDataset(path, **options).skip(done).batch(size)
    try:
      for batch in dataset.as_numpy_iterator():
        yield from batch
        done += len(batch)
      break
    except tf.errors.OpError as e:
      if size == 1:
        raise BadRecord('a whole TFRecord', shorten_error(e)) from e
  if packing:  # TensorFlow takes a file that ends too early for whole
    collections.deque(_decompress(path, packing), maxlen=0)


def shorten_error(error: Exception) -> str:
  """Returns the first line of an error, without TensorFlow's additions."""
  line = (str(error).splitlines() or [''])[0]
  return re.sub(r'^\{\{.*?\}\} | \[Op:\w+\].*$', '', line)


def _parquet(path: str):
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    return pq.ParquetFile(path, page_checksum_verification=True)
  except (pa.ArrowException, OSError) as e:
    raise BadRecord('a whole Parquet file', shorten_error(e)) from e


def _read_cells(unit: FilePart, field: str) -> Iterator[bytes | None]:
  """Yields a column's cells of a part, BATCH rows in memory at once."""
  import pyarrow as pa

  with _parquet(unit.path) as file:
    names = file.schema_arrow.names
    if field not in names:
      raise BadRecord(f'a column {field!r} of strings', f'columns {names}')
    groups = range(*unit.span(file.num_row_groups))
    try:
      for batch in file.iter_batches(BATCH, list(groups), [field]):
        column = batch.column(0)
        if pa.types.is_dictionary(column.type):
          column = column.dictionary_decode()
        if not re.fullmatch(
          '(large_)?(string|binary)(_view)?', str(column.type)
        ):
          raise BadRecord(f'a column {field!r} of strings', f'of {column.type}')
        # As bytes, so that one cell that is not UTF-8 does not take the rest.
        yield from column.cast(pa.large_binary()).to_pylist()
    except (pa.ArrowException, OSError) as e:
      raise BadRecord('a whole Parquet file', shorten_error(e)) from e
