"""Every gin file parses, and what it describes can be built."""

import os
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import gin
from atm.cli import commands, gin_config, gin_files
from atm.model import config as config_lib
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.train import optimizer, step

MODELS = [f for f in gin_files.shipped_files() if f.startswith('models/')]
PODS = [f for f in gin_files.shipped_files() if f.startswith('pods/')]


@pytest.fixture
def configured():
  """Configures a pretrain run with more files; forgets it afterwards."""

  def call(*files):
    files = [gin_files.find_file(f) for f in ('runs/pretrain.gin', *files)]
    gin_config.apply_config(files, ['MODEL_DIR = "unused"'], set())
    return gin.get_configurable('model.Config')

  with gin.unlock_config():
    yield call
  gin.clear_config()


def test_every_run_has_a_file_and_every_file_a_run():
  runs = [f for f in gin_files.shipped_files() if f.startswith('runs/')]
  assert runs == sorted(f'runs/{name}.gin' for name in commands.RUNS)
  for name in gin_files.shipped_files():
    with open(gin_files.find_file(name)) as f:
      assert f.readline().startswith('# ')


@pytest.mark.parametrize('name', MODELS)
def test_models_have_the_parameters_they_state(configured, name):
  config = configured(name)()
  ids = jnp.ones((1, 1), jnp.int32)
  shapes = jax.eval_shape(
    lambda: AlexaTM(config).init(
      jax.random.key(0), ids, ids, enable_dropout=False
    )
  )
  count = sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)))
  with open(gin_files.find_file(name)) as f:
    number, unit = re.match(
      r'# ([\d.]+)([MB]) parameters', f.readline()
    ).groups()
  stated = float(number) * {'M': 1e6, 'B': 1e9}[unit]
  assert count == pytest.approx(stated, rel=0.005)


def test_the_20b_is_the_papers(configured):
  config = configured('models/20b.gin')()
  assert config == config_lib.ModelConfig(remat='full')
  ids = jnp.ones((1, 1), jnp.int32)
  shapes = nn.unbox(jax.eval_shape(
    lambda: AlexaTM(config).init(
      jax.random.key(0), ids, ids, enable_dropout=False
    )['params']
  ))  # fmt: skip
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert size(shapes) == pytest.approx(19.75e9, rel=0.005)
  assert size(shapes['encoder']) == pytest.approx(9.27e9, rel=0.005)
  tables = shapes['encoder'], shapes['encoder_embedding']
  assert size(tables) == pytest.approx(9.90e9, rel=0.005)
  rate = optimizer.make_schedule(gin.get_configurable('optimizer.Config')())
  assert rate(0) == pytest.approx(1e-4)
  assert rate(500_000) == pytest.approx(5e-6)


@pytest.mark.parametrize('name', MODELS)
def test_every_model_builds_its_run_on_a_mesh(configured, name):
  """Shapes, shardings and the lowered step, without making an array."""
  config = configured(name)()
  tx = optimizer.make_optimizer(gin.get_configurable('optimizer.Config')())
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  net = AlexaTM(config)
  state = step.abstract_state(net, tx, mesh, Rules())
  placed = sharding.NamedSharding(mesh, Rules().spec('batch'))
  like = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(
    shape, dtype, sharding=placed
  )
  n = 32
  batch = {
    **{
      f'{side}_{what}': like(4, n)
      for side in ('encoder', 'decoder')
      for what in ('input_tokens', 'segment_ids')
    },
    'decoder_target_tokens': like(4, n),
    'decoder_loss_weights': like(4, n, dtype=jnp.float32),
    'objective': like(4),
  }
  with sharding.use_mesh(mesh, Rules()):
    lowered = jax.jit(lambda s, b: step.train_step(net, tx, s, b)).lower(
      state, batch
    )
  made, _ = lowered.out_info
  assert jax.tree.structure(made) == jax.tree.structure(state)


@pytest.mark.parametrize('name', PODS)
def test_pods_parse(configured, name):
  configured('models/tiny.gin', name)
  rules = gin.get_configurable('sharding.Rules')()
  assert rules == Rules()
  if os.path.basename(name) == 'cpu8.gin':
    assert gin.get_configurable('sharding.mesh')().size == 8
