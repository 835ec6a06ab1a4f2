"""Packed rows fit, and lose nothing."""

import numpy as np

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
  assert len(once) < 1.15 * least  # best fit wastes little
