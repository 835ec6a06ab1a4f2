"""Atomic writes, JSON and checksums of files."""

from __future__ import annotations

import json
import os
import zlib


def checksum(path: str) -> int:
  """CRC-32 of a file, read in pieces of 16 MB."""
  crc = 0
  with open(path, 'rb') as f:
    while piece := f.read(1 << 24):
      crc = zlib.crc32(piece, crc)
  return crc


def write_json(path: str, value) -> None:
  """Writes a file whole or not at all."""
  partial = f'{path}.partial-{os.getpid()}'
  with open(partial, 'w') as f:
    json.dump(value, f, indent=1, sort_keys=True)
    f.flush()
    os.fsync(f.fileno())
  os.replace(partial, path)


def whole(path: str, content: bytes) -> None:
  """Writes a file whole or not at all."""
  with open(path + '.tmp', 'wb') as f:
    f.write(content)
  os.replace(path + '.tmp', path)
