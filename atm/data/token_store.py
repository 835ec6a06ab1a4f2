"""Rows of token ids on disk: written once, verified, read by index.

A folder holds array_record files, a row a record (little-endian int32), each
with a .json of its facts, and at last `manifest.json`: what the rows were made
from, counts, and every file's rows and checksum. Without a manifest a folder is
not finished, and nobody reads it.

array_record reads local paths here, `remote_rows` those of object stores.
Records carry hashes that are compared whenever one is read.
"""

import collections
import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Iterable

import numpy as np

from atm import fileio, storage
from atm.data import remote_rows
from atm.messages import check_number, check_path, quote

MANIFEST = 'manifest.json'
# What a manifest, an entry of its `files`, and a file's facts hold.
ENTRIES = {
  'made_from': dict, 'rows': int, 'tokens': int, 'longest': int,
  'counts': dict, 'files': list,
}  # fmt: skip
FILE_ENTRIES = {
  'name': str, 'rows': int, 'tokens': int, 'longest': int, 'bytes': int,
  'crc32': int,
}  # fmt: skip
FACTS = {'made_from': dict, 'text': list, 'file': dict, 'counts': dict}
# What a user sets of what rows were made from.
SETTINGS = {
  'passes': 'ROW_PASSES', 'held_out': 'HELD_OUT', 'pairs': 'PAIRS',
  'lengths': 'TASK_FEATURE_LENGTHS', 'vocabulary': 'VOCABULARY',
  'decontaminated': 'DECONTAMINATE', 'mode': 'PAIRS_MODE',
  'default_languages': 'SOURCE_LANGUAGE, TARGET_LANGUAGE',
  'columns': 'PAIRS_COLUMNS',
}  # fmt: skip
# One row a chunk, so that reading a row decodes no other.
WRITER = 'group_size:1,zstd:3'
OPEN_FILES = 512
HEAD_ROWS = 1024  # read at a time


def write_rows(path: str, rows: Iterable[np.ndarray]) -> dict:
  """Writes rows, int32 [n], into one file, whole or not at all.

  The bytes depend on the rows alone. Raises OSError where the disk is full, and
  ValueError for what int32 does not hold.

  Returns:
    the file's facts: name, rows, tokens, longest row, bytes, crc32.
  """
  from array_record.python import array_record_module

  sizes = []
  try:
    with fileio.replacing(path, 'wb') as partial:
      writer = array_record_module.ArrayRecordWriter(partial.name, WRITER)
      for row in rows:
        writer.write(_as_int32(row, len(sizes)).tobytes())
        sizes.append(len(row))
      writer.close()
      size, crc32 = os.path.getsize(partial.name), fileio.checksum(partial.name)
  except RuntimeError as e:  # what array_record raises
    raise OSError(f'{path}: cannot be written: {e}') from e
  return {
    'name': os.path.basename(path),
    'rows': len(sizes),
    'tokens': sum(sizes),
    'longest': max(sizes, default=0),
    'bytes': size,
    'crc32': crc32,
  }


def _as_int32(row, number: int) -> np.ndarray:
  """Returns a row for a file; raises ValueError where it would change."""
  out, same = np.zeros(0), False
  with contextlib.suppress(ValueError, TypeError, OverflowError):
    row = np.asarray(row)
    if row.dtype.kind in 'iu' or not row.size:
      out = np.ascontiguousarray(row, '<i4')
      same = out.ndim == 1 and np.array_equal(out, row)
  if not same:
    raise ValueError(
      f'row {number} = {quote(row)}: expected token ids, of 32 bits'
    )
  return out


def write_manifest(directory: str, made_from: dict, parts: list[dict]) -> None:
  """Writes the manifest of a folder from the facts of all files, in order."""
  counts, files = collections.Counter(), [part['file'] for part in parts]
  for part in parts:
    counts.update(part['counts'])
  manifest = {
    'made_from': made_from,
    'rows': sum(f['rows'] for f in files),
    'tokens': sum(f['tokens'] for f in files),
    'longest': max((f['longest'] for f in files), default=0),
    'counts': counts,
    'files': files,
  }
  write_sealed(os.path.join(directory, MANIFEST), manifest)


def write_sealed(path: str, value: dict) -> None:
  """Writes an object for `read_sealed`, whole or not at all."""
  fileio.write_json(path, fileio.seal_json(value))


def read_sealed(path: str, entries: dict[str, type]) -> dict:
  """Returns what `write_sealed` wrote, or a version that did not seal.

  Args:
    path: a file.
    entries: the names that it has, and the types of their values.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged.
  """
  try:
    value = fileio.read_json(path)
    value = fileio.unseal_json(value, path, entries)
    fileio.check_json(value, entries, path)
  except ValueError as e:
    raise _damaged(path, e) from e
  return value


def _damaged(path: str, error: Exception) -> ValueError:
  """Returns the error of a manifest or facts that are not as written."""
  why = str(error).removeprefix(path).lstrip(': ')
  return ValueError(
    f'{path} is damaged: {why}. Remove its folder to build it again.'
  )


def has_manifest(directory: str) -> bool:
  """Tells whether a folder of rows, of an object store too, has a manifest."""
  return storage.exists(os.path.join(directory, MANIFEST))


def read_manifest(directory: str) -> dict:
  """Returns the manifest of a folder, local or of an object store.

  Raises:
    FileNotFoundError: there are no finished rows there.
    ValueError: it is damaged.
  """
  path = directory.rstrip('/') + '/' + MANIFEST
  manifest = read_sealed(path, ENTRIES)
  try:
    for file in manifest['files']:
      fileio.check_json(file, FILE_ENTRIES, 'files')
    for name, add in {'rows': sum, 'tokens': sum, 'longest': max}.items():
      if manifest[name] != add([f[name] for f in manifest['files']] or [0]):
        raise ValueError(f'{name!r} is not that of its files')
  except (ValueError, AttributeError) as e:
    raise _damaged(path, e) from e
  return manifest


def check_provenance(
  path: str, actual: dict, expected: dict, folder: str
) -> None:
  """Raises ValueError if rows were made from other facts than `expected`."""
  for name, value in expected.items():
    if actual.get(name) != value:
      setting = SETTINGS.get(name)
      raise ValueError(
        f'{path} was made with {name} = {actual.get(name)!r}, but this run has '
        f'{value!r}{f" ({setting})" if setting else ""}. Remove {folder} to '
        'build it again, or name another.'
      )


@functools.lru_cache(OPEN_FILES)
def _open_reader(path: str, size: int, rows: int, crc: int):
  from array_record.python import array_record_module

  del crc  # only keys the cache: a file made anew is another
  if storage.is_remote(path):
    return remote_rows.RemoteRowsFile(path, size, rows)
  return array_record_module.ArrayRecordReader(path, 'readahead_buffer_size:0')


class TokenRows:
  """The rows of a finished folder.

  Attributes:
    made_from, counts, tokens, longest, files: as in the manifest.
    remote: whether the files lie in an object store.
    sha256: of the manifest; changes whenever a row does.
  """

  def __init__(
    self,
    directory: str,
    made_from: dict | None = None,
    verify: tuple[int, int] | None = (0, 1),
  ):
    """Opens a folder and verifies it.

    Args:
      directory: a folder, of an object store, too.
      made_from: facts it must have been made from.
      verify: (i, n) compares the checksums of files i, i + n, ...; so n hosts
        together verify all. None: only the sizes. Files of an object store are
        not compared; each record's own hash is checked when it is read.

    Raises:
      FileNotFoundError: no finished rows there.
      ValueError: it was made from other facts, or a file is damaged.
    """
    directory = check_path('directory', directory)
    manifest = read_manifest(directory)
    self.directory, self.made_from = directory, manifest['made_from']
    check_provenance(directory, self.made_from, made_from or {}, 'the folder')
    self.sha256 = fileio.hash_json(manifest)
    self.counts, self.files = manifest['counts'], manifest['files']
    self.tokens, self.longest = manifest['tokens'], manifest['longest']
    self._starts = np.cumsum([0, *(f['rows'] for f in self.files)])
    self.remote = storage.is_remote(directory)
    if not self.remote:
      self._verify(verify)

  def _get_path(self, file: dict) -> str:
    return f'{self.directory.rstrip("/")}/{file["name"]}'

  def _verify(self, share: tuple[int, int] | None) -> None:
    for file in self.files:
      path = self._get_path(file)
      if not os.path.exists(path):
        raise ValueError(f'{path} is missing, though the manifest names it')
      if os.path.getsize(path) != file['bytes']:
        raise ValueError(f'{path} is damaged: expected {file["bytes"]:,} bytes')
    files = self.files[share[0] :: share[1]] if share else []
    paths = [self._get_path(file) for file in files]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      checksums = pool.map(fileio.checksum, paths)
      for path, file, crc in zip(paths, files, checksums):
        if crc != file['crc32']:
          raise ValueError(
            f'{path} is damaged: its checksum does not match the manifest. '
            'Remove the folder to build it again.'
          )

  def __len__(self) -> int:
    return int(self._starts[-1])

  def head(self, n: int) -> np.ndarray:
    """Returns the first n ids of all rows, end to end."""
    pieces, count = [np.zeros(0, '<i4')], 0
    for number, file in enumerate(self.files):
      for start in range(0, file['rows'], HEAD_ROWS):
        if count >= n:
          break
        end = min(start + HEAD_ROWS, file['rows'])
        records = self._read(number, start, end)
        pieces.append(np.frombuffer(b''.join(records), '<i4'))
        count += len(pieces[-1])
    return np.concatenate(pieces)[:n]

  def row(self, index: int) -> np.ndarray:
    """Returns the ids of one row, int32 [n].

    Raises ValueError where there is no such row, or it is damaged.
    """
    index = check_number('row', index, 0, len(self) - 1)
    number = int(np.searchsorted(self._starts, index, side='right')) - 1
    place = int(index - self._starts[number])
    return np.frombuffer(self._read(number, place, place + 1)[0], '<i4')

  def _read(self, number: int, start: int, end: int) -> list[bytes]:
    """Returns rows start to end - 1 of a file."""
    file = self.files[number]
    path = self._get_path(file)
    try:
      reader = _open_reader(path, file['bytes'], file['rows'], file['crc32'])
      # A range: for a list of indices the reader goes through all of a file's,
      # which took 240 microseconds a row where a file has 225,000 rows, not 5.
      return reader.read(start, end)
    except (RuntimeError, IndexError) as e:
      raise ValueError(f'{path} is damaged: {e}') from e
