"""Settings that do not fit each other are refused before anything is done."""

import dataclasses

import numpy as np
import pytest

from atm.train import config

from tiny_runs import small_config


@pytest.mark.parametrize(
  'value, message',
  [
    ((120, 140), r'pairs of .* Did you mean \(\(120, 140\),\)\?'),
    (((140, 120),), r'\(140, 120\): .* Did you mean \(120, 140\)\?'),
    (((0, 3),), r'\(0, 3\): expected 1 <= .* Did you mean \(1, 3\)\?'),
    (((1, 2, 3),), r'expected pairs .* such as \(\(120, 140\),\)'),
    (((1.5, 2),), 'SKIP_STEPS = 1.5: expected a whole number'),
    (5, 'SKIP_STEPS = 5: expected pairs'),
  ],
)
def test_ranges_that_are_none(value, message):
  with pytest.raises(ValueError, match=message):
    config.check_skip_steps(value)
  config.check_skip_steps([[1, 1], [5, 9]])
  config.check_skip_steps(())


@pytest.mark.parametrize(
  'steps, message',
  [
    ((3, 2), r'PROFILE_STEPS: .* Did you mean \(2, 3\)\?'),
    ((0, 1), r'PROFILE_STEPS: .* Did you mean \(1, 1\)\?'),
    (4, 'PROFILE_STEPS = 4: expected'),
    ((1.5, 2), 'PROFILE_STEPS = 1.5: expected a whole number'),
  ],
)
def test_steps_to_profile_are_a_range(steps, message):
  with pytest.raises(ValueError, match=message):
    small_config('run', profile_steps=steps)


@pytest.mark.parametrize(
  'value, message',
  [
    (-3, r'-3: expected a whole number of at least 0. Did you mean 0\?'),
    (2.5, r'2.5: expected .* Did you mean 2\?'),
    (True, 'True: expected a whole number of at least 0$'),
    (None, 'None: expected a whole number of at least 0$'),
    ('9', "'9': expected a whole number of at least 0$"),
    (float('inf'), 'inf: expected a whole number of at least 0$'),
  ],
)
def test_a_number_is_refused_by_the_name_a_user_writes(value, message):
  with pytest.raises(ValueError, match=f'FREEZE_ENCODER_STEPS = {message}'):
    small_config('run', freeze_encoder_steps=value)


def test_a_whole_float_is_used_as_a_whole_number():
  """Fault seen: checked, but the float used."""
  made = small_config('run', freeze_encoder_steps=1e5, keep=np.int64(2))
  assert [type(made.freeze_encoder_steps), type(made.keep)] == [int, int]


@pytest.mark.parametrize('name', config.LEAST)
def test_whole_numbers_have_a_least(name):
  """Fault seen: a field left out of the table."""
  least = config.LEAST[name]
  with pytest.raises(ValueError, match=f'{name.upper()} = {least - 1}: exp'):
    small_config('run', **{name: least - 1})
  small_config('run', **{name: least})


@pytest.mark.parametrize('value', [-1e-4, float('nan'), float('inf'), '0'])
def test_a_z_loss_that_is_none(value):
  with pytest.raises(ValueError, match='Z_LOSS = .*: expected a number of at'):
    small_config('run', z_loss=value)


def test_a_wrong_choice_is_named():
  with pytest.raises(ValueError, match="'stpo'. Did you mean 'stop'"):
    small_config('run', on_save_error='stpo')


def test_questions_are_asked_in_evaluations_only():
  message = 'ASK_EVERY = 6: expected a multiple of EVAL_EVERY = 4, or None'
  with pytest.raises(ValueError, match=message):
    small_config('run', ask_every=6, eval_every=4)
  with pytest.raises(ValueError, match=r'ASK_EVERY = 0: .* Did you mean 4\?'):
    small_config('run', ask_every=0, eval_every=4)


def test_a_run_has_one_start(tmp_path, monkeypatch):
  """Fault seen: '', the working directory, not compared with MODEL_DIR."""
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="INIT_FROM = '.' is MODEL_DIR"):
    small_config(tmp_path, init_from='.')
  with pytest.raises(ValueError, match="INIT_FROM = '': expected a text"):
    small_config(tmp_path, init_from='')
  with pytest.raises(ValueError, match='expected one of them'):
    small_config('run', init_from='a', init_encoder='b')


def test_a_changed_copy_is_checked_too():
  with pytest.raises(ValueError, match='SEED|BATCH_SIZE = 0'):
    dataclasses.replace(small_config('run'), batch_size=0)


def test_ranges_of_steps_hold_both_ends():
  """Fault seen: the last step of a range not skipped."""
  skips = small_config('run', skip_steps=((2, 3), (5, 5))).skips
  assert [n for n in range(8) if skips(n)] == [2, 3, 5]
