"""Charts of arms show their runs, and sentences say no more than these."""

import math

import numpy as np
import pytest

from atm.evals.arms import Estimate
from atm.pages import arm_charts

import arm_runs


def test_losses_are_means_of_seeds_by_flops():
  arms = arm_charts.group_arms(arm_runs.make_arms())
  (figure,) = arm_charts.loss_figures(arms)
  at, last = figure.points['seq2seq'][-1]
  mean = np.mean([run['losses']['clm'][-1] for run in arms['seq2seq']])
  assert at == 2e11 and last.value == pytest.approx(mean)
  assert last.low < mean < last.high and figure.levels == {'unigram': 6.0}
  assert len(figure.points['decoder']) == 2  # not the loss of no training
  first, *_, limits = figure.sentences
  assert 'decoder is below seq2seq by 0.4' in first
  assert 'below in 2 and above in 0' in first
  assert '3 seeds an arm' in limits and '1 million parameters' in limits
  assert figure.scale == 1e9 and figure.x.endswith('10⁹')


def test_losses_are_compared_at_equal_flops():
  """An arm that has used more is read where the other ends."""
  runs = arm_runs.make_arms()
  for run in runs[3:]:
    run['flops'] = [2 * x for x in run['flops']]
  (figure,) = arm_charts.loss_figures(arm_charts.group_arms(runs))
  _, change = figure.differences['decoder'][-1]
  at_half = np.mean([run['losses']['clm'][1] for run in runs[3:]])
  assert figure.points['decoder'][-1][1].value == pytest.approx(at_half)
  assert change.value == pytest.approx(0.5, abs=0.05) and change.sign == 1
  assert 'decoder is above seq2seq by 0.' in figure.sentences[0]


def test_what_may_be_chance_is_not_called_a_difference():
  runs = [arm_runs.make_run(arm, seed) for arm in 'ab' for seed in range(3)]
  (figure,) = arm_charts.loss_figures(arm_charts.group_arms(runs))
  assert 'b and a cannot be told apart' in figure.sentences[0]
  alone = [arm_runs.make_run(arm, 0) for arm in 'ab']
  (figure,) = arm_charts.loss_figures(arm_charts.group_arms(alone))
  assert 'One run an arm has no interval' in figure.sentences[0]
  assert '1 seed an arm' in figure.sentences[-1]


@pytest.mark.parametrize(
  'estimate, signed, text',
  [
    (Estimate(4.1, 4.0, 4.2), False, '4.10 [4.00, 4.20]'),
    (Estimate(-0.5, -1.0, 0.25), True, '−0.50 [−1.00, +0.25]'),
    (Estimate(4.1, math.nan, math.nan), False, '4.10'),
    (None, False, ''),
  ],
)
def test_estimates_are_written_with_their_intervals(estimate, signed, text):
  assert arm_charts.format_estimate(estimate, '.2f', signed) == text


def test_flops_are_written_as_powers():
  assert arm_charts.format_flops(3.24e11) == '3.24 × 10¹¹'
  assert arm_charts.format_flops(0) == '0 × 10⁰'
