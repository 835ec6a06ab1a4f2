"""Calls have as few steps as cost little."""

import time

import numpy as np
import pytest

from atm.serve.step_times import StepTimes


@pytest.mark.parametrize(
  ('step', 'call', 'steps'),
  [(0.02, 0.002, 1), (0.01, 0.004, 4), (0.001, 0.05, 32)],
)
def test_a_call_has_as_few_steps_as_cost_little(step, call, steps):
  times = StepTimes(32)
  times.seconds = {'window': (step, call)}
  assert times.choose_steps('window') == steps
  assert times.estimate('window') == pytest.approx(step + call / steps)


def test_a_step_and_a_call_are_timed_apart():
  times = StepTimes(32)
  times.measure(lambda steps, window: time.sleep(0.02 + 0.01 * steps), 'window')
  step, call = times.seconds['window']
  assert 0.008 < step < 0.02 and 0.01 < call < 0.04


def test_a_slow_host_has_calls_of_more_steps():
  times = StepTimes(32)
  times.seconds = {'window': (0.01, 0.0)}
  assert times.choose_steps('window') == 1
  for _ in range(200):
    times.note_host(0.008)
  assert times.choose_steps('window') == 8


def test_times_follow_those_of_calls():
  times = StepTimes(32)
  times.seconds = {'window': (1e-6, 0.05)}  # measured beside other load
  draws = np.random.default_rng(0)
  for _ in range(2000):
    steps = times.choose_steps('window')
    noise = draws.uniform(0.9, 1.1)
    times.note_call('window', steps, (0.004 + 0.02 * steps) * noise)
  assert 0.01 < times.seconds['window'][0] < 0.03
  assert times.choose_steps('window') < 10  # it was 32
