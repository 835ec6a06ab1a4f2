"""One run at a time in a MODEL_DIR."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import json
import os
import socket
from collections.abc import Callable

import jax

FILE = 'lock'


@contextlib.contextmanager
def hold(model_dir: str):
  """While open, no other process may hold MODEL_DIR/lock.

  The lock is the kernel's (flock), so it ends with its process however that
  ends; the file stays and says who took it last. Of several hosts the first
  takes it.

  Raises:
    ValueError: another run holds it; says which.
  """
  if jax.process_index():
    yield
    return
  made = not os.path.exists(model_dir)
  with _locked(model_dir) as file:
    _sign(file)
    try:
      yield
    finally:
      if made:
        _remove_if_alone(model_dir)


def held(function: Callable) -> Callable:
  """function(model_dir, ...) with the lock of its `model_dir`."""

  @functools.wraps(function)
  def run(model_dir: str, *args, **named):
    with hold(model_dir):
      return function(model_dir, *args, **named)

  return run


def _locked(model_dir: str):
  """The lock's file, locked; open, and not passed on to child processes."""
  path = os.path.join(model_dir, FILE)
  while True:
    os.makedirs(model_dir, exist_ok=True)
    file = open(path, 'a+')  # noqa: SIM115, the caller closes it
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
          return file
    except BlockingIOError as e:
      file.close()
      raise ValueError(_held(model_dir, path)) from e
    file.close()  # its name was removed before we had the lock


def _sign(file) -> None:
  file.truncate(0)
  now = datetime.datetime.now().astimezone()
  who = {
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'since': now.isoformat(timespec='seconds'),
  }
  file.write(json.dumps(who) + '\n')
  file.flush()


def _held(model_dir: str, path: str) -> str:
  try:
    with open(path) as file:
      who = json.loads(file.read())
    by = f'process {who["pid"]} on {who["host"]}, since {who["since"]}'
  except (ValueError, KeyError, TypeError):  # it is just being written
    by = 'another process'
  return (
    f'MODEL_DIR = {model_dir!r} is in use by {by}: wait for it, stop it, or '
    'use another MODEL_DIR'
  )


def _remove_if_alone(model_dir: str) -> None:
  """Leaves nothing behind of a run that was refused before it began."""
  if os.listdir(model_dir) == [FILE]:
    with contextlib.suppress(OSError):
      os.remove(os.path.join(model_dir, FILE))
      os.rmdir(model_dir)
