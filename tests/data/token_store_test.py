"""Rows on disk: read back as written, and never a damaged one."""

import json
import os
import random
import subprocess
import sys
import timeit

import numpy as np
import pytest

from atm.data import token_store

MADE = {'task': 't', 'vocabulary': 'abc'}
ROWS = [np.array(r, np.int32) for r in ([5, 6, 7], [8], [9, 10])]


def folder_of(tmp_path, files=(ROWS,), made_from=MADE) -> str:
  """A finished folder with these rows in each of its files."""
  folder = tmp_path / 'rows'
  folder.mkdir(parents=True)
  parts = [
    {
      'counts': {'documents': len(r)},
      'file': token_store.write_rows(str(folder / f'{i}'), r),
    }
    for i, r in enumerate(files)
  ]
  token_store.write_manifest(str(folder), made_from, parts)
  return str(folder)


def test_reads_back_by_index_over_files(tmp_path):
  made = token_store.TokenRows(folder_of(tmp_path, (ROWS, [], ROWS[:1])), MADE)
  assert len(made) == 4 and made.tokens == 9 and made.longest == 3
  assert made.counts == {'documents': 4}
  for index, want in enumerate([*ROWS, ROWS[0]]):
    np.testing.assert_array_equal(made.row(index), want)
  np.testing.assert_array_equal(made.head(5), [5, 6, 7, 8, 9])
  for index in (4, -1, 1.5, True, '1', None, float('nan')):
    with pytest.raises(ValueError, match='row = .*whole number from 0 to 3'):
      made.row(index)
  for folder in (None, 5, '', b'x'):
    with pytest.raises(ValueError, match='directory = '):
      token_store.TokenRows(folder)


@pytest.mark.parametrize(
  'row', [[5.5], ['5'], [2**40], [True], [None], [[5]], 'x', 5, [2**70]]
)
def test_what_int32_does_not_hold_is_not_written(tmp_path, row):
  """Faults seen: 5.9 written as 5, '5' as 5, a traceback of numpy."""
  with pytest.raises(ValueError, match='row 1 = .*expected token ids'):
    token_store.write_rows(str(tmp_path / 'rows'), [ROWS[0], row])
  assert not any(tmp_path.iterdir())


def test_a_local_folder_is_read_as_one(tmp_path, monkeypatch):
  """By the reader that refuses what is no regular file."""
  assert not token_store.has_manifest(str(tmp_path))
  folder = folder_of(tmp_path)
  assert token_store.has_manifest(folder)
  monkeypatch.setattr(token_store.storage, 'is_remote', lambda path: False)
  assert token_store.read_manifest(folder)['rows'] == 3


def test_empty_rows(tmp_path):
  made = token_store.TokenRows(folder_of(tmp_path, ([],)))
  assert len(made) == 0 and len(made.head(3)) == 0


def test_refuses_rows_made_from_something_else(tmp_path):
  with pytest.raises(ValueError, match="vocabulary = 'abc'.*'xyz'"):
    token_store.TokenRows(folder_of(tmp_path), {'vocabulary': 'xyz'})


def test_bytes_depend_on_the_rows_alone(tmp_path):
  read = lambda name: (tmp_path / name).read_bytes()
  rng = np.random.default_rng(0)
  many = [rng.integers(0, 1 << 17, n) for n in rng.integers(1, 900, 300)]
  for name in 'ab':
    token_store.write_rows(str(tmp_path / name), iter(many))
  assert read('a') == read('b')


def damaged(path, rng, count=None):
  """Yields with a bit of a byte flipped, of `count` bytes or of all in turn."""
  with open(path, 'rb') as f:
    content = f.read()
  places = range(len(content))
  for at in rng.sample(places, count) if count else places:
    flipped = content[at] ^ 1 << rng.randrange(8)
    with open(path, 'wb') as f:
      f.write(content[:at] + bytes([flipped]) + content[at + 1 :])
    yield at
  with open(path, 'wb') as f:
    f.write(content)


def test_every_flipped_bit_is_noticed_at_the_start(tmp_path):
  folder = folder_of(tmp_path)
  for _ in damaged(os.path.join(folder, '0'), random.Random(0), 300):
    with pytest.raises(ValueError, match='0 is damaged'):
      token_store.TokenRows(folder)
  token_store.TokenRows(folder)


def test_no_flipped_bit_gives_a_wrong_row_even_unverified(tmp_path):
  rng = np.random.default_rng(0)
  many = [rng.integers(0, 1 << 17, n).astype(np.int32) for n in (900, 3, 40)]
  folder = folder_of(tmp_path, (many,))
  for _ in damaged(os.path.join(folder, '0'), random.Random(0), 300):
    token_store._open_reader.cache_clear()
    made = token_store.TokenRows(folder, verify=None)
    for i, want in enumerate(many):
      try:
        np.testing.assert_array_equal(made.row(i), want)
      except ValueError as e:
        assert 'is damaged' in str(e)


def test_a_head_reads_no_more_blocks_than_it_needs(tmp_path, monkeypatch):
  made, read = token_store.TokenRows(folder_of(tmp_path)), []
  read_rows = made._read
  monkeypatch.setattr(token_store, 'HEAD_ROWS', 1)
  monkeypatch.setattr(made, '_read', lambda *x: read.append(x) or read_rows(*x))
  assert [made.head(n).tolist() for n in (0, 4)] == [[], [5, 6, 7, 8]]
  assert read == [(0, 0, 1), (0, 1, 2)]


def test_a_row_of_a_large_file_is_read_as_fast(tmp_path):
  """Fault seen: a reader that goes through all rows' indices for each row.

  240 microseconds a row of a file of 225,000 rows, and 5 of a small one.
  """

  def seconds(count: int) -> float:
    rows = [np.array([1, 2], np.int32)] * count
    made = token_store.TokenRows(folder_of(tmp_path / str(count), (rows,)))
    made.row(0)
    return min(timeit.repeat(lambda: made.row(count // 2), number=50, repeat=9))

  assert seconds(100_000) < 5 * seconds(10)


def test_hosts_verify_a_share_each(tmp_path):
  folder = folder_of(tmp_path, (ROWS, ROWS))
  path = os.path.join(folder, '1')
  with open(path, 'r+b') as f:
    f.seek(-1, os.SEEK_END)
    f.write(b'x')
  token_store.TokenRows(folder, verify=(0, 2))
  for verify in [{'verify': (1, 2)}, {}]:
    with pytest.raises(ValueError, match='1 is damaged'):
      token_store.TokenRows(folder, **verify)


@pytest.mark.parametrize('change', ['cut', 'gone', 'manifest'])
def test_missing_and_cut_files_are_named(tmp_path, change):
  folder = folder_of(tmp_path)
  path = os.path.join(
    folder, token_store.MANIFEST if change == 'manifest' else '0'
  )
  if change == 'gone':
    os.remove(path)
  else:
    os.truncate(path, os.path.getsize(path) - 9)
  expected = 'missing' if change == 'gone' else 'damaged'
  with pytest.raises(
    ValueError, match=f'{os.path.basename(path)} is {expected}'
  ):
    token_store.TokenRows(folder, verify=None)


@pytest.mark.parametrize('by', [-1, 1])
def test_a_file_of_another_size_is_refused_unread(tmp_path, by):
  """Fault seen: a longer file taken, where checksums are not compared."""
  folder = folder_of(tmp_path)
  path = os.path.join(folder, '0')
  size = os.path.getsize(path)
  os.truncate(path, size + by)
  with pytest.raises(
    ValueError, match=f'0 is damaged: expected {size:,} bytes'
  ):
    token_store.TokenRows(folder, verify=None)


@pytest.mark.parametrize('by', [-1, 1])
def test_a_manifest_that_counts_other_rows_is_refused(tmp_path, by):
  """Whole in itself, but not the sum of its files.

  Fault seen: more rows in files than in the sum taken."""
  folder = folder_of(tmp_path)
  write_json = token_store.fileio.write_json
  manifest = token_store.read_manifest(folder)
  manifest['rows'] += by
  write_json(os.path.join(folder, token_store.MANIFEST), manifest)
  with pytest.raises(ValueError, match='is not that of its files'):
    token_store.TokenRows(folder)


def test_without_a_manifest_there_are_no_rows(tmp_path):
  token_store.write_rows(str(tmp_path / '0'), ROWS)
  with pytest.raises(FileNotFoundError):
    token_store.TokenRows(str(tmp_path))


def test_a_write_that_fails_leaves_no_file(tmp_path):
  def broken():
    yield ROWS[0]
    raise RuntimeError('no more')

  with pytest.raises((RuntimeError, OSError), match='no more'):
    token_store.write_rows(str(tmp_path / '0'), broken())
  assert os.listdir(tmp_path) == []


def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path):
  """The limit on a file's size stands for the disk's."""
  code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
import numpy as np
from atm.data import token_store
try:
  many = (np.arange(i, i + 999) for i in range(500))
  token_store.write_rows({str(tmp_path / 'rows')!r}, many)
except OSError as e:
  print('said:', e)
"""

  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.stdout.startswith('said:') and 'cannot be written' in done.stdout
  assert os.listdir(tmp_path) == []


# --- The seal


def test_every_byte_of_a_manifest_is_sealed(tmp_path):
  """Fault seen: two of six flips unseen, one of a count that rates follow."""
  folder = folder_of(tmp_path, (ROWS, ROWS[:1]))
  path, whole = f'{folder}/manifest.json', token_store.read_manifest(folder)
  hashed, refused = token_store.TokenRows(folder, MADE).sha256, 0
  for at in damaged(path, random.Random(0)):
    try:
      assert token_store.read_manifest(folder) == whole, at  # white space
    except ValueError as e:
      assert str(e).startswith(f'{path} is damaged: '), at
      refused += 1
  assert refused > 400
  assert token_store.TokenRows(folder, MADE).sha256 == hashed


def unseal(path):
  """Makes a file as it was before there were seals."""
  with open(path) as f:
    value = json.load(f)
  del value['sha256']
  with open(path, 'w') as f:
    json.dump(value, f)


def test_a_manifest_without_a_seal_is_read_and_has_the_same_hash(tmp_path):
  """Fault seen: a damaged name of the seal takes it for such a one."""
  folder = folder_of(tmp_path)
  path, sealed = f'{folder}/manifest.json', token_store.TokenRows(folder)
  with open(path) as f:
    text = f.read()
  with open(path, 'w') as f:
    f.write(text.replace('"sha256"', '"sha257"'))
  with pytest.raises(ValueError, match='differs from its own hash'):
    token_store.TokenRows(folder)
  with open(path, 'w') as f:
    f.write(text)
  unseal(path)
  assert token_store.TokenRows(folder).sha256 == sealed.sha256
  for name in ('rows', 'tokens', 'longest'):
    with open(path, 'r+') as f:
      value = json.load(f)
      value['files'][0][name] += 1
      f.seek(0)
      json.dump(value, f)
    with pytest.raises(ValueError, match=f'{name}. is not that of its files'):
      token_store.TokenRows(folder)
    value['files'][0][name] -= 1
    with open(path, 'w') as f:
      json.dump(value, f)


@pytest.mark.parametrize('name', sorted(token_store.ENTRIES))
@pytest.mark.parametrize('value', [..., None, 'x', [0], True])
def test_a_manifest_of_another_form_is_refused_by_path(tmp_path, name, value):
  folder = folder_of(tmp_path)
  path = f'{folder}/manifest.json'
  with open(path) as f:
    manifest = json.load(f)
  del manifest['sha256'], manifest[name]
  if value is not ...:
    manifest[name] = value
  with open(path, 'w') as f:
    json.dump(manifest, f)
  with pytest.raises(ValueError, match=r'manifest\.json is damaged: '):
    token_store.TokenRows(folder)
