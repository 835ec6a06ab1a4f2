"""Bootstrap intervals and paired tests.

Faults seen: draws without replacement; a 90% interval; a one-sided p; other
draws for either side; signs of differences; Holm's correction without its
maximum.
"""

import math
import time

import numpy as np
import pytest

from atm.evals import bootstrap, metrics, text_metrics


def test_the_interval_holds_the_truth_19_times_of_20():
  random, held = np.random.default_rng(3), 0
  for _ in range(300):
    hits = 100.0 * (random.random(250) < 0.7)
    rows = np.stack([hits, np.ones(250)], 1)
    value, low, high = bootstrap.bootstrap_interval(
      rows, metrics.weighted_mean, samples=500
    )
    assert low <= value <= high and value == hits.mean()
    held += low <= 70 <= high
  assert 0.91 <= held / 300 <= 0.98


def test_a_mean_has_the_interval_of_its_standard_error(rng):
  rows = np.stack([rng.normal(50, 10, 400), np.ones(400)], 1)
  value, low, high = bootstrap.bootstrap_interval(
    rows, metrics.weighted_mean, samples=4000
  )
  error = rows[:, 0].std() / np.sqrt(400)
  assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_groups_are_drawn_whole(rng):
  """Ten equal answers a group: the interval of 40 answers, not of 400."""
  hits = np.repeat(rng.integers(0, 2, 40), 10)
  width = lambda groups: np.ptp(
    bootstrap.bootstrap_interval(
      metrics.METRICS['accuracy'].rows(list(hits), [1] * 400, groups),
      metrics.weighted_mean,
    )[1:]
  )
  grouped = width([str(i // 10) for i in range(400)])
  assert grouped > 2.5 * width([''] * 400)


def test_draws_hang_on_the_seed_alone(rng):
  rows = rng.random((3000, 2))
  draw = lambda **given: bootstrap.resample(rows, **given)
  np.testing.assert_array_equal(draw(), draw())
  assert not np.array_equal(draw(), draw(seed=1))
  assert draw(samples=800).shape == (800, 2)
  # Every group is drawn as often as any other.
  ones = np.eye(7)
  drawn = bootstrap.resample(ones, samples=2000)
  np.testing.assert_array_equal(drawn.sum(1), 7)
  np.testing.assert_allclose(drawn.mean(0), 1, atol=0.1)
  with pytest.raises(ValueError, match='no rows'):
    bootstrap.bootstrap_interval(np.zeros((0, 2)), metrics.weighted_mean)


def test_nothing_judged_has_no_interval():
  assert all(
    map(
      math.isnan,
      bootstrap.bootstrap_interval(np.zeros((3, 2)), metrics.weighted_mean),
    )
  )


def test_paired_finds_a_difference_and_no_other():
  random = np.random.default_rng(5)
  rows = lambda p: np.stack([100.0 * (random.random(500) < p), np.ones(500)], 1)
  a = rows(0.6)
  better = a.copy()
  better[np.flatnonzero(a[:, 0] == 0)[:40], 0] = 100  # on the same questions
  difference, low, high, p = bootstrap.paired_bootstrap(
    a, better, metrics.weighted_mean
  )
  assert difference == pytest.approx(8) and low > 0 and p < 0.01
  assert bootstrap.paired_bootstrap(better, a, metrics.weighted_mean)[
    0
  ] == pytest.approx(-8)
  assert bootstrap.paired_bootstrap(a, a, metrics.weighted_mean) == (0, 0, 0, 1)
  found = [
    bootstrap.paired_bootstrap(rows(0.6), rows(0.6), metrics.weighted_mean)[3]
    for _ in range(200)
  ]
  assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.1
  with pytest.raises(ValueError, match='same groups'):
    bootstrap.paired_bootstrap(a, a[:10], metrics.weighted_mean)


def test_p_is_two_sided():
  """That of a z-test, for the mean of many differences."""
  random = np.random.default_rng(8)
  for z in (0.5, 1.5, -1.5):
    change = random.normal(0, 1, 400)
    change += z / 20 * change.std() - change.mean()
    a = np.stack([random.normal(50, 9, 400), np.ones(400)], 1)
    b = a + np.stack([change, np.zeros(400)], 1)
    p = bootstrap.paired_bootstrap(a, b, metrics.weighted_mean, samples=8000)[3]
    assert p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.02)


def test_pairs_see_more_than_two_intervals_do():
  """A small gain on the same hard and easy questions."""
  random = np.random.default_rng(6)
  hard = random.normal(50, 20, 300)
  rows = lambda shift: np.stack(
    [hard + shift + random.normal(0, 2, 300), np.ones(300)], 1
  )
  a, b = rows(0), rows(1)
  assert (
    bootstrap.bootstrap_interval(b, metrics.weighted_mean)[1]
    < bootstrap.bootstrap_interval(a, metrics.weighted_mean)[2]
  )
  assert bootstrap.paired_bootstrap(a, b, metrics.weighted_mean)[3] < 0.01


def test_holm():
  found = bootstrap.holm_adjust([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
  assert bootstrap.holm_adjust([0.9, 0.8]).max() == 1 and not len(
    bootstrap.holm_adjust([])
  )


def test_132_directions_take_seconds(rng):
  rows = rng.integers(0, 30, (1012, 10)).astype(np.float64)
  rows[:, 2:6] = np.minimum(rows[:, 2:6], rows[:, 6:])
  start = time.perf_counter()
  for _ in range(13):
    bootstrap.bootstrap_interval(rows, text_metrics.bleu_total)
  assert time.perf_counter() - start < 3  # of a tenth of the directions


def test_the_interval_of_a_mean_is_narrower_and_around_it():
  """Of one score it is that score's, where draws are not biased."""
  random = np.random.default_rng(0)
  total = lambda sums: 100 * sums[..., 0] / sums[..., 1]
  one, two = (
    np.stack([random.random(50) < p, np.ones(50)], 1) for p in (0.3, 0.6)
  )
  score = bootstrap.bootstrap_interval(one, total)
  alone = bootstrap.mean_interval([(one, total)])
  np.testing.assert_allclose(alone, score, atol=0.5)
  mean, low, high = bootstrap.mean_interval([(one, total), (two, total)])
  assert mean == pytest.approx((total(one.sum(0)) + total(two.sum(0))) / 2)
  assert low < mean < high and high - low < alone[2] - alone[1]
  # The same questions twice tell no more than once.
  twice = bootstrap.mean_interval([(one, total), (one, total)])
  np.testing.assert_allclose(twice, alone)
  # Nor do questions that one task has wrong and the other right settle it.
  other = one * [0, 1] + (1 - one) * [1, 0]
  mean, low, high = bootstrap.mean_interval([(one, total), (other, total)])
  assert mean == pytest.approx(50) and high - low > 10
  # Draws of a score that they overrate lie around it all the same.
  rare = np.eye(8)[:, :1]
  mean, low, high = bootstrap.mean_interval([(rare, lambda s: s[..., 0] ** 2)])
  assert mean == 1.0 and low <= mean <= high
