"""Estimates means and differences of training runs, in arms of several seeds.

The runs of an arm differ in their seed. A score of a run is a number, as its
held-out loss, or one of each question. Seeds and questions are both samples, so
the variance of a mean is a sum: of means over seeds, and of means over
questions. The sum's degrees of freedom are Satterthwaite's (1946), and the
interval is Student's t. With three seeds t is up to 4.3 standard errors; a
bootstrap over three seeds would be too narrow, since it leaves out a third of
their variance.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean, or a difference of means, with its 95% interval.

  Attributes:
    value: the mean.
    low, high: the ends; nan where one number alone has no interval.
  """

  value: float
  low: float
  high: float

  @property
  def sign(self) -> int:
    """1 above and -1 below 0 by the whole interval, else 0."""
    return int(self.low > 0) - int(self.high < 0)


def estimate_mean(tasks: Sequence[np.ndarray]) -> Estimate:
  """Estimates the mean of an arm over its tasks and seeds.

  Args:
    tasks: scores of each task: [seeds], or [seeds, questions] of the same
      questions.

  Returns:
    The mean. Of one seed the interval covers other questions alone.
  """
  means = _seed_means(tasks)
  parts = [_variance_of_mean(means), *_question_parts(tasks)]
  return _student_interval(float(means.mean()), parts)


def estimate_difference(
  first: Sequence[np.ndarray], other: Sequence[np.ndarray]
) -> Estimate:
  """Estimates the mean of an arm minus that of the first.

  Args:
    first, other: as in `estimate_mean`; questions are the same in both, seeds
      are taken as independent (Welch). Runs of one seed that share the order of
      their rows differ less, and the interval is rather too wide.
  """
  before, after = _seed_means(first), _seed_means(other)
  value = float(after.mean() - before.mean())
  seeds = [_variance_of_mean(before), _variance_of_mean(after)]
  if None in seeds:  # one run says nothing of how runs vary
    return Estimate(value, math.nan, math.nan)
  changes = [b.mean(0) - a.mean(0) for a, b in zip(first, other)]
  questions = _question_parts([change[None] for change in changes])
  return _student_interval(value, [*seeds, *questions])


def _seed_means(tasks: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the mean over tasks of each seed."""
  return np.mean([t.reshape(len(t), -1).mean(1) for t in tasks], 0)


def _question_parts(tasks: Sequence[np.ndarray]) -> list:
  """Returns what other questions of each task add to the variance."""
  parts = [_variance_of_mean(t.mean(0)) for t in tasks if t.ndim == 2]
  return [(v / len(tasks) ** 2, n) for v, n in filter(None, parts)]


def _variance_of_mean(values: np.ndarray) -> tuple[float, int] | None:
  """Returns the variance of a mean and its degrees of freedom."""
  if len(values) < 2:
    return None
  return float(values.var(ddof=1)) / len(values), len(values) - 1


def _student_interval(
  value: float, parts: Sequence[tuple[float, int] | None]
) -> Estimate:
  """Returns the t-interval of a value whose variance is a sum of parts."""
  from scipy import special  # takes 0.1 s

  known = [part for part in parts if part is not None]
  if not known:
    return Estimate(value, math.nan, math.nan)
  variance = sum(v for v, _ in known)
  if not variance:
    return Estimate(value, value, value)
  freedom = variance**2 / sum(v**2 / n for v, n in known)
  t = special.stdtrit(freedom, (1 + CONFIDENCE) / 2)
  half = float(t) * math.sqrt(variance)
  return Estimate(value, value - half, value + half)


def common_grid(curves: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the places at which all of several curves are known.

  Args:
    curves: x of each, ascending.

  Returns:
    Those x of the curve that ends first which no curve begins behind; ends
    that differ by a hundred-thousandth are the same.
  """
  shortest = min(curves, key=lambda x: x[-1])
  begin = max(x[0] for x in curves) * (1 - 1e-5)
  return shortest[shortest >= begin]
