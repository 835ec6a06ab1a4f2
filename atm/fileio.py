"""Atomic writes, JSON and checksums of files."""

import contextlib
import hashlib
import json
import os
import zlib


@contextlib.contextmanager
def replacing(path: str, mode: str = 'w'):
  """Yields a file that takes the place of `path` when the block ends.

  Whoever reads `path` finds the old content or the new, never a part: the new
  one is on disk before it is renamed. A block that raises changes nothing.

  Args:
    path: the file to replace or to make.
    mode: 'w' for UTF-8 text, 'wb' for bytes.

  Raises:
    OSError: it cannot be written.
  """
  partial = f'{path}.partial-{os.getpid()}'  # another process may write, too
  encoding = None if 'b' in mode else 'utf-8'
  try:
    with open(partial, mode, encoding=encoding) as f:
      yield f
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(partial)
    raise


def write_atomically(path: str, content: str | bytes) -> None:
  """Writes a file whole or not at all, see `replacing`."""
  with replacing(path, 'wb' if isinstance(content, bytes) else 'w') as f:
    f.write(content)


def write_json(path: str, value) -> None:
  """Writes JSON with sorted keys, whole or not at all."""
  with replacing(path) as f:
    json.dump(value, f, indent=1, sort_keys=True)


def hash_json(value, ensure_ascii: bool = True) -> str:
  """Returns the SHA-256, in hex, of a value as JSON; by `str` what is none."""
  text = json.dumps(
    value, sort_keys=True, default=str, ensure_ascii=ensure_ascii
  )
  return hashlib.sha256(text.encode()).hexdigest()


def checksum(path: str) -> int:
  """Returns the CRC-32 of a file, read in pieces of 16 MB."""
  crc = 0
  with open(path, 'rb') as f:
    while piece := f.read(1 << 24):
      crc = zlib.crc32(piece, crc)
  return crc
