"""Random numbers by counter: tokens to drop, orders to read in.

The random numbers of a row come from a counter hashed with its key, so they
depend on nothing but the key: neither on the batch nor on which host asks.

Letters: B rows, K spans.
"""

import numpy as np

U64 = np.uint64
_GAMMA = U64(0x9E3779B97F4A7C15)  # the golden ratio, as SplitMix64 steps


def mix64(x: np.ndarray) -> np.ndarray:
  """Applies SplitMix64's finaliser (Steele et al., 2014) to a uint64 array."""
  x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
  return x ^ (x >> U64(31))


def make_key(*parts) -> np.ndarray:
  """Hashes integers, or integer arrays that broadcast, to uint64 keys."""
  key = np.zeros((), U64)
  with np.errstate(over='ignore'):  # NumPy warns of scalars only
    for part in parts:
      key = mix64(key + _GAMMA + mix64(np.asarray(part).astype(U64) + _GAMMA))
  return key


def random_bits(key: np.ndarray, n: int) -> np.ndarray:
  """Draws [B, n] uint64 from keys [B]: a SplitMix64 stream a key."""
  counter = np.arange(1, n + 1, dtype=U64) * _GAMMA
  return mix64(np.atleast_1d(key)[:, None] + counter)


def uniform(key: np.ndarray, n: int) -> np.ndarray:
  """Draws [B, n] float64 in [0, 1) from keys [B]."""
  # 53 bits, as many as a float64 holds.
  return (random_bits(key, n) >> U64(11)).astype(np.float64) * 2.0**-53


def permute(index: np.ndarray, n, key: np.ndarray) -> np.ndarray:
  """Evaluates a random permutation of range(n) at `index`; returns int64 [B].

  Args:
    index: [B] integers in [0, n).
    n: [B] or scalar: how many are permuted; below 2 ** 53.
    key: [B] or scalar uint64; another key is another permutation.
  """
  # A Feistel network over the smallest even number of bits that holds n, walked
  # until it falls below n (Black and Rogaway, 2002); it needs no table.
  x = np.asarray(index).astype(U64)
  n = np.broadcast_to(n, x.shape).astype(U64)
  width = np.frexp(np.maximum(n, 2).astype(np.float64) - 1)[1]  # bit length
  half = np.maximum(1, (width + 1) // 2).astype(U64)
  low = (U64(1) << half) - U64(1)
  rounds = [make_key(key, number) for number in range(4)]
  walking = np.ones(x.shape, bool)
  while walking.any():
    left, right = x >> half, x & low
    for round_key in rounds:
      left, right = right, left ^ (mix64(right + round_key) & low)
    x = np.where(walking, (left << half) | right, x)
    walking = x >= n
  return x.astype(np.int64)
