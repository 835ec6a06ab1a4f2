"""Rules of logits with settings of each row; of one for all: sampling_test."""

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
