"""Random numbers are functions of their keys."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from atm.data import counter_rng

MASK = 2**64 - 1


def mix(x: int) -> int:
  """SplitMix64's finaliser of one number, in Python's integers."""
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
  return x ^ (x >> 31)


def key_of(*parts: int) -> int:
  key, gamma = 0, 0x9E3779B97F4A7C15
  for part in parts:
    key = mix((key + gamma + mix(part + gamma & MASK)) & MASK)
  return key


def test_bits_are_splitmix64s():
  """Its published first numbers of the seed 1234567."""
  expected = [
    6457827717110365317, 3203168211198807973, 9817491932198370423,
    4593380528125082431, 16408922859458223821,
  ]  # fmt: skip
  made = counter_rng.random_bits(np.uint64(1234567), 5)
  assert made.tolist() == [expected]
  uniform = counter_rng.uniform(np.uint64(1234567), 5)[0]
  np.testing.assert_array_equal(uniform, [(b >> 11) / 2**53 for b in expected])


def test_keys_and_orders_are_those_of_old_runs():
  """A run that goes on reads what an earlier version would have read."""
  for parts in [(0,), (7, 3), (2**63, 5, 1)]:
    assert int(counter_rng.make_key(*parts)) == key_of(*parts)
  for n in (1, 2, 3, 4, 5, 17, 64, 65, 1000):
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    for index in {0, n // 2, n - 1}:
      x, key = index, key_of(11, n)
      while True:
        left, right = x >> half, x & low
        for number in range(4):
          step = mix(right + key_of(key, number) & MASK) & low
          left, right = right, left ^ step
        x = left << half | right
        if x < n:
          break
      made = counter_rng.permute(np.array([index]), n, np.uint64(key))
      assert made.tolist() == [x], (n, index)


@given(n=st.integers(1, 5000), key=st.integers(0, 2**63))
def test_permute_is_a_permutation(n, key):
  made = counter_rng.permute(np.arange(n), n, np.uint64(key))
  np.testing.assert_array_equal(np.sort(made), np.arange(n))


def test_permutations_differ_by_key_and_look_random():
  n = 1000
  a, b = (counter_rng.permute(np.arange(n), n, np.uint64(k)) for k in (1, 2))
  assert (a == b).mean() < 0.02
  assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.1
