"""Rules of logits with settings of each row; of one for all: sampling_test."""

import jax
import jax.numpy as jnp
import numpy as np

from atm.inference import logits_processors


def banned(logits) -> list[list[int]]:
  """Returns the ids of each row that are banned."""
  return [np.flatnonzero(np.isneginf(row)).tolist() for row in logits]


def test_rows_have_n_grams_of_their_own_length():
  """0 bans nothing, and longer ones than there are ids ban nothing."""
  ids = jnp.array([[-1, 1, 2, 3, 1, 2]] * 6)
  n = jnp.array([0, 1, 2, 3, 4, 9])
  out = logits_processors.ban_ngrams(jnp.zeros((6, 5)), ids, ids, n)
  assert banned(out) == [[], [1, 2, 3], [3], [3], [], []]
  # Nothing written as yet: only single ids can be repeated.
  none = jnp.zeros((6, 0), jnp.int32)
  out = logits_processors.ban_ngrams(jnp.zeros((6, 5)), ids, none, n)
  assert banned(out) == [[], [1, 2, 3], [], [], [], []]


def test_ends_are_banned_and_forced_by_row():
  count, limit = jnp.array([1, 2, 3]), jnp.array([3, 2, 3])
  logits = jnp.zeros((3, 4))
  early = logits_processors.ban_early_end(logits, count, limit, 2)
  assert banned(early) == [[2], [], []]
  forced = logits_processors.force_end(logits, count, limit, 2)
  assert banned(forced) == [[], [0, 1, 3], [0, 1, 3]]


def truncate_by_sorting(logits, top_k: int, top_p: float, min_p: float):
  """Returns logits [V] cut as `truncate` does, by sorting."""
  order = np.sort(logits.astype(np.float64))
  least = order[-min(top_k or len(order), len(order))]
  order = order[order >= least]
  share = np.exp(order - order[-1]) / np.exp(order - order[-1]).sum()
  inside = (np.cumsum(share) > 1 - top_p) | (top_p >= 1)
  inside[-1] = True
  with np.errstate(divide='ignore'):
    least = max(order[inside][0], order[-1] + np.log(min_p))
  return np.where(logits < least, -np.inf, logits)


def test_truncation_is_that_of_sorted_logits():
  """With ties, with ids that are banned, of one sign, and of each row's own."""
  rng, R, V = np.random.default_rng(0), 64, 40
  logits = rng.standard_normal((R, V)).astype(np.float32)
  logits *= rng.choice([0.1, 1, 5], (R, 1))
  logits[::3] = np.round(logits[::3])
  logits[::4, 3:20] = -np.inf
  logits[::5] = -np.abs(logits[::5])
  k = rng.choice([0, 1, 5, V, 900], R).astype(np.int32)
  p = rng.choice([1, 0.9, 0.5, 0.01], R).astype(np.float32)
  m = rng.choice([0, 0.05, 1], R).astype(np.float32)
  out = jax.jit(logits_processors.truncate)(
    logits, k[:, None], p[:, None], m[:, None]
  )
  for row in zip(out, logits, k, p, m, strict=True):
    np.testing.assert_array_equal(row[0], truncate_by_sorting(*row[1:]))
