"""Files and folders by path, of this machine or of an object store.

A local path is handed to `os`, as it is. An object store has no folders: one is
there while an object lies below it, and making one does nothing.
"""

import concurrent.futures
import glob
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence

from atm.storage.client import call, get_scheme, is_remote

MAP_AT_ONCE = 32  # requests of `map_files`
BUFFER = 1 << 22  # bytes that a reader of an object asks for at once


def absolute(path: str) -> str:
  """Returns a path that means the same in every working directory."""
  return path if is_remote(path) else os.path.abspath(path)


def relative(path: str, folder: str) -> str:
  """Returns the path of what lies in a folder, from that folder."""
  if is_remote(folder):
    rest = path.removeprefix(folder.rstrip('/')).strip('/')
    return rest or os.curdir
  return os.path.relpath(path, folder)


def exists(path: str) -> bool:
  """Tells whether there is a file or a folder."""
  if not is_remote(path):
    return os.path.exists(path)
  return _get_kind(path) is not None


def is_file(path: str) -> bool:
  """Tells whether there is a file."""
  if not is_remote(path):
    return os.path.isfile(path)
  return _get_kind(path) == 'file'


def is_folder(path: str) -> bool:
  """Tells whether there is a folder."""
  if not is_remote(path):
    return os.path.isdir(path)
  return _get_kind(path) == 'directory'


def _get_kind(path: str) -> str | None:
  try:
    return get_info(path)['type']
  except FileNotFoundError:
    return None


def get_info(path: str) -> dict:
  """Returns what the store says of an object or a folder.

  Raises FileNotFoundError if there is none.
  """
  # A slash at the end would be asked for as the name of an object.
  return call('looking', path.rstrip('/'), lambda fs, p: fs.info(p))


def get_size(path: str) -> int:
  """Returns the bytes of a file."""
  if not is_remote(path):
    return os.path.getsize(path)
  return int(get_info(path)['size'])


def get_time(path: str) -> float:
  """Returns when a file was written, in seconds since 1970."""
  if not is_remote(path):
    return os.path.getmtime(path)
  info = get_info(path)
  when = info.get('mtime') or info['LastModified']
  return when.timestamp()


def list_names(path: str) -> list[str]:
  """Returns the names in a folder, sorted; [] of an object store's without any.

  Raises FileNotFoundError if there is no such local folder.
  """
  if not is_remote(path):
    return sorted(os.listdir(path))
  path = path.rstrip('/')
  try:
    found = call('listing', path, lambda fs, p: fs.ls(p, detail=True))
  except FileNotFoundError:
    return []
  names = {x['name'].rstrip('/').rpartition('/')[2] for x in found
           if not _is_same(x['name'], path)}  # fmt: skip
  return sorted(names)


def _is_same(name: str, path: str) -> bool:
  """Tells whether an object's name is that of a path: a folder's own mark."""
  return name.rstrip('/') == path.partition('://')[2]


def find_objects(path: str) -> dict[str, dict]:
  """Returns path in a folder of an object store -> facts, of all objects."""
  path = path.rstrip('/')
  found = call('listing', path, lambda fs, p: fs.find(p, detail=True))
  start = path.partition('://')[2] + '/'
  return {
    name.removeprefix(start): facts
    for name, facts in sorted(found.items())
    if name.startswith(start) and not name.endswith('/')
  }


def find_paths(pattern: str) -> list[str]:
  """Returns the paths of files and folders that a glob means, sorted."""
  if not is_remote(pattern):
    return sorted(glob.glob(pattern, recursive=True))
  scheme = get_scheme(pattern)
  found = call('listing', pattern, lambda fs, p: fs.glob(p))
  return sorted(f'{scheme}://{name}' for name in found)


def walk(path: str) -> Iterator[tuple[str, list[str], list[str]]]:
  """Yields (folder, names of folders, names of files), as `os.walk` does."""
  if not is_remote(path):
    yield from os.walk(path)
    return
  path = path.rstrip('/')
  try:
    found = call('listing', path, lambda fs, p: fs.ls(p, detail=True))
  except FileNotFoundError:
    return
  folders, files = [], []
  for facts in sorted(found, key=lambda facts: facts['name']):
    if not _is_same(facts['name'], path):
      names = folders if facts['type'] == 'directory' else files
      names.append(facts['name'].rstrip('/').rpartition('/')[2])
  yield path, folders, files
  for name in folders:
    yield from walk(f'{path}/{name}')


def map_files(work: Callable, items: Sequence, remote: bool) -> list:
  """Returns work(item) of each, in order; if remote, many wait at a time."""
  if not remote:
    return list(map(work, items))
  with concurrent.futures.ThreadPoolExecutor(MAP_AT_ONCE) as pool:
    return list(pool.map(work, items))


# --- Content


class _ObjectReader(io.RawIOBase):
  """An object that is read in pieces, each tried again by itself."""

  def __init__(self, path: str):
    self.path, self.size, self.at = path, get_size(path), 0
    self.name = path

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self.at

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}
    self.at = max(0, base[whence] + offset)
    return self.at

  def readinto(self, buffer) -> int:
    end = min(self.size, self.at + len(buffer))
    if self.at >= end:
      return 0
    piece = read_range(self.path, self.at, end)
    buffer[: len(piece)] = piece
    self.at += len(piece)
    return len(piece)

  def readall(self) -> bytes:
    # That of the base class asks for 8 kB at a time.
    pieces = []
    while self.at < self.size:
      end = min(self.size, self.at + BUFFER)
      pieces.append(read_range(self.path, self.at, end))
      self.at = end
    return b''.join(pieces)


def read_range(path: str, start: int, end: int) -> bytes:
  """Returns bytes `start` to `end` of an object, all of them."""

  def read(fs, p):
    piece = fs.cat_file(p, start=start, end=end)
    if len(piece) != end - start:  # the connection was dropped
      raise ConnectionError(f'{len(piece):,} of {end - start:,} bytes came')
    return piece

  return call('reading', path, read)


def open_binary(path: str, buffering: int = -1) -> io.BufferedIOBase:
  """Opens a file for reading bytes: streamed, and seekable.

  Args:
    path: the file.
    buffering: bytes that are read of a local file at once, as for `open`.
  """
  if not is_remote(path):
    return open(path, 'rb', buffering)
  return io.BufferedReader(_ObjectReader(path), BUFFER)


def read_bytes(path: str) -> bytes:
  """Returns the content of a file."""
  if is_remote(path):
    return call('reading', path, lambda fs, p: fs.cat_file(p))
  with open(path, 'rb') as f:
    return f.read()


def write_bytes(path: str, content: bytes, if_absent: bool = False) -> None:
  """Writes an object whole; a local file in place, so see `fileio` for those.

  Raises:
    FileExistsError: `if_absent`, and there is one. Of several processes that
      write it at a time one succeeds.
  """
  if not is_remote(path):
    with open(path, 'xb' if if_absent else 'wb') as f:
      f.write(content)
    return
  tries = 0

  def write(fs, p):
    nonlocal tries
    tries += 1
    try:
      fs.pipe_file(p, content, mode='create' if if_absent else 'overwrite')
    except FileExistsError:
      # It may be ours: the answer to an earlier try was lost.
      if tries == 1 or fs.cat_file(p) != content:
        raise

  call('writing', path, write)


# --- Folders


def make_folder(path: str) -> None:
  """Makes a folder and those above it, where it is missing."""
  if not is_remote(path):
    os.makedirs(path, exist_ok=True)


def remove(path: str) -> None:
  """Removes a file; FileNotFoundError if there is none, but for an object."""
  if not is_remote(path):
    os.remove(path)
    return

  def work(fs, p):
    try:
      fs.rm_file(p)
    except FileNotFoundError:  # an earlier try has removed it
      pass

  call('removing', path, work)


def remove_folder(path: str) -> None:
  """Removes a folder and what is in it, if it is there."""
  if not is_remote(path):
    shutil.rmtree(path, ignore_errors=True)
    return
  for name in find_objects(path):
    remove(f'{path.rstrip("/")}/{name}')


def rename(path: str, new: str) -> None:
  """Renames a file; an object is copied, and then the old one is removed."""
  if not is_remote(path):
    os.rename(path, new)
    return
  call('copying', path, lambda fs, p: fs.cp_file(p, new))
  remove(path)
