"""Packed rows fit, and lose nothing."""

import numpy as np
import pytest

from atm.data import packing


def test_packing_is_a_function_of_its_items(rng):
  sizes = [tuple(s) for s in rng.integers(1, 30, (500, 2))]
  once, twice = (
    list(packing.pack(iter(sizes), lambda s: s, 64, 64)) for _ in range(2)
  )
  assert once == twice
  assert sorted(s for row in once for s in row) == sorted(sizes)
  fill = np.array([np.sum(row, axis=0) for row in once])
  assert fill.max() <= 64
  least = np.sum(sizes, axis=0).max() / 64
  assert len(once) < 1.15 * least


@pytest.mark.parametrize(
  'sizes, rows',
  [
    # The third fits both rows and leaves less room in the second, or first.
    ([(5, 1), (7, 1), (3, 1)], [[(5, 1)], [(7, 1), (3, 1)]]),
    ([(7, 1), (5, 1), (3, 1)], [[(7, 1), (3, 1)], [(5, 1)]]),
    # Room on both sides counts: 3 + 9 against 4 + 3.
    ([(7, 1), (6, 7), (2, 2)], [[(7, 1)], [(6, 7), (2, 2)]]),
    # Of equals the first; what one side has no room for does not fit.
    ([(6, 6), (6, 6), (1, 1)], [[(6, 6), (1, 1)], [(6, 6)]]),
    ([(4, 4), (1, 9), (3, 2)], [[(4, 4), (3, 2)], [(1, 9)]]),
  ],
)
def test_an_item_goes_where_least_room_is_left(sizes, rows):
  """Fault seen: the first row that it fits, not the best."""
  assert list(packing.pack(sizes, lambda s: s, 10, 10)) == rows


def test_the_fullest_row_leaves_when_none_has_room():
  """Fault seen: the emptiest, or the first."""
  sizes = [(8, 8), (9, 9), (7, 7), (3, 3)]
  made = list(packing.pack(sizes, lambda s: s, 10, 10, open_rows=2))
  assert made == [[(9, 9)], [(8, 8)], [(7, 7), (3, 3)]]
