"""Orbax's manager for steps in an object store, staged on this machine's disk.

Orbax writes a step to a folder of this machine. Its files are sent many at a
time, each verified by size and MD5, and listed by a last object,
`commit_success.txt`: a step without it is not there for any reader. A reader
fetches the items that it asks for. The objects are those that Orbax itself
writes for several hosts, which do not stage: each reads the other's.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable

import orbax.checkpoint as ocp
from etils import epath

from atm import fileio, storage

# Orbax's name for it; where Orbax wrote the step it holds no JSON.
COMMIT_FILE = 'commit_success.txt'
# What Orbax and we put into the folder of a step.
PARTS = {'params', 'optimizer', 'meta', '_CHECKPOINT_METADATA', COMMIT_FILE}
STAGING = '~/.cache/atm/steps'


def send_step(local: str, path: str) -> None:
  """Writes a step's folder into a store; the object that lists it is last."""
  storage.remove_folder(path)  # what a killed process sent of it
  names = storage.upload_folder(local, path, without=COMMIT_FILE)
  sizes = {
    name: [os.path.getsize(f'{local}/{name}'),
           fileio.checksum(f'{local}/{name}')]
    for name in names
  }  # fmt: skip
  whole = fileio.seal_json({'files': sizes})
  fileio.write_json(f'{path}/{COMMIT_FILE}', whole)


def unlist_step(path: str) -> None:
  """Makes a step in a store one that no reader finds, to remove it then."""
  storage.remove(f'{path}/{COMMIT_FILE}')


def rename_step(path: str, new: str) -> None:
  """Gives the folder of a step in a store another name."""
  found = sorted(storage.find_objects(path), key=lambda x: x != COMMIT_FILE)
  for inner in found:
    storage.rename(f'{path}/{inner}', f'{new}/{inner}')


class StagedManager:
  """The part of Orbax's `CheckpointManager` that atm uses, for a store."""

  def __init__(
    self,
    directory: str,
    open_local: Callable[[epath.Path], ocp.CheckpointManager],
    read_only: bool,
  ):
    """Opens the steps of a folder.

    Args:
      directory: gs://... or s3://...
      open_local: opens Orbax's manager of a local folder.
      read_only: else what killed saves have left is removed.
    """
    self.directory = directory
    self._staging = _Staging()
    self.local = epath.Path(self._staging.folder)
    self._orbax = open_local(self.local)
    self._fetched: set[tuple[int, str]] = set()
    self._committed: set[int] = set()
    self._upload, self._error = None, None
    if not read_only:
      self._remove_unfinished()

  # --- Steps

  def all_steps(self) -> list[int]:
    """Returns the steps that have been listed by their last object."""
    names = storage.list_names(self.directory)
    steps = {int(name) for name in names if name.isdigit()}
    self._committed = {n for n in steps if self._is_committed(n)}
    return sorted(self._committed)

  def latest_step(self) -> int | None:
    """Returns the newest step, or None."""
    return max(self.all_steps(), default=None)

  def reload(self) -> None:
    """Forgets what was fetched."""
    for step in {step for step, _ in self._fetched}:
      shutil.rmtree(self.local / str(step), ignore_errors=True)
    self._fetched.clear()
    self._orbax.reload()

  def close(self) -> None:
    """Waits for the write under way; removes the local copies."""
    if self._upload is not None:
      self._upload.join()
    self._orbax.close()
    self._staging.remove()

  def _is_committed(self, step: int) -> bool:
    if step in self._committed:
      return True
    return storage.is_file(f'{self._path(step)}/{COMMIT_FILE}')

  def _path(self, step: int) -> str:
    return f'{self.directory}/{step}'

  def _remove_unfinished(self) -> None:
    for name in storage.list_names(self.directory):
      if name.isdigit() and not self._is_committed(int(name)):
        if {*storage.list_names(self._path(int(name)))} <= PARTS:
          storage.remove_folder(self._path(int(name)))

  # --- Writing

  def save(self, step: int, args) -> bool:
    """Begins to write a step; see `wait_until_finished`."""
    self.wait_until_finished()
    if not self._orbax.save(step, args=args):
      return False

    def upload():
      try:
        self._orbax.wait_until_finished()
        self._send(step)
      except Exception as e:
        self._error = e

    self._upload = threading.Thread(target=upload)
    self._upload.start()
    return True

  def is_saving_in_progress(self) -> bool:
    """Tells whether a step is still being written or sent."""
    return self._upload is not None and self._upload.is_alive()

  def wait_until_finished(self) -> None:
    """Waits for the write under way; raises its error."""
    if self._upload is not None:
      self._upload.join()
      self._upload = None
    error, self._error = self._error, None
    if error is not None:
      raise error

  def _send(self, step: int) -> None:
    """Sends a step that lies in the staging folder, and then lists it."""
    send_step(os.fspath(self.local / str(step)), self._path(step))
    for old in self._orbax.all_steps():
      if old != step:
        self._orbax.delete(old)
    self._fetched = {(step, item) for item in PARTS}

  def delete(self, step: int) -> None:
    """Removes a step; it is not listed from the first moment on."""
    unlist_step(self._path(step))
    storage.remove_folder(self._path(step))

  # --- Reading

  def fetch(self, step: int, items: Iterable[str]) -> epath.Path:
    """Returns the local folder of a step, with the items wanted.

    Raises:
      ValueError: an object is not the one that was sent.
    """
    folder = self.local / str(step)
    for item in items:
      if (step, item) not in self._fetched:
        self._fetch_item(step, item, os.fspath(folder))
        self._fetched.add((step, item))
    return folder

  def _fetch_item(self, step: int, item: str, folder: str) -> None:
    path, sizes = self._path(step), self._read_sizes(step)
    wanted = {
      name: facts
      for name, facts in sizes.items()
      if '/' not in name or name.startswith(f'{item}/')
    }
    objects = {name: {'size': size} for name, (size, _) in wanted.items()}
    partial = tempfile.mkdtemp(dir=self.local.parent)
    try:
      storage.download(path, partial, objects)
      for name, (_, crc) in wanted.items():
        if crc not in (None, fileio.checksum(f'{partial}/{name}')):
          raise ValueError(f'{path}/{name} is not what was sent')
        target = f'{folder}/{name}'
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(f'{partial}/{name}', target)
    finally:
      shutil.rmtree(partial, ignore_errors=True)

  def _read_sizes(self, step: int) -> dict[str, tuple]:
    """Returns name of an object of a step -> its size, and CRC-32 or None."""
    path = f'{self._path(step)}/{COMMIT_FILE}'
    content = storage.read_bytes(path)
    if content.startswith(b'{'):
      whole = fileio.unseal_json(fileio.parse_json(content, path), path)
      return {name: tuple(facts) for name, facts in whole['files'].items()}
    found = storage.find_objects(self._path(step))  # Orbax itself wrote it
    return {name: (int(x['size']), None) for name, x in found.items()
            if not name.endswith(COMMIT_FILE)}  # fmt: skip

  def restore(self, step: int, args):
    """Returns items of a step, see Orbax's `CheckpointManager.restore`."""
    self.fetch(step, args.keys())
    return self._orbax.restore(step, args=args)

  def item_metadata(self, step: int):
    """Returns Orbax's descriptions of a step's items."""
    self.fetch(step, ('meta', 'params', 'optimizer'))
    return self._orbax.item_metadata(step)


class _Staging:
  """A folder of this process's own, which the next one removes if need be."""

  def __init__(self):
    parent = os.path.expanduser(STAGING)
    os.makedirs(parent, exist_ok=True)
    for name in os.listdir(parent):
      if not name.endswith('.lock'):
        _remove_if_abandoned(os.path.join(parent, name))
    outer = tempfile.mkdtemp(prefix='', dir=parent)
    self._outer, self.folder = outer, os.path.join(outer, 'steps')
    self._lock = open(f'{outer}.lock', 'w')  # noqa: SIM115, `remove` closes it
    fcntl.flock(self._lock, fcntl.LOCK_EX)
    os.mkdir(self.folder)

  def remove(self) -> None:
    shutil.rmtree(self._outer, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
      os.remove(f'{self._outer}.lock')
    self._lock.close()


def _remove_if_abandoned(folder: str) -> None:
  """Removes the staging folder of a process that was killed."""
  with contextlib.suppress(OSError), open(f'{folder}.lock') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(folder, ignore_errors=True)
    os.remove(f'{folder}.lock')
