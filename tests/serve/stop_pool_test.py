"""Parts of one table of stop strings."""

import numpy as np
import pytest

from atm.inference import stop_strings
from atm.serve.stop_pool import StopPool, pack_states

PIECES = ['', 'a', 'b', 'ab', 'c', 'ca']


def follow(table, state: int, end: int, ids) -> list[bool]:
  """Returns after each id whether a stop string was read."""
  found = []
  for i in ids:
    state = int(table[state, i])
    found.append(state == end)
  return found


def test_packed_tables_find_what_whole_ones_do():
  rng = np.random.default_rng(0)
  for stops in (['a'], ['ab', 'bca'], ['aab', 'c'], ['abcabcabc']):
    table = stop_strings.build_table(PIECES, stops)
    packed = pack_states(table)
    assert len(packed) <= len(table)
    for _ in range(20):
      ids = rng.integers(0, len(PIECES), 12)
      want = follow(table, 0, len(table) - 1, ids)
      assert follow(packed, 0, len(packed) - 1, ids) == want


def test_parts_are_shared_kept_and_freed():
  """Faults to see: a part overwrites another's; an unused one is not freed."""
  pool = StopPool(12, len(PIECES))
  a, b, c = (
    stop_strings.build_table(PIECES, [stop]) for stop in ('abc', 'ca', 'aba')
  )
  first, second = pool.acquire(a), pool.acquire(b)
  before, start = pool.table, np.array(pool.table)
  assert pool.acquire(a) is first and first.users == 2
  assert pool.acquire(c) is None  # no room
  pool.release(first)
  assert pool.acquire(c) is None
  table = np.asarray(pool.table)
  assert not table[0].any() and not table[second.end + 1 :].any()
  rng = np.random.default_rng(0)
  for part, whole in ((first, a), (second, b)):
    ids = rng.integers(0, len(PIECES), 12)
    want = follow(whole, 0, len(whole) - 1, ids)
    assert follow(table, part.start, part.end, ids) == want
  pool.release(first)
  third = pool.acquire(c)
  np.testing.assert_array_equal(before, start)  # a call may be reading it
  assert third.start == 1 and pool.acquire(b) is second
  assert pool.acquire(a) is None


def test_what_never_fits_is_refused():
  pool = StopPool(4, len(PIECES))
  pool.check(None)
  pool.check(stop_strings.build_table(PIECES, ['a']))
  with pytest.raises(ValueError, match='stop needs 5 states.*at most 3'):
    pool.check(stop_strings.build_table(PIECES, ['abc']))
