"""Tests logs that grow: files on this machine, folders of parts in a store."""

import pytest

from atm import fileio, storage
from atm.storage import part_log


@pytest.fixture(params=['local', 'gs', 's3'])
def path(request, monkeypatch):
  """The path of a log; each part of a store's may be written at any time."""
  monkeypatch.setattr(part_log, 'LEAST_BETWEEN', 0.0)
  if request.param == 'local':
    return str(request.getfixturevalue('tmp_path') / 'log.jsonl')
  return f'{request.getfixturevalue("make_bucket")(request.param)}/log.jsonl'


def read(path: str) -> list[int]:
  return [x['n'] for x in fileio.read_own_lines(path, {'n': int})]


def write(path: str, *numbers: int) -> None:
  log = storage.PartLog(path)
  for n in numbers:
    log.append(f'{{"n": {n}}}\n')
  log.close()


def test_lines_of_several_processes_are_joined(path):
  write(path, 1, 2)
  write(path, 3)
  write(path, 4, 5)
  assert read(path) == [1, 2, 3, 4, 5]


def test_parts_are_begun_anew_when_they_are_large(path, monkeypatch):
  monkeypatch.setattr(part_log, 'PART_SIZE', 20)
  write(path, *range(12))
  assert read(path) == [*range(12)]
  assert len(storage.list_parts(path)) == (4 if storage.is_remote(path) else 1)


def test_a_log_of_a_store_is_rewritten_at_once(bucket, monkeypatch):
  path = f'{bucket}/log'
  write(path, 1, 2)
  write(path, 3)
  log = storage.PartLog(path)
  with monkeypatch.context() as patch:  # the process ends in between
    patch.setattr(part_log.files, 'remove', lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      log.rewrite('{"n": 1}\n')
  assert read(path) == [1] and len(storage.list_names(path)) == 3
  write(path, 2)
  assert read(path) == [1, 2]
  log = storage.PartLog(path)
  log.rewrite('{"n": 7}\n')
  log.append('{"n": 8}\n')
  log.close()
  assert read(path) == [7, 8] and len(storage.list_names(path)) == 1


def test_the_order_is_not_that_of_clocks(bucket, monkeypatch):
  write(f'{bucket}/log', 1)
  monkeypatch.setattr(part_log, '_format_now', lambda: '20010101T000000')
  write(f'{bucket}/log', 2)
  assert read(f'{bucket}/log') == [1, 2]


def test_writes_of_a_part_are_not_too_many(bucket, monkeypatch):
  monkeypatch.setattr(part_log, 'LEAST_BETWEEN', 1000.0)
  log = storage.PartLog(f'{bucket}/log')
  log.append('{"n": 1}\n')
  log.append('{"n": 2}\n')
  assert read(log.path) == [1]
  log.flush()
  assert read(log.path) == [1, 2]


def test_every_part_begins_with_the_header(bucket, monkeypatch):
  monkeypatch.setattr(part_log, 'LEAST_BETWEEN', 0.0)
  monkeypatch.setattr(part_log, 'PART_SIZE', 4)
  log = storage.PartLog(f'{bucket}/log', '.v2', b'h')
  log.append(b'abc')
  log.append(b'd')
  log.close()
  parts = storage.list_parts(log.path)
  assert [storage.read_bytes(x) for x in parts] == [b'habc', b'hd']
  assert all(x.endswith('.v2') for x in parts)
