"""Rows are read in place from object stores, each by its own bytes."""

import numpy as np
import pytest

from atm import storage
from atm.data import remote_rows, token_store


def write(bucket: str, rng, count: int) -> tuple[str, dict, list]:
  """Returns (path, facts, rows) of a file in an object store."""
  sizes = rng.integers(1, 1025, count)
  rows = [rng.integers(0, 1 << 17, n).astype('<i4') for n in sizes]
  path = f'{bucket}/rows.array_record'
  return path, token_store.write_rows(path, rows), rows


@pytest.mark.parametrize('count', [1, 3, 700])
def test_rows_in_any_order_and_again(bucket, rng, count, monkeypatch):
  monkeypatch.setattr(remote_rows, 'MOST_HELD', 50_000)
  path, facts, rows = write(bucket, rng, count)
  file = remote_rows.RemoteRowsFile(path, facts['bytes'], count)
  order = [*range(min(count, 60)), *rng.permutation(count)[:100].tolist(), 0]
  for i in order:
    (row,) = file.read(i, i + 1)
    assert np.array_equal(np.frombuffer(row, '<i4'), rows[i]), i
  whole = b''.join(file.read(0, count))
  assert np.array_equal(np.frombuffer(whole, '<i4'), np.concatenate(rows))
  with pytest.raises((IndexError, ValueError)):
    file.read(count, count + 1)


def test_a_footer_longer_than_was_guessed(make_bucket, rng, monkeypatch):
  monkeypatch.setattr(remote_rows, 'ROW_BYTES', -128)
  path, facts, rows = write(make_bucket('s3'), rng, 512)
  file = remote_rows.RemoteRowsFile(path, facts['bytes'], 512)
  (row,) = file.read(511, 512)
  assert np.array_equal(np.frombuffer(row, '<i4'), rows[511])


def test_a_row_costs_its_own_bytes(make_bucket, rng, monkeypatch):
  path, facts, _ = write(make_bucket('gs'), rng, 500)
  asked, read_range = [], storage.read_range

  def counting(path, start, end):
    asked.append(end - start)
    return read_range(path, start, end)

  monkeypatch.setattr(remote_rows.storage, 'read_range', counting)
  file = remote_rows.RemoteRowsFile(path, facts['bytes'], 500)
  file.read(17, 18)
  assert len(asked) == 2 and asked[0] < 150_000 and asked[1] < 5_000


@pytest.mark.parametrize('place', ['row', 'footer', 'postscript'])
def test_a_changed_byte_is_refused(make_bucket, rng, place):
  path, facts, _ = write(make_bucket('gs'), rng, 50)
  content = bytearray(storage.read_bytes(path))
  at = {'row': 300, 'footer': -2 * 65536 + 200, 'postscript': -65536 + 70}
  content[at[place]] ^= 1
  if place == 'footer':  # where it is depends on the rows
    start = content.rindex(b'\x28\xb5\x2f\xfd')
    content[start + 9] ^= 4
  storage.write_bytes(path, bytes(content))
  with pytest.raises((RuntimeError, ValueError)):
    file = remote_rows.RemoteRowsFile(path, facts['bytes'], 50)
    for i in range(50):
      file.read(i, i + 1)
