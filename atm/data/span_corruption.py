"""Draws which tokens the denoising objective drops."""

from __future__ import annotations

import math

import numpy as np

from atm.data import counter_rng


def count_noise_tokens(length, density: float):
  """How many of `length` tokens are dropped: the nearest integer."""
  return np.floor(np.asarray(length) * density + 0.5).astype(np.int64)


def draw_span_lengths(key, budget: np.ndarray, mean: float) -> np.ndarray:
  """[B, K] lengths of spans, each row summing exactly to its budget.

  Draws from Poisson(mean), without the zeros (a span of no tokens drops
  nothing); the draw that crosses the budget is cut, the rest are 0.
  """
  most = max(1, int(budget.max(initial=0)))
  ks = np.arange(0, int(mean + 12 * math.sqrt(mean) + 12))
  log_pmf = (
    ks * math.log(mean) - mean - np.array([math.lgamma(k + 1) for k in ks])
  )
  cdf = np.cumsum(np.exp(log_pmf[1:]))
  cdf /= cdf[-1]
  draws = 1 + np.searchsorted(cdf, counter_rng.uniform(key, most), side='right')
  starts = np.cumsum(draws, axis=1) - draws
  return np.clip(budget[:, None] - starts, 0, draws)


def draw_keep_mask(
  key, length: np.ndarray, width: int, density: float, mean: float
) -> np.ndarray:
  """Which tokens survive the noise: [B, width] bool, False beyond `length`.

  The kept tokens leave `kept + 1` gaps; the spans go into distinct gaps chosen
  uniformly, in an order that is uniform too, so no place and no span (the cut
  one least of all) is preferred.
  """
  budget = count_noise_tokens(length, density)
  kept = length - budget
  spans = draw_span_lengths(counter_rng.make_key(key, 1), budget, mean)
  spans = spans[:, : max(1, (spans > 0).sum(1).max(initial=0))]
  # Sorting random numbers that end in the gap's own gives gaps in random order.
  gap, low = np.arange(width + 1), counter_rng._U64(20)
  draw = counter_rng.random_bits(
    counter_rng.make_key(key, 2), width + 1
  ) >> low << low | gap.astype(counter_rng._U64)
  assert width < 1 << 20
  draw[gap > kept[:, None]] = np.iinfo(counter_rng._U64).max
  draw.sort(axis=1)
  order = (
    draw[:, : spans.shape[1]]
    & ((counter_rng._U64(1) << low) - counter_rng._U64(1))
  ).astype(int)
  order = np.minimum(order, width)
  in_gap = np.zeros((len(length), width + 1), np.int64)
  np.put_along_axis(in_gap, order, spans[:, : order.shape[1]], axis=1)
  place = gap[:-1] + np.cumsum(in_gap, axis=1)[:, :-1]
  mask = np.zeros((len(length), width + 1), bool)
  place = np.where(gap[:-1] < kept[:, None], place, width)
  np.put_along_axis(mask, place, True, axis=1)
  return mask[:, :-1]
