"""Bootstrap confidence intervals, paired tests and Holm's correction."""

import functools
from collections.abc import Callable, Sequence

import numpy as np


@functools.lru_cache(maxsize=1)  # tasks of a suite have often as many questions
def _draw_counts(G: int, seed: int, samples: int) -> np.ndarray:
  """Counts how often each group is in G draws: uint8 [samples, G]."""
  # uint8 holds them: 256 draws of one group among more than 255 do not happen
  # (1 in 10^500).
  # NumPy takes no negative seeds.
  random, parts = np.random.default_rng(seed % 2**64), []
  at_once = max(1, 2**20 // G)  # 8 MB of draws
  for start in range(0, samples, at_once):
    n = min(at_once, samples - start)
    drawn = random.integers(0, G, (n, G)) + G * np.arange(n)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n * G).reshape(n, G)
    parts.append(counts.astype(np.uint8))
  return np.concatenate(parts)


def resample(
  rows: np.ndarray, seed: int = 0, samples: int = 1000
) -> np.ndarray:
  """Sums as many groups drawn with replacement: [G, M] -> [samples, M]."""
  # The draws depend on G, the seed and the number of samples alone.
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
  """Returns (score, low, high) of rows [G, M]: the 95% percentile interval.

  See `metrics.Metric` for `total`; all are nan where nothing is judged.
  """
  # The interval covers the choice of questions, not other seeds or prompts. Of
  # a few dozen groups it is somewhat too narrow.
  rows = np.asarray(rows, np.float64)
  low, high = _percentile_interval(total(resample(rows, seed, samples)))
  return float(total(rows.sum(0))), low, high


def mean_interval(
  parts: Sequence[tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]],
  seed: int = 0,
  samples: int = 1000,
) -> tuple[float, float, float]:
  """Returns (mean, low, high) of several scores, with the mean's 95% interval.

  Args:
    parts: (rows [G, M], total) of each score, see `bootstrap_interval`.
    seed: of the draws.
    samples: how many draws.
  """
  parts = [(np.asarray(rows, np.float64), total) for rows, total in parts]
  mean = np.mean([total(rows.sum(0)) for rows, total in parts])
  intervals = []
  # Tasks share their draws, as if they had the same questions in several
  # languages, or each has its own: the wider interval holds in either case.
  for stride in (0, 1):
    drawn = np.mean([
      total(resample(rows, seed + stride * i, samples))
      for i, (rows, total) in enumerate(parts)
    ], axis=0)  # fmt: skip
    # BLEU of a draw of few texts is too high, and so is a mean of many such:
    # draws tell how far a mean varies, not where it is.
    intervals.append(_percentile_interval(drawn + mean - np.nanmean(drawn)))
  low, high = max(intervals, key=lambda ends: ends[1] - ends[0])
  return float(mean), low, high


def paired_bootstrap(
  rows_a: np.ndarray,
  rows_b: np.ndarray,
  total: Callable[[np.ndarray], np.ndarray],
  seed: int = 0,
  samples: int = 1000,
) -> tuple[float, float, float, float]:
  """Compares b with a on the same questions: paired bootstrap (Koehn, 2004).

  Returns:
    (b - a, low, high, p), with the 95% interval of b - a. p is at least
    2 / (samples + 1), so many comparisons need many samples.

  Raises:
    ValueError: not rows of the same groups.
  """
  a, b = (np.asarray(rows, np.float64) for rows in (rows_a, rows_b))
  if a.shape != b.shape:
    raise ValueError(
      f'rows of shape {a.shape} and {b.shape}: expected the same groups'
    )
  # Both are scored on the same draws.
  drawn = resample(np.concatenate([a, b], 1), seed, samples)
  each = total(drawn[:, a.shape[1] :]) - total(drawn[:, : a.shape[1]])
  each = each[~np.isnan(each)]
  # Twice the share of draws on the rarer side of zero; ties are on both sides.
  rarer = min((each <= 0).sum(), (each >= 0).sum())
  p = min(1.0, 2 * (rarer + 1) / (len(each) + 1))
  difference = float(total(b.sum(0)) - total(a.sum(0)))
  return difference, *_percentile_interval(each), float(p)


def _percentile_interval(values: np.ndarray) -> tuple[float, float]:
  values = values[~np.isnan(values)]
  ends = np.percentile(values, [2.5, 97.5]) if len(values) else [np.nan] * 2
  return float(ends[0]), float(ends[1])


def holm_adjust(p: Sequence[float]) -> np.ndarray:
  """Adjusts the p of several comparisons for their number (Holm, 1979)."""
  # The k-th smallest of n is multiplied by n - k + 1, never below one before.
  p = np.asarray(p, np.float64)
  order = np.argsort(p, kind='stable')
  factors = np.arange(len(p), 0, -1)
  adjusted = np.empty_like(p)
  adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
  return adjusted
