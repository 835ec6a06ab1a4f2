"""Saving, restoring on another mesh, and saves that fail."""

import contextlib
import dataclasses
import functools
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
  change_a_value,
  full_disk,
  list_files,
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


@functools.cache
def fresh_trees():
  """Returns the trees of a fresh state of `tiny`, which nobody changes."""
  config = tiny()
  return step.init_state(AlexaTM(config), TX, 0, abstract(config)).to_trees()


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
  checkpoints = manager.CheckpointManager(str(tmp_path))
  checkpoints.save(1, fresh_trees(), {})
  checkpoints.wait_until_finished()
  other = abstract(dataclasses.replace(tiny(), **change))
  with pytest.raises(ValueError, match='is of another model: .* there and'):
    checkpoints.restore(1, other.to_trees())


@pytest.mark.parametrize('keep', [0, -1, 1.5, True, '3'])
def test_to_keep_none_is_refused_and_all_are_kept(tmp_path, keep):
  """Fault seen: 0 removed every checkpoint, those of an earlier run too."""
  checkpoints = manager.CheckpointManager(str(tmp_path), keep=None)
  checkpoints.save(1, fresh_trees(), {})
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


# --- What is removed, and when


def test_older_steps_are_removed_when_the_newest_is_verified(tmp_path):
  """Also those of an earlier run that kept more; 2.0 is 2."""
  save_steps(tmp_path, [1, 2, 3]).close()
  made = save_steps(tmp_path, [4], keep=2.0)
  assert made.all_steps() == [3, 4]
  made.save(4, make_trees(4), {})  # is there
  made.wait_until_finished()
  assert made.all_steps() == [3, 4]
  assert bytes_of(made.restore(4, abstract_like(make_trees()))) == bytes_of(
    make_trees(4)
  )


def test_a_removal_that_was_cut_off_is_made_up_for(tmp_path):
  """Fault seen: a run killed behind its last save kept one step more."""
  save_steps(tmp_path, [1, 2, 3]).close()
  with contextlib.closing(save_steps(tmp_path, [], keep=2)) as again:
    assert again.all_steps() == [1, 2, 3]
    again.raise_if_unsaved()
    assert again.all_steps() == [2, 3]


@pytest.mark.parametrize('on_error', manager.ON_ERROR)
@pytest.mark.parametrize('item', ['params', 'optimizer', 'meta'])
def test_nothing_is_removed_for_a_step_that_is_not_what_was_saved(
  tmp_path, monkeypatch, item, on_error
):
  """Fault seen: removed once Orbax said that the newest was written."""
  save_steps(tmp_path, [1, 2]).close()
  lines = []
  made = save_steps(tmp_path, [], keep=1, on_error=on_error, log=lines.append)
  wait = made.orbax.wait_until_finished

  def damage():
    wait()
    folder = tmp_path / 'checkpoints' / '3' / item
    path = max(list_files(folder), key=os.path.getsize)
    with open(path, 'r+b') as f:
      f.truncate(os.path.getsize(path) // 2)

  made.save(3, make_trees(3), {})
  with monkeypatch.context() as patch:
    patch.setattr(made.orbax, 'wait_until_finished', damage)
    with contextlib.ExitStack() as raised:
      if on_error == 'stop':
        raised.enter_context(pytest.raises(manager.SaveError, match='step 3'))
      made.wait_until_finished()
  assert 'no other was removed' in str(made.save_error)
  assert made.all_steps() == [1, 2, 3] and made.failures == 1
  assert reader.CheckpointReader(str(tmp_path)).intact_steps()[:2] == [1, 2]
  made.save(4, make_trees(4), {})
  made.raise_if_unsaved()
  assert made.all_steps() == [4]


def test_a_folder_of_a_user_is_no_step_to_remove(tmp_path):
  """Fault seen: Orbax removes what has a number for a name, notes included."""
  made = save_steps(tmp_path, [2, 3])
  folder = tmp_path / 'checkpoints'
  (folder / '1').mkdir()
  (folder / '1' / 'notes.txt').write_text('mine')
  (folder / '2' / 'notes.txt').write_text('mine, too')
  (folder / '0').write_text('a file')
  (folder / '3.copy').mkdir()
  made.close()
  made = save_steps(tmp_path, [4, 5], keep=1)
  names = ['0', '1', '2', '3.copy', '5']
  assert sorted(os.listdir(folder)) == names
  assert (folder / '2' / 'notes.txt').read_text() == 'mine, too'
  assert reader.CheckpointReader(str(tmp_path)).meta(2)


def test_many_arrays_are_verified_a_few_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(reader, 'VERIFIED_AT_ONCE', 100)
  made = save_steps(tmp_path, [1])
  read = []
  once = made._read_group
  monkeypatch.setattr(
    made, '_read_group', lambda *a: read.append(a[1:]) or once(*a)
  )
  made.verify(1)
  assert [len(names) for _, names in read] == [2, 1, 1, 1]
  change_a_value(tmp_path, 1)
  with pytest.raises(manager.DamageError, match='lm_head differs'):
    made.verify(1)


def test_a_step_that_is_saved_anew_is_described_anew(tmp_path):
  """Fault seen: what was read of the step before it was removed."""
  made = save_steps(tmp_path, [1, 2])
  assert made.meta(2) == {'data': {'step': 2}}
  made.orbax.delete(2)
  made.save(2, make_trees(9), {'again': True})
  made.wait_until_finished()
  assert made.meta(2) == {'again': True} and made.failures == 0
  restored = made.restore(2, abstract_like(make_trees()))
  assert bytes_of(restored) == bytes_of(make_trees(9))
  made.save(2, make_trees(5), {'third': True})  # the newest is kept
  made.close()
  assert reader.CheckpointReader(str(tmp_path)).meta(2) == {'again': True}
