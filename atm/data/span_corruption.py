"""Draws which tokens the denoising objective drops."""

import math

import numpy as np

from atm.data import counter_rng
from atm.data.counter_rng import U64

# A random number that orders gaps ends in this many bits of the gap's own.
GAP_BITS = 20


def count_noise_tokens(length, density: float):
  """Returns how many of `length` tokens are dropped: the nearest integer."""
  return np.floor(np.asarray(length) * density + 0.5).astype(np.int64)


def draw_span_lengths(key, budget: np.ndarray, mean: float) -> np.ndarray:
  """Draws [B, K] lengths of spans, each row summing exactly to its budget."""
  # From Poisson(mean), without the zeros (a span of no tokens drops nothing);
  # the draw that crosses the budget is cut, the rest are 0.
  most = max(1, int(budget.max(initial=0)))
  # Twelve deviations above the mean: what is beyond has no weight in float64.
  ks = np.arange(0, int(mean + 12 * math.sqrt(mean) + 12))
  log_factorials = np.array([math.lgamma(k + 1) for k in ks])
  log_pmf = ks * math.log(mean) - mean - log_factorials
  cdf = np.cumsum(np.exp(log_pmf[1:]))
  cdf /= cdf[-1]
  uniform = counter_rng.uniform(key, most)
  draws = 1 + np.searchsorted(cdf, uniform, side='right')
  starts = np.cumsum(draws, axis=1) - draws
  return np.clip(budget[:, None] - starts, 0, draws)


def draw_keep_mask(
  key, length: np.ndarray, width: int, density: float, mean: float
) -> np.ndarray:
  """Draws [B, width] bool: tokens that survive; False beyond `length`.

  Args:
    key: [B] uint64.
    length: [B] tokens of each row.
    width: of the mask; below 2 ** GAP_BITS.
    density: share of the tokens that is dropped.
    mean: of the Poisson distribution of span lengths.
  """
  # The kept tokens leave `kept + 1` gaps; the spans go into distinct gaps that
  # are chosen uniformly, in an order that is uniform too, so no place and no
  # span (the cut one least of all) is preferred.
  assert width < 1 << GAP_BITS
  budget = count_noise_tokens(length, density)
  kept = length - budget
  spans = draw_span_lengths(counter_rng.make_key(key, 1), budget, mean)
  spans = spans[:, : max(1, (spans > 0).sum(1).max(initial=0))]
  # Sorting random numbers that end in the gap's own gives gaps in random order.
  gap, low = np.arange(width + 1), U64(GAP_BITS)
  draw = counter_rng.random_bits(counter_rng.make_key(key, 2), width + 1)
  draw = draw >> low << low | gap.astype(U64)
  draw[gap > kept[:, None]] = np.iinfo(U64).max
  draw.sort(axis=1)
  order = draw[:, : spans.shape[1]] & ((U64(1) << low) - U64(1))
  order = np.minimum(order.astype(int), width)
  in_gap = np.zeros((len(length), width + 1), np.int64)
  np.put_along_axis(in_gap, order, spans[:, : order.shape[1]], axis=1)
  position = gap[:-1] + np.cumsum(in_gap, axis=1)[:, :-1]
  mask = np.zeros((len(length), width + 1), bool)
  position = np.where(gap[:-1] < kept[:, None], position, width)
  np.put_along_axis(mask, position, True, axis=1)
  return mask[:, :-1]
