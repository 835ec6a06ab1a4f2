"""The lock on a folder of an object store: a lease that is renewed.

Objects `lock.1`, `lock.2`, ... are made in turn, each only if it is not there,
which the store decides; the process that made the last one owns the folder. It
writes its object anew every LEASE / 4 seconds. A process that finds the last
one unchanged for LEASE seconds by its own clock, or released, may make the
next. A process of the same machine that has ended loses its lease at once.

What is guaranteed: of all processes that ask, one at a time becomes the owner,
and an owner begins no write to the folder later than LEASE / 2 seconds after it
last renewed its lease, nor once it has seen another owner. `client.call` asks
before every write, so an owner that was paused, or cut off from the store, ends
in one line. What is not: a write that was on its way when the process was
paused may still reach the store afterwards, because a store cannot refuse it.
"""

import datetime
import json
import os
import secrets
import socket
import threading
import time

from atm.messages import quote
from atm.storage import client, files

LEASE = 120.0  # seconds


class Lease:
  """Ownership of a folder, from `acquire` to `release`."""

  def __init__(self, folder: str, name: str):
    """Prepares a lease.

    Args:
      folder: of an object store.
      name: of the setting and its value, as an error says it.
    """
    self.folder, self.name = folder.rstrip('/'), name
    now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
    self._who = {
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'since': now,
      'token': secrets.token_hex(8),
      **_identify(os.getpid()),
    }
    self._number = self._renewals = 0
    self._lost, self._ended = '', threading.Event()

  def acquire(self) -> None:
    """Becomes the owner; waits for a lease that is not renewed to run out.

    Raises:
      ValueError: another process owns the folder, or became its owner first;
        or there is no such bucket.
    """
    last, holder = read_last(self.folder)
    if last and not _has_ended(holder):
      self._wait_until_abandoned(last, holder)
    self._number = last + 1
    self._renewed = time.monotonic()
    try:
      files.write_bytes(self._path(), self._content(), if_absent=True)
    except FileExistsError:  # another process was faster
      self._refuse(read_last(self.folder)[1])
    except FileNotFoundError as e:  # the setting is the user's, the lock is not
      raise ValueError(f'{self.name} cannot be written: {e.strerror}') from e
    client.GUARDS[self.folder] = self._check
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()
    for number, path in _list_locks(self.folder):
      if number < self._number:
        files.remove(path)

  def release(self) -> None:
    """Gives the folder up; the object stays, so that numbers only grow."""
    self._ended.set()
    self._thread.join()
    client.GUARDS.pop(self.folder, None)
    if not self._lost:
      files.write_bytes(self._path(), self._content(released=True))

  def _path(self, number: int | None = None) -> str:
    return f'{self.folder}/lock.{number or self._number}'

  def _content(self, **more) -> bytes:
    self._renewals += 1
    return json.dumps(
      {**self._who, 'renewals': self._renewals, **more}
    ).encode()

  def _wait_until_abandoned(self, last: int, holder: dict) -> None:
    began = time.monotonic()
    while time.monotonic() - began < LEASE:
      if _is_alive_here(holder):
        self._refuse(holder)
      time.sleep(min(1.0, LEASE / 8))
      now = read_last(self.folder)
      if _has_ended(now[1]):
        return
      if now != (last, holder):
        self._refuse(now[1])

  def _refuse(self, holder: dict) -> None:
    raise ValueError(
      f'{self.name} is in use by {describe_holder(holder)}: wait for it, stop '
      'it, or use another'
    )

  def _renew(self) -> None:
    """Writes the object anew while the lease is ours; runs in a thread."""
    while not self._ended.wait(LEASE / 4):
      began = time.monotonic()
      try:
        files.write_bytes(self._path(), self._content())
        if files.exists(self._path(self._number + 1)):
          self._lost = 'another process has taken the lock'
        # Who waited for LEASE seconds may be about to take it.
        elif time.monotonic() - self._renewed <= LEASE / 2:
          self._renewed = began
      except OSError:  # `_check` refuses writes when it goes on for too long
        continue

  def _check(self, path: str) -> None:
    """Raises PassingError before a write that the lease does not cover."""
    silent = time.monotonic() - self._renewed
    if not self._lost and silent > LEASE / 2 and path != self._path():
      self._lost = f'the lock was not renewed for {silent:.0f} s'
    if self._lost:
      raise client.PassingError(
        f'{self.name}: {self._lost}, so this process writes no more there. '
        'Give the same command again to go on from the last checkpoint'
      )


def _list_locks(folder: str) -> list[tuple[int, str]]:
  """Returns (number, path) of a folder's lock objects, in order."""
  names = [n.removeprefix('lock.') for n in files.list_names(folder)
           if n.startswith('lock.')]  # fmt: skip
  numbers = sorted(int(n) for n in names if n.isdigit())
  return [(n, f'{folder}/lock.{n}') for n in numbers]


def read_last(folder: str) -> tuple[int, dict]:
  """Returns the number and the content of the last lock; 0 where is none."""
  locks = _list_locks(folder.rstrip('/'))
  if not locks:
    return 0, {}
  try:
    value = json.loads(files.read_bytes(locks[-1][1]))
  except (FileNotFoundError, ValueError):
    value = {}
  return locks[-1][0], value if isinstance(value, dict) else {}


def is_leased(folder: str) -> bool:
  """Tells whether a process owns a folder, by its lock and a clock."""
  number, holder = read_last(folder)
  if not number or _has_ended(holder):
    return False
  # Only for a person to read: who wants to own it asks no clock.
  written = files.get_time(f'{folder.rstrip("/")}/lock.{number}')
  return time.time() - written < LEASE


def describe_holder(holder: dict) -> str:
  """Returns a text about the process that holds a lock."""
  if not {'pid', 'host', 'since'} <= holder.keys():
    return 'another process'
  return (
    f'process {quote(holder["pid"], 20)} on {quote(holder["host"])}, since '
    f'{quote(holder["since"], 40)}'
  )


# --- Processes of this machine


def _identify(pid: int) -> dict[str, str]:
  """Returns what tells a process of this machine from all others."""
  try:
    with open('/proc/sys/kernel/random/boot_id') as f:
      boot = f.read().strip()
    with open(f'/proc/{pid}/stat') as f:
      started = f.read().rpartition(')')[2].split()[19]
    space = os.readlink('/proc/self/ns/pid')
  except OSError:
    return {}
  return {'machine': f'{boot} {space}', 'started': started}


def _is_here(holder: dict) -> bool:
  """Tells whether a lock's process is one of this machine."""
  here = _identify(os.getpid()).get('machine')
  return here is not None and holder.get('machine') == here


def _is_alive_here(holder: dict) -> bool:
  """Tells whether a lock's process is one of this machine, and goes on."""
  if not _is_here(holder):
    return False
  now = _identify(holder.get('pid', 0))
  return now.get('started') == holder.get('started')


def _has_ended(holder: dict) -> bool:
  """Tells whether a lock needs no waiting for."""
  if holder.get('released'):
    return True
  return _is_here(holder) and not _is_alive_here(holder)
