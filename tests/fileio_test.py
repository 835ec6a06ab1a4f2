import os
import pathlib
import zlib

import pytest

from atm import fileio, storage


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


@pytest.mark.parametrize(
  'text',
  ['', '{', '[' * 100_000, '{"a":' * 900 + '1' + '}' * 900, b'\xff', '[]',
   '[' * 66 + ']' * 66, 'null'],
)  # fmt: skip
def test_json_that_is_none_is_refused_by_path(tmp_path, text):
  path = tmp_path / 'x.json'
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(ValueError, match='x.json') as e:
    fileio.read_json(str(path))
  assert len(str(e.value)) < 500


def test_json_with_a_byte_order_mark_and_depth(tmp_path):
  path = tmp_path / 'x.json'
  path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
  assert fileio.read_json(str(path)) == {'a': 1}
  deep = '[' * fileio.MOST_DEPTH + ']' * fileio.MOST_DEPTH
  assert fileio.parse_json(deep, 'x')
  with pytest.raises(ValueError, match='deep'):
    fileio.parse_json(f'[{deep}]', 'x')


def test_pipes_devices_and_folders_are_no_files(tmp_path):
  os.mkfifo(tmp_path / 'fifo')
  for path in (tmp_path / 'fifo', '/dev/zero'):
    with pytest.raises(ValueError, match='expected a file'):
      fileio.read_json(str(path))
  with pytest.raises(OSError, match='is a folder'):
    fileio.read_json(str(tmp_path))


def test_entries_have_their_kind():
  assert fileio.get_key({'a': 1}, 'a', int, 'x') == 1
  for value in ({}, {'a': None}, {'a': True}, {'a': '1'}):
    with pytest.raises(
      ValueError, match="^x: (a is .*: expected|it has no 'a')"
    ):
      fileio.get_key(value, 'a', int, 'x')


@pytest.mark.parametrize('path, message', [
  ('.', 'is a folder'),
  ('new/', 'is a folder'),
  ('no/x', "there is no folder 'no'"),
  ('fifo', 'expected a file'),
  ('/dev/null', 'expected a file'),
  ('in.txt', 'is the file that is read'),
  ('link', 'is the file that is read'),
  ('lost', 'there is no folder'),
  ('hard', 'is the file that is read'),
  ('x' * 300, 'cannot be written'),
])  # fmt: skip
def test_an_output_is_refused_before_work_begins(
  tmp_path, monkeypatch, path, message
):
  """Fault seen: all rows generated before the folder was found one."""
  monkeypatch.chdir(tmp_path)
  pathlib.Path('in.txt').touch()
  os.symlink('in.txt', 'link')
  os.symlink('no/x', 'lost')
  os.link('in.txt', 'hard')
  os.mkfifo('fifo')
  with pytest.raises(ValueError, match=f'^OUTPUT = .*{message}'):
    fileio.check_output('OUTPUT', path, ['in.txt'])
  for good in ('out.txt', './out.txt', str(tmp_path / 'out.txt')):
    assert fileio.check_output('OUTPUT', good, ['in.txt', 'none']) == good
  assert sorted(os.listdir()) == ['fifo', 'hard', 'in.txt', 'link', 'lost']


def test_a_device_is_never_replaced(tmp_path):
  """Fault seen: a file in the place of /dev/zero, by a link to it."""
  os.mkfifo(tmp_path / 'fifo')
  os.symlink('fifo', tmp_path / 'link')
  for name in ('fifo', 'link'):
    with pytest.raises(ValueError, match='expected a file, not a pipe'):
      fileio.write_atomically(str(tmp_path / name), 'text')
    assert (tmp_path / 'fifo').is_fifo()
  assert sorted(os.listdir(tmp_path)) == ['fifo', 'link']


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
  """Fault seen: a file in place of the link."""
  os.symlink('target', tmp_path / 'link')
  for text in ('new', 'newer'):
    fileio.write_atomically(str(tmp_path / 'link'), text)
    assert (tmp_path / 'target').read_text() == text
  assert (tmp_path / 'link').is_symlink()


def test_a_folder_to_write_is_refused_before_work_begins(tmp_path, monkeypatch):
  """Faults seen: hours of work, then a file in the folder's place."""
  monkeypatch.chdir(tmp_path)
  pathlib.Path('file').touch()
  os.symlink('nowhere', 'link')
  for path in ('file', 'file/inner', 'link', '/proc/none'):
    with pytest.raises(ValueError, match='^OUTPUT_DIR = '):
      fileio.check_output_folder('OUTPUT_DIR', path)
  for path in (None, '.', 'new/inner', str(tmp_path)):
    assert fileio.check_output_folder('OUTPUT_DIR', path) == path
  assert sorted(os.listdir()) == ['file', 'link']


def test_a_folder_of_a_store_is_refused_before_work_begins(bucket):
  """Fault seen: an export's hours of work, and no such bucket at its end."""
  path = f'{bucket}/new'
  assert fileio.check_output_folder('OUTPUT', path) == path
  assert not storage.list_names(bucket)
  wrong = bucket.replace('//bucket/', '//other/')
  with pytest.raises(ValueError, match=f"OUTPUT = '{wrong}'.* no such bucket"):
    fileio.check_output_folder('OUTPUT', wrong)


def test_an_output_replaces_no_file_of_a_user(tmp_path):
  """Fault seen: notes named as OUTPUT were replaced at the end."""
  path = tmp_path / 'notes.txt'
  is_ours = lambda line: line.startswith(b'{')
  check = lambda overwrite=True: fileio.check_output(
    'OUTPUT', str(path), is_ours=is_ours, overwrite=overwrite
  )
  check()
  path.write_text('{"output": 1}\nx')
  check()
  with pytest.raises(ValueError, match='there already: OVERWRITE=True repl'):
    check(overwrite=False)
  path.write_text('')
  check()
  path.write_text('mine\n{')
  with pytest.raises(ValueError, match='OUTPUT = .*notes.txt. is there alrea'):
    check()
  assert path.read_text() == 'mine\n{'


def test_the_whole_of_a_file_is_called_it():
  """Fault seen: 'str is None'."""
  with pytest.raises(ValueError, match='^x: it is None: expected an object'):
    fileio.check_json(None, {'step': int}, 'x')
