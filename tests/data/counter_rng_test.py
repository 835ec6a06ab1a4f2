"""Random numbers are functions of their keys."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from atm.data import (
  counter_rng,
)


@given(n=st.integers(1, 5000), key=st.integers(0, 2**63))
def test_permute_is_a_permutation(n, key):
  made = counter_rng.permute(np.arange(n), n, np.uint64(key))
  np.testing.assert_array_equal(np.sort(made), np.arange(n))


def test_permutations_differ_by_key_and_look_random():
  n = 1000
  a, b = (counter_rng.permute(np.arange(n), n, np.uint64(k)) for k in (1, 2))
  assert (a == b).mean() < 0.02
  assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.1
