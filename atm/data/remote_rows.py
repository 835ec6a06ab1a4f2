"""Reads rows of an array_record file that lies in an object store.

array_record's reader has a client of its own for gs://, with other settings and
without `storage`'s patience, and none for s3://. So it is given a file of the
same length in memory, without content but for what is asked for: first the
file's end, which tells where the rows are, then each row. A row costs one
request of its own bytes, and the reader compares its hash as ever.

The end of a file, as array_record and Riegeli write it: blocks of 64 kB begin
with a header of 24 bytes; chunks, with a header of 40, go through them. The
last block is a chunk with the offset of another one, the footer: of each row
the offset of its chunk, since a chunk holds one (`token_store.WRITER`).
"""

import os
import struct
import threading

import numpy as np

from atm import storage

FILE_BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40
ROW_BYTES = 12  # of a row in the footer; 6 were measured
# Bytes of rows in memory at which a file's are dropped.
MOST_HELD = 1 << 18


class RemoteRowsFile:
  """The rows of one file."""

  def __init__(self, path: str, size: int, rows: int):
    """Reads the end of a file of `size` bytes and `rows` rows.

    Raises:
      OSError: the object store failed for too long.
      RuntimeError: it is no such file, or damaged.
    """
    from array_record.python import array_record_module

    self.path, self.size = path, size
    start = max(0, size - 2 * FILE_BLOCK - ROW_BYTES * rows)
    tail = storage.read_range(path, start, size)
    try:
      footer = _find_footer(tail)
      if footer < start:
        tail = storage.read_range(path, footer, start) + tail
        start = footer
      offsets = _read_offsets(tail, footer, start)
    except (IndexError, ValueError, struct.error) as e:
      raise RuntimeError(f'its end is not as written: {e}') from e
    self._tail, self._start = tail, start
    self._offsets = np.array([*offsets, footer])
    self._lock, self._held = threading.Lock(), 0
    self._memory = os.memfd_create('rows')
    self._clear()
    self._reader = array_record_module.ArrayRecordReader(
      f'/proc/self/fd/{self._memory}', 'readahead_buffer_size:0'
    )

  def _clear(self) -> None:
    """Leaves only the end of the file in memory."""
    os.ftruncate(self._memory, 0)
    os.ftruncate(self._memory, self.size)
    os.pwrite(self._memory, self._tail, self._start)
    self._held = 0

  def read(self, start: int, end: int) -> list[bytes]:
    """Returns rows start to end - 1, of int32 as bytes, by one request.

    Raises IndexError where there is none, RuntimeError where one is damaged.
    """
    first, last = int(self._offsets[start]), int(self._offsets[end])
    content = storage.read_range(self.path, first, last)
    with self._lock:
      if self._held > MOST_HELD:
        self._clear()
      os.pwrite(self._memory, content, first)
      self._held += len(content)
      return self._reader.read(start, end)

  def __del__(self):
    if hasattr(self, '_memory'):
      os.close(self._memory)


def _find_footer(tail: bytes) -> int:
  """Returns the offset of the footer, from a file's last bytes."""
  last = tail[-FILE_BLOCK + BLOCK_HEADER + CHUNK_HEADER :]
  # Not compressed; three records alike: two fields, the offset and a magic.
  lengths = last[1]
  if last[0] != 0 or last[2 + lengths] != 0x08:
    raise ValueError('the last block has no postscript')
  return _read_varint(last, 3 + lengths)[0]


def _read_offsets(tail: bytes, footer: int, start: int) -> list[int]:
  """Returns where each row's chunk begins; `tail` begins at `start`."""
  header, at = _read_through(tail, footer, start, CHUNK_HEADER)
  _, length, _, kind, _ = struct.unpack('<5Q', header)
  if kind & 0xFF != ord('r'):
    raise ValueError('the footer is no chunk of records')
  content, _ = _read_through(tail, at, start, length)
  packing, size, at = content[0], *_read_varint(content, 1)
  sizes = _decompress(packing, content[at : at + size])
  values = _decompress(packing, content[at + size :])
  offsets, at, value = [], 0, 0
  while at < len(sizes):
    length, at = _read_varint(sizes, at)
    record, value = values[value : value + length], value + length
    # Field 1 is the offset; the first record, of other fields, is of the file.
    if record[:1] == b'\x08':
      offsets.append(_read_varint(record, 1)[0])
  return offsets


def _read_through(tail, at: int, start: int, count: int) -> tuple[bytes, int]:
  """Returns `count` bytes from `at`, without headers of blocks, and the end."""
  pieces = []
  while count:
    at += BLOCK_HEADER if at % FILE_BLOCK == 0 else 0
    length = min(count, FILE_BLOCK - at % FILE_BLOCK)
    pieces.append(tail[at - start : at - start + length])
    at, count = at + length, count - length
  return b''.join(pieces), at


def _decompress(packing: int, content: bytes) -> bytes:
  if packing == 0:
    return content
  if packing != ord('z'):
    raise ValueError(f'compression {chr(packing)!r}: expected zstd')
  import pyarrow

  size, at = _read_varint(content, 0)
  try:
    return pyarrow.decompress(content[at:], size, 'zstd', asbytes=True)
  except OSError as e:
    raise ValueError(e) from e


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
  """Returns a number as protocol buffers write it, and where it ends."""
  value = shift = 0
  while True:
    byte = content[at]
    value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
    if byte < 0x80:
      return value, at
