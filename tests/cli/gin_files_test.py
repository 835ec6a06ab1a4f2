"""Where gin files are looked up, which ones may be included, how they read."""

import pytest

from atm.cli import gin_files
from atm.cli.gin_text import UserError


@pytest.fixture
def here(tmp_path, monkeypatch):
  """Returns the working directory; conf/ beside it has x.gin and own.gin."""
  folder, conf = tmp_path / 'here', tmp_path / 'conf'
  for made in (folder, conf, conf / 'below'):
    made.mkdir()
  for path in (folder / 'local.gin', conf / 'own.gin', conf / 'below' / 'b.gin',
               conf / 'x.gin', tmp_path / 'outside.gin'):  # fmt: skip
    path.write_text('SEED = 1\n')
  monkeypatch.chdir(folder)
  return folder


def test_the_working_directory_comes_first(here):
  assert gin_files.find_file('local.gin') == './local.gin'
  assert gin_files.is_shipped(gin_files.find_file('models/tiny.gin'))
  (here / 'models').mkdir()
  (here / 'models' / 'tiny.gin').touch()
  assert gin_files.find_file('models/tiny.gin') == './models/tiny.gin'
  with pytest.raises(UserError, match='mean .models/tiny.gin'):
    gin_files.find_file('models/tinny.gin')


def test_a_run_is_the_shipped_one(here):
  """Fault seen: a file in the folder `runs` of models changed the command."""
  (here / 'runs').mkdir()
  (here / 'runs' / 'infer.gin').write_text("MODEL_DIR = 'other'\n")
  assert gin_files.is_shipped(gin_files.run_file('infer'))
  assert gin_files.run_file('infer') in gin_files.find_include(
    'runs/infer.gin', gin_files.run_file('finetune')
  )


def test_a_folder_of_the_same_name_is_passed_by(here):
  (here / 'models' / 'tiny.gin').mkdir(parents=True)
  assert gin_files.is_shipped(gin_files.find_file('models/tiny.gin'))
  (here / 'data.gin').mkdir()
  with pytest.raises(UserError, match='is a folder: expected a file'):
    gin_files.find_file('data.gin')


def test_what_may_be_included(here, tmp_path):
  including = str(tmp_path / 'conf' / 'x.gin')
  for name in ('local.gin', 'models/tiny.gin', 'own.gin', 'below/b.gin',
               '../conf/own.gin', str(tmp_path / 'conf' / 'below' / 'b.gin'),
               str(here / 'local.gin')):  # fmt: skip
    assert gin_files.find_include(name, including)
  (here / 'link.gin').symlink_to(tmp_path / 'outside.gin')
  (here / 'inner.gin').symlink_to(here / 'local.gin')
  assert gin_files.find_include('inner.gin', including)
  for name in ('link.gin', '../outside.gin', '/etc/hosts'):
    with pytest.raises(UserError, match='is refused: with links resolved'):
      gin_files.find_include(name, including)
  with pytest.raises(UserError, match='no gin file'):
    gin_files.find_include('none.gin', including)


def test_a_folder_is_not_another_that_begins_alike(here, tmp_path):
  (tmp_path / 'here2').mkdir()
  (tmp_path / 'here2' / 'a.gin').touch()
  with pytest.raises(UserError, match='is refused'):
    gin_files.find_include('../here2/a.gin', 'local.gin')


def test_a_byte_order_mark_is_left_out(here):
  (here / 'x.gin').write_bytes(b'\xef\xbb\xbfSEED = 1\r\n')
  assert gin_files.read_file('x.gin') == 'SEED = 1\r\n'


@pytest.mark.parametrize('content, message', [
  (b'SEED = 1 # \xe9', 'x.gin: byte 11 is not UTF-8'),
  ('SEED = 1'.encode('utf-16'), 'x.gin: byte 0 is not UTF-8'),
  (b'#' * (2**19 + 1), 'x.gin: over 524,288 bytes'),
])  # fmt: skip
def test_what_is_no_text(here, content, message):
  (here / 'x.gin').write_bytes(content)
  with pytest.raises(UserError, match=message):
    gin_files.read_file('x.gin')
