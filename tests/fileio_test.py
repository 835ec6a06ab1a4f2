import os
import pathlib
import zlib

import pytest

from atm import fileio


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'x.json'
  fileio.write_json(str(path), {'b': 1, 'a': [2]})
  assert path.read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}'
  with pytest.raises(RuntimeError), fileio.replacing(str(path)) as f:
    f.write('half of it')
    raise RuntimeError
  assert path.read_text().startswith('{\n "a"')
  assert os.listdir(tmp_path) == ['x.json']  # nothing partial is left


def test_text_is_utf8_and_bytes_stay(tmp_path):
  for content in ('наука', b'\x00\xff'):
    fileio.write_atomically(str(tmp_path / 'x'), content)
    raw = (tmp_path / 'x').read_bytes()
    assert raw == (content if isinstance(content, bytes) else content.encode())
    assert fileio.checksum(str(tmp_path / 'x')) == zlib.crc32(raw)


def test_what_cannot_be_written_is_an_oserror(tmp_path):
  with pytest.raises(OSError):
    fileio.write_atomically(str(tmp_path / 'no' / 'x'), 'text')


def test_a_hash_stays_that_of_files_written_before():
  """Faults seen: keys as they come, ASCII always, an error at a path."""
  value = {'b': 'é', 'a': 1}
  assert fileio.hash_json(value).startswith('fb0782fb7a8a00c6')
  assert fileio.hash_json(value, ensure_ascii=False).startswith('72098b2a2208')
  path = pathlib.Path('x')
  assert fileio.hash_json([path]) == fileio.hash_json(['x'])
