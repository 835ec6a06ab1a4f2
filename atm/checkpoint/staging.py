"""Folders that appear whole or not at all, where a command writes a model."""

import contextlib
import fcntl
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator

from atm import messages, storage
from atm.checkpoint.paths import CHECKPOINTS
from atm.checkpoint.staged_steps import send_step

STAGING_FILE = 'atm-writes-here'  # marks a folder that may be removed
# What makes a folder a model's, or PEFT's.
LAST_FILES = 'config.json', 'adapter_config.json'


@contextlib.contextmanager
def staging_folder(target: str, suffix: str) -> Iterator[str]:
  """Yields an empty folder beside `target`; removes what is left there.

  What a killed process left is removed, a folder of a user is not.

  Of a target in an object store the folder is a temporary one.

  Raises:
    ValueError: there is such a folder, or another process is at work in it.
  """
  if storage.is_remote(target):
    with tempfile.TemporaryDirectory(prefix='atm-') as folder:
      yield folder
    return
  directory = os.path.abspath(target) + suffix
  mark = os.path.join(directory, STAGING_FILE)
  if os.path.lexists(directory) and not os.path.exists(mark):
    raise ValueError(
      f'{directory} is in the way, and not known to be left of an earlier '
      'command: move or remove it'
    )
  os.makedirs(directory, exist_ok=True)
  left = f'nothing is in {target} yet; the same command begins anew'
  with open(mark, 'a') as lock, messages.note_work(lambda: left):
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise ValueError(f'another process writes into {directory}') from e
    folder = os.path.join(directory, 'content')
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    try:
      yield folder
    finally:
      shutil.rmtree(directory, ignore_errors=True)


def check_nothing_replaced(folder: str, target: str) -> None:
  """Raises ValueError where `target` has another file of a name in `folder`."""
  for where, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(where, name)
      there = os.path.join(target, os.path.relpath(path, folder))
      if storage.exists(there) and not _is_same_file(path, there):
        raise ValueError(
          f'{there} is there already, and is not what would be written: use '
          'another MODEL_DIR, or move it away'
        )


def _is_same_file(path: str, there: str) -> bool:
  """Tells whether a file there, local or not, holds what a local one does."""
  if storage.is_remote(there):
    return storage.get_size(there) == os.path.getsize(path) and (
      storage.read_bytes(there) == storage.read_bytes(path)
    )
  return os.path.isfile(there) and filecmp.cmp(path, there, shallow=False)


def move_into(folder: str, target: str) -> None:
  """Moves the checkpoints, at last, and the files of a folder into another."""
  check_nothing_replaced(folder, target)
  if storage.is_remote(target):
    send_into(folder, target)
    return
  for where, folders, names in os.walk(folder):
    if CHECKPOINTS in folders:
      folders.remove(CHECKPOINTS)
    into = os.path.join(target, os.path.relpath(where, folder))
    os.makedirs(into, exist_ok=True)
    for name in names:
      os.rename(os.path.join(where, name), os.path.join(into, name))
  # Replaces an empty folder only.
  os.rename(*(os.path.join(f, CHECKPOINTS) for f in (folder, target)))


def send_into(folder: str, target: str) -> None:
  """Sends a folder into a store; what makes it a model is sent last."""
  steps = os.path.join(folder, CHECKPOINTS)
  if not os.path.isdir(steps):
    (last,) = {*LAST_FILES}.intersection(os.listdir(folder))
    storage.upload_folder(folder, target, without=last)
    whole = os.path.join(folder, last)
    storage.upload_file(whole, f'{target.rstrip("/")}/{last}')
    return
  with tempfile.TemporaryDirectory(prefix='atm-') as apart:
    moved = shutil.move(steps, apart)
    storage.upload_folder(folder, target)
    for step in os.listdir(moved):
      there = f'{target.rstrip("/")}/{CHECKPOINTS}/{step}'
      send_step(os.path.join(moved, step), there)
