"""Lines of text files: endings, compression, encoding.

endings    of a name tell what a file holds, see `detect_text_format`. Capitals
           make no difference. Each may also end in .gz, .zst, .bz2 or .xz.
lines      end in \\n or \\r\\n, and in a file without any \\n in \\r. They do
           not end in \\v, \\f, U+0085 or U+2028. Errors count them from 1.
encoding   UTF-8; a byte order mark in front is left out. Other encodings and
           NUL are refused.
"""

import bz2
import codecs
import functools
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator

from atm import fileio, storage
from atm.messages import MissingExtraError, missing_extra, one_line

STDIN = ('-', '/dev/stdin')
_ENDING = re.compile(
  r'(?:\.(txt|tsv|jsonl|ndjson|json))?(?:\.(gz|zst|bz2|xz))?', re.IGNORECASE
)
_MARKS = {  # the longest first: that of UTF-32 begins with that of UTF-16
  codecs.BOM_UTF32_LE: 'UTF-32',
  codecs.BOM_UTF32_BE: 'UTF-32',
  codecs.BOM_UTF16_LE: 'UTF-16',
  codecs.BOM_UTF16_BE: 'UTF-16',
}
_MAGIC = {
  b'\x1f\x8b': '.gz',
  b'\x28\xb5\x2f\xfd': '.zst',
  b'BZh91AY&SY': '.bz2',
  b'\xfd7zXZ\0': '.xz',
  b'PK\x03\x04': '.zip',
}


class BadRecord(ValueError):
  """A line or record that cannot be read; the caller names the place.

  Attributes:
    number: its line in the file, where that is not the caller's count.
  """

  def __init__(self, expected: str, got, number: int | None = None):
    super().__init__(f'expected {expected}; got {got}')
    self.number = number


def detect_text_format(path: str) -> tuple[str, str]:
  """Returns (kind, compression) by a file's name.

  The kind is 'txt', 'tsv' or 'jsonl', '' for other names; the compression
  'gz', 'zst', 'bz2', 'xz' or ''.
  """
  name = os.path.basename(path)
  starts = (i for i, c in enumerate(name) if c == '.')
  for start in starts:
    if match := _ENDING.fullmatch(name, start):
      kind, packing = (x.lower() if x else '' for x in match.groups())
      return 'jsonl' if kind in ('json', 'ndjson') else kind, packing
  return '', ''


def strip_endings(path: str) -> str:
  """Returns a path without its ending and that of its compression."""
  packing = detect_text_format(path)[1]
  path = path[: -len(packing) - 1] if packing else path
  return os.path.splitext(path)[0]


# --- Bytes


def import_zstandard():
  """Imports an optional module; its absence says what to install."""
  try:
    import zstandard
  except ImportError as e:
    raise MissingExtraError(
      missing_extra('reading .zst needs zstandard', 'zstd')
    ) from e
  return zstandard


def _decompressor(packing: str) -> tuple[Callable, tuple[type, ...]]:
  """Returns what makes decompressors of a member, and their errors."""
  if packing == 'gz':
    return functools.partial(zlib.decompressobj, wbits=31), (zlib.error,)
  if packing == 'bz2':
    return bz2.BZ2Decompressor, (OSError, ValueError)
  if packing == 'xz':
    return lzma.LZMADecompressor, (lzma.LZMAError,)
  zstandard = import_zstandard()
  new = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
  return new, (zstandard.ZstdError,)


def decompress(path: str, packing: str) -> Iterator[bytes]:
  """Yields the bytes of a compressed file of any number of members.

  Raises:
    BadRecord: it is corrupt, or ends too early.
  """
  new, errors = _decompressor(packing)
  expected = f'.{packing} data to its end'
  member, whole = new(), False
  with storage.open_binary(path) as f:
    while chunk := f.read(1 << 16):
      # Zeros may pad a member.
      while chunk := chunk.lstrip(b'\0') if whole else chunk:
        try:
          yield member.decompress(chunk)
        except errors as e:
          raise BadRecord(expected, one_line(e)) from e
        chunk, whole = member.unused_data, member.eof
        if whole:
          member = new()
  if not whole:
    raise BadRecord(expected, 'the end of the file')


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
  """Yields the lines of a stream of bytes, with their \\n."""
  pending = []
  for chunk in chunks:
    first, *rest = chunk.split(b'\n')
    pending.append(first)
    if rest:
      yield b''.join(pending) + b'\n'
      yield from (line + b'\n' for line in rest[:-1])
      pending = rest[-1:]
  if last := b''.join(pending):
    yield last


def seek_line(f, start: int) -> int:
  """Goes to the first line that begins at `start` or behind it."""
  f.seek(max(0, start - 1))
  return start - 1 + len(f.readline()) if start else 0


def _lines_of_file(path: str, start: int, end: int | None) -> Iterator[bytes]:
  """Yields the lines, with their \\n, that begin in [start, end) of a file."""
  if path in STDIN:
    if sys.stdin is None:
      raise ValueError(f'{path}: standard input is closed')
    yield from sys.stdin.buffer
    return
  fileio.check_regular(path)
  packing = detect_text_format(path)[1]
  if packing:
    yield from _split_lines(decompress(path, packing))
    return
  with storage.open_binary(path, 1 << 20) as f:
    at = seek_line(f, start)
    while (end is None or at < end) and (line := f.readline()):
      at += len(line)
      yield line


def _check_head(path: str, first: bytes) -> bytes:
  """Returns a file's first line without the mark of UTF-8.

  Raises:
    ValueError: it is compressed, or text of another encoding.
  """
  for magic, ending in _MAGIC.items():
    if first.startswith(magic):
      raise ValueError(
        f'{path}, line 1: expected text; got {ending} data: give the file a '
        'name that ends so'
        if ending != '.zip'
        else f'{path}, line 1: expected text; got a .zip archive: unpack it'
      )
  for mark, encoding in _MARKS.items():
    if first.startswith(mark):
      raise ValueError(
        f'{path}, line 1: expected UTF-8; got {encoding}, by its byte order '
        'mark: save the file as UTF-8'
      )
  return first.removeprefix(codecs.BOM_UTF8)


def read_lines(
  path: str, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
  """Yields the lines that begin in [start, end) of a file, without their ends.

  Raises:
    OSError: there is no such file.
    BadRecord: it is compressed, and broken.
    ValueError: it is no file, or no UTF-8 by its first bytes.
  """
  lines = _lines_of_file(path, start, end)
  first = next(lines, b'')
  if start == 0:
    first = _check_head(path, first)
    if not first.endswith(b'\n'):  # the whole file
      yield from first.removesuffix(b'\r').split(b'\r') if first else ()
      return
  if first:
    yield first.removesuffix(b'\n').removesuffix(b'\r')
  for line in lines:
    yield line.removesuffix(b'\n').removesuffix(b'\r')


def decode(raw: bytes, number: int | None = None) -> str:
  """Decodes a line; raises BadRecord unless it is UTF-8 without a NUL."""
  try:
    text = raw.decode()
  except UnicodeDecodeError as e:
    near = raw[max(0, e.start - 20) : e.start + 40]
    got = f'{near!r}, byte {e.start + 1}'
    raise BadRecord('UTF-8', got, number) from e
  if '\0' in text:
    near = raw[max(0, text.index('\0') - 20) :][:60]
    raise BadRecord('UTF-8 without NUL, not UTF-16', repr(near), number)
  return text
