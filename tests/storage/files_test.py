"""Tests files by path, on this machine and on servers of both stores."""

import os
import time

import pytest

from atm import storage
from atm.storage import files


@pytest.fixture(params=['local', 'gs', 's3'])
def folder(request):
  """A folder on this machine, or in each of the stores."""
  if request.param == 'local':
    return str(request.getfixturevalue('tmp_path') / 'folder')
  return request.getfixturevalue('make_bucket')(request.param)


def fill(folder: str) -> None:
  """Writes files whose names need care."""
  storage.make_folder(f'{folder}/in ner')
  storage.write_bytes(f'{folder}/a', b'abc')
  storage.write_bytes(f'{folder}/in ner/ü%20#?', b'')


def test_what_is_there_is_told(folder):
  assert not storage.exists(folder)
  fill(folder)
  assert storage.is_folder(folder) and storage.is_folder(f'{folder}/in ner/')
  assert storage.is_file(f'{folder}/a') and not storage.is_folder(f'{folder}/a')
  assert not storage.exists(f'{folder}/b') and not storage.is_file(folder)
  assert storage.list_names(folder) == ['a', 'in ner']
  assert storage.list_names(f'{folder}/in ner/') == ['ü%20#?']
  assert list(storage.walk(folder)) == [
    (folder, ['in ner'], ['a']),
    (f'{folder}/in ner', [], ['ü%20#?']),
  ]
  assert storage.get_size(f'{folder}/a') == 3
  assert abs(storage.get_time(f'{folder}/a') - time.time()) < 60


def test_contents_come_back(folder, rng):
  storage.make_folder(folder)
  content = rng.bytes(2 * files.BUFFER + 17)
  storage.write_bytes(f'{folder}/a', content)
  assert storage.read_bytes(f'{folder}/a') == content
  with storage.open_binary(f'{folder}/a') as f:
    assert f.read(5) == content[:5]
    f.seek(-7, os.SEEK_END)
    assert f.read() == content[-7:] and f.read() == b''
    f.seek(3)
    assert f.read() == content[3:]
  storage.write_bytes(f'{folder}/lines', b'one\ntwo\n\nfour')
  with storage.open_binary(f'{folder}/lines') as f:
    assert list(f) == [b'one\n', b'two\n', b'\n', b'four']


def test_a_file_is_made_by_one_alone(folder):
  storage.make_folder(folder)
  storage.write_bytes(f'{folder}/a', b'1', if_absent=True)
  with pytest.raises(FileExistsError):
    storage.write_bytes(f'{folder}/a', b'2', if_absent=True)
  assert storage.read_bytes(f'{folder}/a') == b'1'


def test_a_file_that_an_unheard_try_made_is_ours(bucket, monkeypatch):
  write = files.call

  def twice(doing, path, work):
    write(doing, path, work)
    return write(doing, path, work)  # as if the first answer were lost

  monkeypatch.setattr(files, 'call', twice)
  storage.write_bytes(f'{bucket}/a', b'1', if_absent=True)
  with pytest.raises(FileExistsError):
    storage.write_bytes(f'{bucket}/a', b'2', if_absent=True)


def test_files_move_and_go(folder):
  fill(folder)
  storage.rename(f'{folder}/a', f'{folder}/b')
  assert storage.list_names(folder) == ['b', 'in ner']
  assert storage.read_bytes(f'{folder}/b') == b'abc'
  storage.remove(f'{folder}/b')
  storage.remove_folder(folder)
  storage.remove_folder(folder)
  assert not storage.exists(folder)


def test_a_missing_file_raises_as_a_local_one_does(folder):
  for read in (storage.read_bytes, storage.open_binary, storage.get_size):
    with pytest.raises(FileNotFoundError) as e:
      read(f'{folder}/no')
    assert e.value.filename == f'{folder}/no'


def test_paths_of_stores_are_not_bent():
  assert storage.absolute('gs://b/x') == 'gs://b/x'
  assert storage.absolute('x') == os.path.abspath('x')
  assert storage.relative('gs://b/x/y/z', 'gs://b/x/') == 'y/z'
  assert storage.relative('gs://b/x', 'gs://b/x') == '.'
  assert storage.relative('/a/b/c', '/a') == 'b/c'
