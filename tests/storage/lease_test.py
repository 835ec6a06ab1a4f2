"""Tests the lock on a folder of an object store."""

import json
import subprocess
import sys
import threading
import time

import pytest

from atm import storage
from atm.storage import client, lease


@pytest.fixture
def soon(monkeypatch):
  """A lease that runs out in two seconds."""
  monkeypatch.setattr(lease, 'LEASE', 2.0)


@pytest.fixture(autouse=True)
def unguarded():
  """Clears what a failed test left."""
  yield
  client.GUARDS.clear()


def put(bucket: str, number: int, **holder) -> None:
  """Writes a lock of another machine's process."""
  who = {'host': 'far', 'pid': 1, 'since': 'then', 'machine': 'another'}
  content = json.dumps({**who, **holder}).encode()
  storage.write_bytes(f'{bucket}/lock.{number}', content)


def test_one_process_owns_a_folder(bucket):
  first = storage.Lease(bucket, f'MODEL_DIR = {bucket!r}')
  first.acquire()
  with pytest.raises(ValueError, match="in use by process .* on '"):
    storage.Lease(bucket, 'MODEL_DIR').acquire()
  storage.write_bytes(f'{bucket}/a', b'')
  first.release()
  second = storage.Lease(bucket, 'MODEL_DIR')
  second.acquire()
  second.release()
  assert storage.list_names(bucket) == ['a', 'lock.2']


def test_of_many_that_ask_one_succeeds(bucket):
  got, refused = [], []

  def ask():
    mine = storage.Lease(bucket, 'MODEL_DIR')
    try:
      mine.acquire()
      got.append(mine)
    except ValueError:
      refused.append(mine)

  threads = [threading.Thread(target=ask) for _ in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(got) == 1 and len(refused) == 5
  got[0].release()


def test_a_dead_process_of_another_machine_loses_its_lease_in_time(
  bucket, soon
):
  put(bucket, 3)
  began = time.monotonic()
  mine = storage.Lease(bucket, 'MODEL_DIR')
  mine.acquire()
  assert time.monotonic() - began >= lease.LEASE
  assert storage.list_names(bucket) == ['lock.4']
  mine.release()


def test_a_process_that_renews_keeps_its_lease(bucket, soon):
  put(bucket, 1)
  ended = threading.Event()

  def renew():
    for n in range(100):
      put(bucket, 1, renewals=n)
      if ended.wait(0.1):
        return

  thread = threading.Thread(target=renew)
  thread.start()
  with pytest.raises(ValueError, match="process 1 on 'far', since 'then'"):
    storage.Lease(bucket, 'MODEL_DIR').acquire()
  ended.set()
  thread.join()


def test_a_killed_process_of_this_machine_loses_it_at_once(bucket, monkeypatch):
  monkeypatch.setattr(lease, 'LEASE', 1000.0)
  code = (
    'import os, signal; from atm import storage; '
    f'storage.Lease({bucket!r}, "x").acquire(); '
    'os.kill(os.getpid(), signal.SIGKILL)'
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == -9
  assert lease.read_last(bucket)[0] == 1
  mine = storage.Lease(bucket, 'MODEL_DIR')
  mine.acquire()
  mine.release()


def test_who_lost_the_lease_writes_no_more(bucket, soon):
  mine = storage.Lease(bucket, 'MODEL_DIR')
  mine.acquire()
  put(bucket, 2)
  time.sleep(lease.LEASE)
  for write in (
    lambda: storage.write_bytes(f'{bucket}/a', b''),
    lambda: storage.remove(f'{bucket}/a'),
    lambda: storage.remove_folder(bucket),
  ):
    with pytest.raises(storage.StorageError, match='another process has taken'):
      write()
  assert storage.read_bytes(f'{bucket}/lock.2')  # reading goes on
  mine.release()
  assert storage.list_names(bucket) == ['lock.1', 'lock.2']


def test_who_cannot_renew_writes_no_more(bucket, soon, monkeypatch):
  mine = storage.Lease(bucket, 'MODEL_DIR')
  mine.acquire()
  write = lease.files.write_bytes

  def fail(path, *args, **settings):
    if path.endswith('lock.1'):
      raise OSError('away')
    write(path, *args, **settings)

  monkeypatch.setattr(lease.files, 'write_bytes', fail)
  time.sleep(lease.LEASE)
  with pytest.raises(storage.StorageError, match='not renewed for'):
    write(f'{bucket}/a', b'')
  mine.release()


def test_who_renews_goes_on(bucket, monkeypatch):
  monkeypatch.setattr(lease, 'LEASE', 4.0)
  mine = storage.Lease(bucket, 'MODEL_DIR')
  mine.acquire()
  for _ in range(4):
    storage.write_bytes(f'{bucket}/a', b'')
    time.sleep(lease.LEASE / 5)
  assert storage.exists(f'{bucket}/a')
  mine.release()


@pytest.mark.parametrize('scheme', storage.SCHEMES)
def test_a_missing_bucket_is_told_by_the_setting(make_bucket, scheme):
  """Fault seen: the lock was named, which no user knows."""
  make_bucket(scheme)
  run = f'{scheme}://no-such-bucket/run'
  with pytest.raises(ValueError) as told:
    storage.Lease(run, f'MODEL_DIR = {run!r}').acquire()
  assert str(told.value) == (
    f'MODEL_DIR = {run!r} cannot be written: no such bucket'
  )
