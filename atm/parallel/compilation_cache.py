"""Compiled programs that the hosts of a run, and its restarts, share.

JAX's own cache takes a path of an object store, too, but reads gs:// by
TensorFlow where that is installed, and s3:// not at all then. Of several
processes the first alone writes: programs of another host's own devices would
be compiled again at every start. Here files go over `atm.storage`, every
process writes what the first has not written, and a folder that cannot be read
costs a line, no run.
"""

import os
import sys
import threading
from collections.abc import Callable

import jax
from jax import monitoring

# Private: JAX has no public way to give it another cache.
from jax._src import compilation_cache as jax_cache
from jax._src import compiler as jax_compiler
from jax._src.compilation_cache_interface import CacheInterface

from atm import fileio, storage
from atm.messages import one_line

_ASKED = '/jax/compilation_cache/compile_requests_use_cache'
_FOUND = '/jax/compilation_cache/cache_hits'
_LEAST_SECONDS = 'jax_persistent_cache_min_compile_time_secs'
_counts = {_ASKED: 0, _FOUND: 0}
_shared: str | None = None  # the folder of `share_programs`
_caches: list['SharedCache'] = []


def _say(text: str) -> None:
  print(f'atm: {text}', file=sys.stderr, flush=True)


class SharedCache(CacheInterface):
  """A cache of JAX in a folder that all hosts see, or in an object store."""

  def __init__(self, folder: str, say: Callable[[str], None] = _say):
    """Takes the folder, and what prints a line."""
    self._path = folder  # JAX logs it
    self.say, self.works = say, True
    self._waiting: dict[str, bytes] = {}
    self._lock = threading.Lock()

  def get(self, key: str) -> bytes | None:
    """Returns what is kept under a key, or None."""
    return self._try('reading', self._read, key)

  def put(self, key: str, value: bytes) -> None:
    """Keeps a value; of processes but the first, until `flush`."""
    if jax.process_index():
      with self._lock:
        self._waiting[key] = value
    else:
      self._try('writing', self._write, key, value)

  def waits(self) -> bool:
    """Tells whether something waits for `flush`."""
    return bool(self._waiting)

  def flush(self) -> None:
    """Writes what waits and what the first process has not written."""
    with self._lock:
      waiting, self._waiting = self._waiting, {}
    for key, value in waiting.items():
      self._try('writing', self._write, key, value)

  def _place(self, key: str) -> str:
    return os.path.join(self._path, f'{key}-cache')  # as JAX names them

  def _read(self, key: str) -> bytes | None:
    try:
      return storage.read_bytes(self._place(key))
    except FileNotFoundError:
      return None

  def _write(self, key: str, value: bytes) -> None:
    path = self._place(key)
    if not storage.exists(path):
      fileio.write_atomically(path, value)

  def _try(self, doing: str, work: Callable, *args):
    """Returns what `work` does; its first error ends the use of the cache."""
    if not self.works:
      return None
    try:
      return work(*args)
    except OSError as e:
      self.works = False
      self.say(
        f'COMPILATION_CACHE = {self._path!r}: {doing} failed, programs are '
        f'compiled here: {one_line(e)}'
      )
      return None


def share_programs(folder: str) -> None:
  """Keeps compiled programs, the small ones too, in a folder or a bucket.

  Raises:
    ValueError: it is of no store known here, or its extra is not installed.
  """
  global _shared
  folder = storage.absolute(folder)
  if storage.is_remote(folder):
    storage.client.get_client(folder)  # raises without the extra
  try:
    storage.make_folder(folder)
    storage.exists(folder)  # the store answers
  except OSError as e:
    _say(
      f'COMPILATION_CACHE = {folder!r} is not used: {one_line(e)}; programs '
      'are kept on this machine'
    )
    return
  _shared = folder
  install()
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update(_LEAST_SECONDS, 0)
  jax_cache.reset_cache()  # it may have begun with another folder


def install() -> None:
  """Counts programs from here on, and lets JAX use `SharedCache`; once."""
  if getattr(jax_cache.get_file_cache, 'shares', False):
    return
  monitoring.register_event_listener(_count)
  make_own, write_own = jax_cache.get_file_cache, jax_compiler._cache_write

  def get_file_cache(path: str):
    if path != _shared:
      return make_own(path)
    _caches[:] = [SharedCache(path)]
    return _caches[0], path

  def write(key, seconds, name, backend, executable, callbacks):
    if path_is_shared() and jax.process_index() and not callbacks:
      jax_cache.put_executable_and_time(
        key, name, executable, backend, int(seconds)
      )
    else:
      write_own(key, seconds, name, backend, executable, callbacks)

  get_file_cache.shares = True
  jax_cache.get_file_cache = get_file_cache
  jax_compiler._cache_write = write


def path_is_shared() -> bool:
  """Tells whether programs are kept in the folder of `share_programs`."""
  return _shared is not None and (
    jax.config.jax_compilation_cache_dir == _shared
  )


def flush() -> None:
  """Writes what this process compiled, in a thread.

  To be called once the first process has compiled the same programs.
  """
  for cache in _caches:
    if cache.waits():
      threading.Thread(target=cache.flush).start()  # Python's exit joins it


def count_programs() -> tuple[int, int]:
  """Returns how many programs were compiled, and read from a cache."""
  return _counts[_ASKED] - _counts[_FOUND], _counts[_FOUND]


def _count(event: str, **facts) -> None:
  if event in _counts:
    _counts[event] += 1
