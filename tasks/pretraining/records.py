"""Reads the records of a file, or of a part of one, in any known format.

A record is bytes: a line, a value of a JSON array, a cell of a Parquet column
or a serialized tf.train.Example, of which `parse_record` makes text. Both raise
`BadRecord`, so that the caller may name the place, or skip it.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator

from atm import storage
from atm.data import text_lines, text_reader
from atm.data.text_lines import BadRecord

BATCH = 256  # records in memory at once
_SHARD = r'(?:-\d+-of-\d+)?'
_BINARY = re.compile(
  rf'.*\.(?:(parquet)|(tfrecord){_SHARD}(?:\.(gz){_SHARD})?)', re.IGNORECASE
)
TEXT_KINDS = ('txt', 'jsonl')


@dataclasses.dataclass(frozen=True)
class FilePart:
  """Part k of n, from 0, of a file: a unit of work."""

  path: str
  k: int = 0
  n: int = 1

  @functools.cached_property
  def stored(self) -> tuple[str, str]:
    # Of text under another name, as of TSV, what its lines are.
    found = detect_format(self.path)
    return found or text_lines.detect_text_format(self.path)

  def __str__(self) -> str:
    return self.path if self.n == 1 else f'{self.path}#{self.k}/{self.n}'

  def span(self, total: int) -> tuple[int, int]:
    """Returns this part's [start, end) of `total` bytes or row groups."""
    return total * self.k // self.n, total * (self.k + 1) // self.n


def detect_format(path: str) -> tuple[str, str] | None:
  """Returns (format, compression) by a file's name; None for other names."""
  kind, packing = text_lines.detect_text_format(path)
  if kind in TEXT_KINDS:
    return kind, packing
  match = _BINARY.fullmatch(path)
  if not match:
    return None
  parquet, tfrecord, packing = (x and x.lower() for x in match.groups())
  return parquet or tfrecord, packing or ''


def split_file(path: str, piece_bytes: int) -> list[FilePart]:
  """Splits text and Parquet into parts of `piece_bytes`; others are one."""
  kind, packing = FilePart(path).stored
  if packing or kind == 'tfrecord':
    return [FilePart(path)]
  n = max(1, -(-storage.get_size(path) // piece_bytes))
  if kind == 'jsonl' and n > 1 and text_reader.is_array(path):
    n = 1
  if kind == 'parquet' and n > 1:
    try:
      n = max(1, min(n, _parquet(path).num_row_groups))
    except BadRecord:
      n = 1  # reading it will tell
  return [FilePart(path, k, n) for k in range(n)]


def read_records(
  unit: FilePart, field: str
) -> Iterator[tuple[int, bytes | None]]:
  """Yields (number, line, cell or serialized example) of a part.

  Numbers are lines or rows, the part's first being 1.

  Raises:
    BadRecord: the rest cannot be read.
  """
  kind, packing = unit.stored
  if kind == 'parquet':
    yield from enumerate(_read_cells(unit, field), 1)
  elif kind == 'tfrecord':
    yield from enumerate(read_tfrecord(unit.path, packing), 1)
  else:
    span = unit.span(storage.get_size(unit.path))
    yield from text_reader.iterate_records(unit.path, kind, *span)


def parse_record(unit: FilePart, record: bytes | None, field: str) -> str:
  """Returns the text of a record of a part.

  Raises:
    BadRecord: it is not UTF-8, or has no string `field`.
  """
  kind, _ = unit.stored
  if kind == 'jsonl':
    text = text_lines.decode(record)
    blank = not text or text.isspace()
    return '' if blank else text_reader.parse_object(text, (field,))[field]
  if kind == 'tfrecord':
    return parse_example(record, field)
  if record is None:
    raise BadRecord(f'a string `{field}`', 'null')
  return text_lines.decode(record) if kind == 'txt' else decode_utf8(record)


def describe_place(unit: FilePart, number: int) -> str:
  """Names the place in its file of record `number`, from 1, of a part."""
  kind, _ = unit.stored
  what = 'record' if kind in ('parquet', 'tfrecord') else 'line'
  return f'{unit.path}, {what} {_count_before(unit, kind) + number}'


def decode_utf8(raw: bytes) -> str:
  """Decodes bytes that may hold NUL; raises BadRecord unless they are UTF-8."""
  try:
    return raw.decode('utf-8')
  except UnicodeDecodeError as e:
    near = raw[max(0, e.start - 20) : e.start + 40]
    raise BadRecord('UTF-8', repr(near)) from e


def parse_example(raw: bytes, field: str) -> str:
  """Returns the text of a serialized tf.train.Example, or raises BadRecord."""
  import tensorflow as tf

  expected = f'a tf.train.Example with a bytes feature `{field}`'
  try:
    features = tf.train.Example.FromString(raw).features.feature
  except Exception as e:  # protobuf's class is not ours to import
    raise BadRecord(expected, repr(raw[:60])) from e
  if field not in features or len(features[field].bytes_list.value) != 1:
    raise BadRecord(expected, f'features {sorted(features)}')
  return decode_utf8(features[field].bytes_list.value[0])


def _count_before(unit: FilePart, kind: str) -> int:
  """Counts the lines or rows of the file before the part."""
  if unit.n == 1:
    return 0
  if kind == 'parquet':
    file = _parquet(unit.path)
    start, _ = unit.span(file.num_row_groups)
    return sum(file.metadata.row_group(i).num_rows for i in range(start))
  with storage.open_binary(unit.path) as f:
    left = text_lines.seek_line(f, unit.span(storage.get_size(unit.path))[0])
    f.seek(0)
    count = 0
    while left > 0 and (chunk := f.read(min(left, 1 << 20))):
      count, left = count + chunk.count(b'\n'), left - len(chunk)
  return count


def read_array_record(path: str) -> Iterator[bytes]:
  """Yields the records of an array_record file; raises RuntimeError."""
  from array_record.python import array_record_module

  with storage.borrowing(path) as local:
    reader = array_record_module.ArrayRecordReader(local)
    count = reader.num_records()
    for start in range(0, count, BATCH):
      yield from reader.read(start, min(start + BATCH, count))


def read_tfrecord(path: str, packing: str = '') -> Iterator[bytes]:
  """Yields the records of a TFRecord file; raises BadRecord where it breaks."""
  # TensorFlow has clients of its own for object stores, with other settings.
  with storage.borrowing(path) as local:
    yield from _read_local_tfrecord(local, packing)


def _read_local_tfrecord(path: str, packing: str) -> Iterator[bytes]:
  import tensorflow as tf

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
    collections.deque(text_lines.decompress(path, packing), maxlen=0)


def shorten_error(error: Exception) -> str:
  """Returns the first line of an error, without TensorFlow's additions."""
  line = (str(error).splitlines() or [''])[0]
  return re.sub(r'^\{\{.*?\}\} | \[Op:\w+\].*$', '', line)


def _parquet(path: str):
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    file = storage.open_binary(path) if storage.is_remote(path) else path
    return pq.ParquetFile(file, page_checksum_verification=True)
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
