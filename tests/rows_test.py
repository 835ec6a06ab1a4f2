import os

import numpy as np
import pytest

from atm import rows

MADE = {'task': 't', 'vocabulary': 'abc'}
ROWS = [np.array(r, np.int32) for r in ([5, 6, 7], [8], [9, 10])]


def test_reads_back_by_index(tmp_path):
  folder = str(tmp_path / 'rows')
  rows.build(folder, iter(ROWS), MADE)
  made = rows.Rows(folder, MADE)
  assert len(made) == 3 and made.tokens == 6
  tokens, length = made.read(np.array([2, 0, 0]), 4)
  np.testing.assert_array_equal(
    tokens, [[9, 10, 0, 0], [5, 6, 7, 0], [5, 6, 7, 0]]
  )
  np.testing.assert_array_equal(length, [2, 3, 3])
  with pytest.raises(IndexError):
    made.read(np.array([3]), 4)


def test_empty_rows(tmp_path):
  folder = str(tmp_path / 'rows')
  rows.build(folder, iter([]), MADE)
  assert len(rows.Rows(folder)) == 0


def test_refuses_rows_made_from_something_else(tmp_path):
  folder = str(tmp_path / 'rows')
  rows.build(folder, iter(ROWS), MADE)
  with pytest.raises(ValueError, match="vocabulary = 'abc'.*'xyz'"):
    rows.Rows(folder, {'vocabulary': 'xyz'})


@pytest.mark.parametrize('name', rows.FILES)
def test_every_flipped_byte_is_noticed(tmp_path, name):
  folder = str(tmp_path / 'rows')
  rows.build(folder, iter(ROWS), MADE)
  path = os.path.join(folder, name)
  with open(path, 'rb') as f:
    content = f.read()
  for i in range(len(content)):
    with open(path, 'wb') as f:
      f.write(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
    with pytest.raises(ValueError, match=f'{name} is damaged'):
      rows.Rows(folder)


def test_a_build_that_fails_leaves_no_rows(tmp_path):
  folder = str(tmp_path / 'rows')

  def broken():
    yield ROWS[0]
    raise RuntimeError('no more')

  with pytest.raises(RuntimeError):
    rows.build(folder, broken(), MADE)
  assert not os.path.exists(folder)
  rows.build(folder, iter(ROWS), MADE)
  assert len(rows.Rows(folder)) == 3
