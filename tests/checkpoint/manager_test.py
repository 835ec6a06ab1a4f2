"""Saving, restoring on another mesh, and saves that fail."""

import dataclasses
import gc
import os
import shutil
import time

import jax
import numpy as np
import pytest

from atm.checkpoint import manager, reader
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.train import optimizer, step

from conftest import tiny
from damage import (
  IGNORE_LEFTOVERS,
  abstract_like,
  bytes_of,
  full_disk,
  make_trees,
  save_steps,
)

pytestmark = IGNORE_LEFTOVERS


@pytest.fixture(autouse=True)
def collected(few_objects):
  """So that they warn here, not in the tests to come."""
  yield
  gc.collect()


TX = optimizer.make_optimizer(optimizer.OptimizerConfig())


def abstract(config, **sizes):
  mesh = mesh_lib.make_mesh(**sizes)
  return step.abstract_state(AlexaTM(config), TX, mesh, Rules())


def test_a_state_survives_a_change_of_mesh(tmp_path):
  config = tiny()
  before = abstract(config, data=2, fsdp=2, tensor=2)
  state = step.init_state(AlexaTM(config), TX, 3, before)
  checkpoints = manager.CheckpointManager(str(tmp_path))
  checkpoints.save(5, state.to_trees(), {'data': {'step': 5}})
  checkpoints.close()
  again = manager.CheckpointManager(str(tmp_path))
  assert again.latest_step() == 5 and again.meta(5) == {'data': {'step': 5}}
  after = abstract(config, data=1, fsdp=8)
  restored = step.State.from_trees(again.restore(5, after.to_trees()))
  for x, y, z in zip(*map(jax.tree.leaves, (state, restored, after))):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert y.sharding == z.sharding
  params = again.restore(5, {'params': before.params})['params']
  np.testing.assert_array_equal(params['lm_head'], state.params['lm_head'])


@pytest.mark.parametrize('change', [dict(d_model=64), dict(encoder_layers=3)])
def test_another_model_is_refused_by_name(tmp_path, change):
  config = tiny()
  plan = abstract(config)
  checkpoints = manager.CheckpointManager(str(tmp_path))
  checkpoints.save(
    1, step.init_state(AlexaTM(config), TX, 0, plan).to_trees(), {}
  )
  checkpoints.wait_until_finished()
  other = abstract(dataclasses.replace(config, **change))
  with pytest.raises(ValueError, match='is of another model: .* there and'):
    checkpoints.restore(1, other.to_trees())


@pytest.mark.parametrize('keep', [0, -1, 1.5, True, '3'])
def test_to_keep_none_is_refused_and_all_are_kept(tmp_path, keep):
  """Fault seen: 0 removed every checkpoint, those of an earlier run too."""
  config = tiny()
  state = step.init_state(AlexaTM(config), TX, 0, abstract(config))
  checkpoints = manager.CheckpointManager(str(tmp_path), keep=None)
  checkpoints.save(1, state.to_trees(), {})
  checkpoints.close()
  with pytest.raises(
    ValueError,
    match=f'KEEP = {keep!r}: expected a whole number of at least 1, or None',
  ):
    manager.CheckpointManager(str(tmp_path), keep=keep)
  assert manager.CheckpointManager(str(tmp_path)).all_steps() == [1]


# --- Saves that fail


@pytest.mark.parametrize('room', [0, 64, 300, 1024, 2048])
def test_a_save_that_failed_is_never_listed(tmp_path, room):
  """Faults seen: Orbax's list taken as it is; the leftovers kept."""
  made = save_steps(tmp_path, [1])
  with pytest.raises(manager.SaveError, match='step 2 could not be saved'):
    with full_disk(room):
      made.save(2, make_trees(2), {})
      made.wait_until_finished()
  assert made.all_steps() == [1] and made.latest_step() == 1
  assert reader.latest_step(str(tmp_path)) == 1
  assert os.listdir(tmp_path / 'checkpoints') == ['1']
  with pytest.raises(manager.SaveError):  # still true
    made.raise_if_unsaved()
  made.save(2, make_trees(2), {})
  made.raise_if_unsaved()
  state = made.restore(2, abstract_like(make_trees()))
  assert bytes_of(state) == bytes_of(make_trees(2))


def test_training_may_go_on_without_a_checkpoint(tmp_path):
  lines = []
  made = save_steps(tmp_path, [1], on_error='go_on', log=lines.append)
  for n in (2, 3):
    with full_disk():
      made.save(n, make_trees(n), {})
      made.wait_until_finished()
  assert made.failures == 2 and made.all_steps() == [1]
  assert lines[-1].startswith('the checkpoint of step 3 could not be saved: ')
  assert lines[-1].endswith('training goes on, saves failed so far: 2')
  with pytest.raises(manager.SaveError):
    made.raise_if_unsaved()
  made.save(4, make_trees(4), {})
  made.raise_if_unsaved()
  assert made.all_steps() == [1, 4] and made.failures == 2


@pytest.mark.parametrize('before, number', [([], 0), ([1], 2)])
def test_a_failure_is_heard_of_between_two_saves(tmp_path, before, number):
  """Faults seen: heard of at the next save only; step 0 taken for no save."""
  made = save_steps(tmp_path, before)
  with full_disk():
    made.save(number, make_trees(number), {})
    while made.orbax.is_saving_in_progress():
      time.sleep(0.01)
  with pytest.raises(manager.SaveError):
    made.check_for_errors()
  made.check_for_errors()  # once


def test_a_failed_commit_is_never_listed(tmp_path, monkeypatch):
  """What fails at the very last, when all files are there."""
  made = save_steps(tmp_path, [1])
  rename = os.rename

  def fail(source, target, *args, **named):
    if 'checkpoint-tmp' in str(source):
      raise OSError(5, 'Input/output error')
    return rename(source, target, *args, **named)

  with monkeypatch.context() as patch:
    for name in ('rename', 'replace'):
      patch.setattr(os, name, fail)
    with pytest.raises(manager.SaveError, match='step 2 .*Input/output'):
      made.save(2, make_trees(2), {})
      made.wait_until_finished()
  assert made.all_steps() == [1] and made.latest_step() == 1


def test_a_step_that_is_saved_is_not_called_lost(tmp_path, monkeypatch):
  """What fails after the commit: an old step that cannot be removed."""
  made = save_steps(tmp_path, [1], keep=1)

  def fail(*args, **named):
    raise PermissionError(13, 'Permission denied')

  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'rmtree', fail)
    with pytest.raises(manager.SaveError, match='2 is saved, but .*13'):
      made.save(2, make_trees(2), {})
      made.wait_until_finished()
  made.raise_if_unsaved()
  assert made.all_steps() == [1, 2]
