"""Tests copies of objects here, and of local files in object stores."""

import os

import pytest

from atm import fileio, storage
from atm.storage import copies


@pytest.fixture
def small_pieces(monkeypatch):
  """Objects of a few kilobytes are cut as those of gigabytes are."""
  monkeypatch.setattr(copies, 'OBJECT_PIECE', 1000)


def test_a_folder_is_fetched_once_and_again_when_it_changes(
  bucket, rng, small_pieces
):
  contents = {'a': rng.bytes(12345), 'in/b': b'', 'in/c': b'c'}
  for name, content in contents.items():
    storage.write_bytes(f'{bucket}/{name}', content)
  local = storage.fetch(bucket)
  for name, content in contents.items():
    with open(f'{local}/{name}', 'rb') as f:
      assert f.read() == content
  assert storage.fetch(f'{bucket}/') == local
  assert os.path.basename(local) == os.path.basename(bucket)
  storage.write_bytes(f'{bucket}/in/c', b'd')
  with open(f'{storage.fetch(bucket)}/in/c', 'rb') as f:
    assert f.read() == b'd'
  with open(storage.fetch(f'{bucket}/a'), 'rb') as f:
    assert f.read() == contents['a']
  # Nothing is left of a copy under way.
  assert not [n for n in os.listdir(copies.CACHE) if '.' in n]


def test_a_local_path_is_its_own_copy(tmp_path):
  assert storage.fetch(str(tmp_path)) == str(tmp_path)


def test_what_is_not_there_is_not_fetched(bucket):
  with pytest.raises(FileNotFoundError):
    storage.fetch(f'{bucket}/no')


def test_folders_are_sent(bucket, tmp_path, rng):
  os.makedirs(tmp_path / 'folder' / 'in')
  (tmp_path / 'folder' / 'a').write_bytes(rng.bytes(100))
  (tmp_path / 'folder' / 'in' / 'b').write_bytes(b'')
  names = storage.upload_folder(str(tmp_path / 'folder'), f'{bucket}/to')
  assert names == ['a', 'in/b'] == list(storage.find_objects(f'{bucket}/to'))


def test_large_files_are_sent_in_parts(bucket, tmp_path, rng, monkeypatch):
  monkeypatch.setattr(copies, 'SENT_WHOLE', 1000)
  content = rng.bytes(5000)
  (tmp_path / 'a').write_bytes(content)
  storage.upload_file(str(tmp_path / 'a'), f'{bucket}/a')
  assert storage.read_bytes(f'{bucket}/a') == content


def test_what_was_written_badly_is_written_again(bucket, tmp_path, monkeypatch):
  (tmp_path / 'a').write_bytes(b'right')
  monkeypatch.setattr('atm.storage.client.FIRST_WAIT', 0.01)
  # Another process's content lies there when it is verified first.
  wrong = [b'wrong', b'short or so']
  look = copies.files.get_info

  def disturb(path):
    if wrong:
      storage.write_bytes(path, wrong.pop())
    return look(path)

  monkeypatch.setattr(copies.files, 'get_info', disturb)
  storage.upload_file(str(tmp_path / 'a'), f'{bucket}/a')
  assert not wrong and storage.read_bytes(f'{bucket}/a') == b'right'


def test_a_file_is_replaced_whole_or_not_at_all(bucket):
  path = f'{bucket}/a.json'
  fileio.write_json(path, {'a': 1})
  with pytest.raises(KeyError), fileio.replacing(path) as f:
    f.write('half')
    raise KeyError
  assert fileio.read_json(path) == {'a': 1}
  assert storage.list_names(bucket) == ['a.json']
  with pytest.raises(IsADirectoryError):
    fileio.read_json(bucket)
  fileio.write_atomically(path, 'über')
  assert storage.read_bytes(path) == 'über'.encode()
