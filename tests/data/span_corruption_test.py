"""Spans are Poisson, uniform over the row, and exact in number."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from atm.data import counter_rng, span_corruption

seeds = st.integers(0, 2**63)


def row_of(n, width=None):
  """[1, width] of distinct ids from 100, and its length."""
  tokens = np.zeros((1, width or n), np.int32)
  tokens[0, :n] = np.arange(100, 100 + n)
  return tokens, np.array([n])


@given(seed=seeds, others=st.integers(0, 3), width=st.integers(40, 60))
def test_noise_of_a_row_depends_on_its_key_alone(seed, others, width):
  tokens, length = row_of(40, width)
  key = counter_rng.make_key(seed)[None]
  alone = span_corruption.draw_keep_mask(key, length, width, 0.15, 3.0)[0]
  lengths = np.concatenate([np.full(others, 7), length])
  keys = counter_rng.make_key(np.arange(others + 1) + 9)
  keys[-1] = key[0]
  among = span_corruption.draw_keep_mask(keys, lengths, width, 0.15, 3.0)[-1]
  np.testing.assert_array_equal(alone, among)


def spans_of(mask):
  """Lengths of the runs of False within each row of a mask."""
  edges = np.diff(np.pad((~mask).astype(int), ((0, 0), (1, 1))), axis=1)
  starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
  return starts, ends[:, 1] - starts[:, 1]


def test_spans_are_poisson_and_uniform_over_the_row():
  B, n = 20_000, 100
  keys = counter_rng.make_key(7, np.arange(B))
  mask = span_corruption.draw_keep_mask(keys, np.full(B, n), n, 0.15, 3.0)
  assert ((~mask).sum(1) == 15).all()
  # Every place is dropped equally often, but for the first and last few, which
  # fewer whole spans can cover, alike at both ends.
  share = (~mask).mean(0)
  assert abs(share[8:-8] - share[8:-8].mean()).max() < 0.01
  assert abs(share - share[::-1]).max() < 0.01
  starts, lengths = spans_of(mask)
  assert 2.2 < lengths.mean() < 3.2  # Poisson(3) without 0, and one cut a row
  # The cut span (here: the last drawn) is anywhere: the last span of a row is
  # not shorter than the first.
  first = lengths[np.r_[True, np.diff(starts[:, 0]) > 0]]
  last = lengths[np.r_[np.diff(starts[:, 0]) > 0, True]]
  assert abs(first.mean() - last.mean()) < 0.05


def test_span_lengths_follow_the_zero_truncated_poisson():
  budget = np.full(2000, 1000)
  drawn = span_corruption.draw_span_lengths(
    counter_rng.make_key(3, np.arange(2000)), budget, 3.0
  )
  assert (drawn.sum(1) == budget).all()
  seen = np.bincount(drawn[:, :100].ravel(), minlength=12)[1:12]
  k = np.arange(1, 12)
  factorial = np.cumprod(k.astype(float))
  expected = np.exp(-3.0) * 3.0**k / factorial / (1 - np.exp(-3.0))
  np.testing.assert_allclose(seen / seen.sum(), expected, atol=0.005)


def test_masks_are_those_of_old_runs():
  """One row at a time, in Python's integers: as an earlier version drew."""
  length, width, density, mean = 23, 29, 0.3, 3.0
  key = counter_rng.make_key(5)
  (mask,) = span_corruption.draw_keep_mask(
    key[None], np.array([length]), width, density, mean
  )
  budget = round(length * density)
  kept, spans = length - budget, []
  pmf = [math.exp(-mean) * mean**k / math.factorial(k) for k in range(60)][1:]
  for draw in counter_rng.uniform(counter_rng.make_key(key, 1), budget)[0]:
    size = 1
    while sum(pmf[:size]) / sum(pmf) <= draw:
      size += 1
    spans.append(min(size, budget - sum(spans)))
  bits = counter_rng.random_bits(counter_rng.make_key(key, 2), width + 1)[0]
  gaps = range(kept + 1)  # before each token that is kept, and behind the last
  order = sorted(gaps, key=lambda gap: (int(bits[gap]) >> 20, gap))
  expected, drop = [], dict(zip(order, spans, strict=False))
  for gap in gaps:
    expected += [False] * drop.get(gap, 0) + [True]
  assert list(mask) == expected[:-1] + [False] * (width - length)


def test_a_row_of_nothing_and_a_budget_of_nothing():
  keys = counter_rng.make_key(np.arange(2))
  mask = span_corruption.draw_keep_mask(keys, np.array([0, 3]), 3, 0.1, 3.0)
  assert mask.tolist() == [[False] * 3, [True] * 3]
