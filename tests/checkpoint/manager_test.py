import dataclasses

import jax
import numpy as np
import pytest

from atm.checkpoint import manager
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.train import optimizer, step

from conftest import tiny

TX = optimizer.make(optimizer.Config())


def abstract(config, **sizes):
  mesh = mesh_lib.mesh(**sizes)
  return step.abstract_state(AlexaTM(config), TX, mesh, Rules())


def test_a_state_survives_a_change_of_mesh(tmp_path):
  config = tiny()
  before = abstract(config, data=2, fsdp=2, tensor=2)
  state = step.init_state(AlexaTM(config), TX, 3, before)
  checkpoints = manager.Checkpoints(str(tmp_path))
  checkpoints.save(5, state, {'data': {'step': 5}})
  checkpoints.close()
  again = manager.Checkpoints(str(tmp_path))
  assert again.latest() == 5 and again.meta(5) == {'data': {'step': 5}}
  after = abstract(config, data=1, fsdp=8)
  restored = again.restore(5, after)
  for x, y, z in zip(*map(jax.tree.leaves, (state, restored, after))):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert y.sharding == z.sharding
  params = again.restore_params(5, before.params)
  np.testing.assert_array_equal(params['lm_head'], state.params['lm_head'])


@pytest.mark.parametrize('change', [dict(d_model=64), dict(encoder_layers=3)])
def test_another_model_is_refused_by_name(tmp_path, change):
  config = tiny()
  plan = abstract(config)
  checkpoints = manager.Checkpoints(str(tmp_path))
  checkpoints.save(1, step.init_state(AlexaTM(config), TX, 0, plan), {})
  checkpoints.manager.wait_until_finished()
  other = abstract(dataclasses.replace(config, **change))
  with pytest.raises(ValueError, match='is of another model: .* there and'):
    checkpoints.restore(1, other)


@pytest.mark.parametrize('keep', [0, -1, 1.5, True, '3'])
def test_to_keep_none_is_refused_and_all_are_kept(tmp_path, keep):
  """Fault seen: 0 removed every checkpoint, those of an earlier run too."""
  config = tiny()
  state = step.init_state(AlexaTM(config), TX, 0, abstract(config))
  checkpoints = manager.Checkpoints(str(tmp_path), keep=None)
  checkpoints.save(1, state, {})
  checkpoints.close()
  with pytest.raises(ValueError, match=f'KEEP = {keep!r}: .* or None for all'):
    manager.Checkpoints(str(tmp_path), keep=keep)
  assert manager.Checkpoints(str(tmp_path)).steps() == [1]


def test_a_bucket_is_no_folder(tmp_path, monkeypatch):
  """Fault seen: a folder named gs: made in the working directory."""
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    ValueError, match="MODEL_DIR = 'gs://bucket/run'.*CHECKPOINT_DIR"
  ):
    manager.latest_step('gs://bucket/run')
  assert not list(tmp_path.iterdir())
