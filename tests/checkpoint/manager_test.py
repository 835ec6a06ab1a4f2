import dataclasses

import jax
import numpy as np
import pytest

from atm.checkpoint import manager, reader
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.train import optimizer, step

from conftest import tiny

TX = optimizer.make(optimizer.Config())


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


def test_a_bucket_is_no_folder(tmp_path, monkeypatch):
  """Fault seen: a folder named gs: made in the working directory."""
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    ValueError, match="MODEL_DIR = 'gs://bucket/run'.*CHECKPOINT_DIR"
  ):
    reader.latest_step('gs://bucket/run')
  assert not list(tmp_path.iterdir())
