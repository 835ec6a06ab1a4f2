"""Rows of token ids on disk: built once, verified, read by index.

A folder holds `tokens.npy` (int32, all rows end to end), `offsets.npy` (int64,
one more than rows) and `manifest.json` (what they were made from, and their
checksums). The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable

import numpy as np

FILES = ('tokens.npy', 'offsets.npy')
MANIFEST = 'manifest.json'


def checksum(path: str) -> int:
  """CRC-32 of a file, read in pieces of 16 MB."""
  crc = 0
  with open(path, 'rb') as f:
    while piece := f.read(1 << 24):
      crc = zlib.crc32(piece, crc)
  return crc


def build(directory: str, rows: Iterable[np.ndarray], made_from: dict) -> None:
  """Writes rows of ids into a new folder.

  Args:
    directory: the folder; must not exist.
    rows: int32 arrays [n], read once.
    made_from: JSON-able facts that `Rows` compares later.
  """
  partial = directory + '.partial'
  shutil.rmtree(partial, ignore_errors=True)
  os.makedirs(partial)
  offsets = [0]
  raw = os.path.join(partial, 'tokens.raw')
  with open(raw, 'wb') as f:
    for row in rows:
      f.write(np.ascontiguousarray(row, np.int32).tobytes())
      offsets.append(offsets[-1] + len(row))
  flat = (
    np.fromfile(raw, np.int32)
    if offsets[-1] < 1 << 28
    else np.memmap(raw, np.int32, mode='r')
  )
  np.save(os.path.join(partial, 'tokens.npy'), flat)
  np.save(os.path.join(partial, 'offsets.npy'), np.array(offsets, np.int64))
  os.remove(raw)
  manifest = {
    'made_from': made_from,
    'rows': len(offsets) - 1,
    'tokens': offsets[-1],
    'crc32': {name: checksum(os.path.join(partial, name)) for name in FILES},
  }
  with open(os.path.join(partial, MANIFEST), 'w') as f:
    json.dump(manifest, f, indent=1)
  os.rename(partial, directory)


class Rows:
  """Rows of a folder, memory-mapped.

  Attributes:
    tokens: how many ids there are in all.
  """

  def __init__(self, directory: str, made_from: dict | None = None):
    """Opens a folder and verifies it.

    Raises:
      ValueError: it was made from something else than `made_from`, or a file's
        checksum does not match.
    """
    with open(os.path.join(directory, MANIFEST)) as f:
      manifest = json.load(f)
    for key, wanted in (made_from or {}).items():
      found = manifest['made_from'].get(key)
      if found != wanted:
        raise ValueError(
          f'{directory} was made with {key} = {found!r}, but this run has '
          f'{wanted!r}. Remove the folder to build it again, or use another '
          'MODEL_DIR.'
        )
    for name, crc in manifest['crc32'].items():
      if checksum(os.path.join(directory, name)) != crc:
        raise ValueError(
          f'{directory}/{name} is damaged: its checksum does not match the '
          'manifest. Remove the folder to build it again.'
        )
    self.tokens = manifest['tokens']
    flat = os.path.join(directory, 'tokens.npy')
    self._flat = (
      np.load(flat, mmap_mode='r') if self.tokens else np.zeros(0, np.int32)
    )
    self._offsets = np.load(os.path.join(directory, 'offsets.npy'))

  def __len__(self) -> int:
    return len(self._offsets) - 1

  def head(self, n: int) -> np.ndarray:
    """The first n ids of all rows, end to end."""
    return self._flat[:n]

  def read(self, index: np.ndarray, width: int) -> tuple:
    """Rows by index [B] -> ([B, width] int32 with zeros behind, [B] lengths).

    Raises:
      IndexError: an index is not in [0, len(self)).
    """
    index = np.asarray(index)
    if len(index) and not 0 <= index.min() <= index.max() < len(self):
      raise IndexError(f'row {index.max()} of {len(self)}')
    start = self._offsets[index]
    length = self._offsets[index + 1] - start
    out = np.zeros((len(index), width), np.int32)
    for i, (s, n) in enumerate(zip(start, length)):
      out[i, :n] = self._flat[s : s + n]
    return out, length
