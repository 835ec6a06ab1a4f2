"""Bootstrap intervals and paired tests."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

# --- Intervals and differences


@functools.lru_cache(maxsize=1)  # tasks of a suite have often as many questions
def _draw_counts(G: int, seed: int, samples: int) -> np.ndarray:
  """How often each group is drawn, of G draws: uint8 [samples, G].

  256 draws of one group among more than 255 do not happen (1 in 10^500).
  """
  random, made = np.random.default_rng(seed), []
  at_once = max(1, 2**20 // G)  # 8 MB of draws
  for start in range(0, samples, at_once):
    n = min(at_once, samples - start)
    drawn = random.integers(0, G, (n, G)) + G * np.arange(n)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n * G).reshape(n, G)
    made.append(counts.astype(np.uint8))
  return np.concatenate(made)


def resample(
  rows: np.ndarray, seed: int = 0, samples: int = 1000
) -> np.ndarray:
  """Sums of as many groups drawn with replacement: [G, M] -> [samples, M].

  The draws depend on G, the seed and the number of samples alone.

  Raises:
    ValueError: there are no rows.
  """
  if not len(rows):
    raise ValueError('no rows: expected those of one group or more')
  drawn = _draw_counts(len(rows), seed, samples)
  at_once = max(1, 2**20 // len(rows))
  parts = (drawn[i : i + at_once] for i in range(0, samples, at_once))
  return np.concatenate([part.astype(np.float64) @ rows for part in parts])


def bootstrap_interval(
  rows: np.ndarray,
  total: Callable[[np.ndarray], np.ndarray],
  seed: int = 0,
  samples: int = 1000,
) -> tuple[float, float, float]:
  """The score of rows [G, M], and its 95% interval: (value, low, high).

  Percentiles of scores of groups drawn with replacement. It says how much the
  score hangs on the choice of questions, and nothing of other seeds or prompts.
  Of a few dozen groups it is somewhat too narrow. nan where nothing is judged.
  """
  rows = np.asarray(rows, np.float64)
  low, high = _percentile_interval(total(resample(rows, seed, samples)))
  return float(total(rows.sum(0))), low, high


def paired_bootstrap(
  rows_a: np.ndarray,
  rows_b: np.ndarray,
  total: Callable[[np.ndarray], np.ndarray],
  seed: int = 0,
  samples: int = 1000,
) -> tuple[float, float, float, float]:
  """How much better b is than a on the same questions.

  A paired bootstrap (Koehn, 2004): both are scored on the same draws.

  Returns:
    The difference b - a, its 95% interval, and p: twice the share of draws on
    the rarer side of zero, ties on both sides, and at least 2 / (samples + 1),
    so many comparisons need many samples.

  Raises:
    ValueError: not rows of the same groups.
  """
  a, b = (np.asarray(rows, np.float64) for rows in (rows_a, rows_b))
  if a.shape != b.shape:
    raise ValueError(
      f'rows of shape {a.shape} and {b.shape}: expected the same groups'
    )
  drawn = resample(np.concatenate([a, b], 1), seed, samples)
  each = total(drawn[:, a.shape[1] :]) - total(drawn[:, : a.shape[1]])
  each = each[~np.isnan(each)]
  rarer = min((each <= 0).sum(), (each >= 0).sum())
  p = min(1.0, 2 * (rarer + 1) / (len(each) + 1))
  difference = float(total(b.sum(0)) - total(a.sum(0)))
  return difference, *_percentile_interval(each), float(p)


def _percentile_interval(values: np.ndarray) -> tuple[float, float]:
  values = values[~np.isnan(values)]
  if not len(values):
    return float('nan'), float('nan')
  low, high = np.percentile(values, [2.5, 97.5])
  return float(low), float(high)


def holm_adjust(p: Sequence[float]) -> np.ndarray:
  """p of several comparisons, adjusted so that all hold together (Holm, 1979).

  The k-th smallest of n is multiplied by n - k + 1, never below one before it.
  """
  p = np.asarray(p, np.float64)
  order = np.argsort(p, kind='stable')
  factors = np.arange(len(p), 0, -1)
  made = np.empty_like(p)
  made[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
  return made
