"""Int8 weights on disk: what is written is what loading would quantise."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.checkpoint import (
  checksums,
  convert,
  manager,
  parameter_writer,
  pretrained,
  warm_start,
)
from atm.model import parameters, quantized
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

from conftest import tiny
from goldens import folder_of

REFUSED = "has 'int8' weights, which can be neither trained nor exported"


def quiet(text):
  pass


def one():
  return mesh_lib.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> str:
  """A MODEL_DIR of step 3 with random parameters."""
  config, path = tiny(), str(tmp_path_factory.mktemp('float') / 'run')
  abstract = parameters.abstract_params(AlexaTM(config), one(), Rules())
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype)
  checkpoints = manager.CheckpointManager(path)
  meta = {'model': dataclasses.asdict(config)}
  checkpoints.save(3, {'params': jax.tree.map(draw, abstract)}, meta)
  checkpoints.close()
  return path


@pytest.fixture(scope='module')
def small(run, tmp_path_factory) -> str:
  """The same in int8, by `atm export`."""
  out = str(tmp_path_factory.mktemp('int8') / 'small')
  convert.export_weights(run, out, weights='int8', say=quiet)
  return out


def check_quantized(folder: str, float_folder: str) -> None:
  """Asserts that a folder holds another's parameters, quantised, exactly."""
  theirs = pretrained.open_pretrained(float_folder).read_params(one())
  expected = checksums.flatten_named(quantized.quantize_params(theirs))
  found = pretrained.open_pretrained(folder).read_params(one())
  found = checksums.flatten_named(found)
  assert found.keys() == expected.keys()
  for name, x in found.items():
    assert x.dtype == expected[name].dtype
    np.testing.assert_array_equal(x, expected[name], err_msg=name)


def test_export_writes_what_loading_would_quantize(run, small):
  check_quantized(small, run)
  model = pretrained.open_pretrained(small)
  assert (model.step, model.config, model.weights) == (3, tiny(), 'int8')


def test_import_writes_what_loading_would_quantize(tmp_path):
  source, run = folder_of('blenderbot_c', tmp_path), str(tmp_path / 'run')
  convert.import_weights(source, run, one, weights='int8', say=quiet)
  check_quantized(run, source)
  for name in 'hf_config.json', 'generation_config.json':
    assert os.path.exists(f'{run}/{name}')


def test_shardings_are_those_of_the_float_parameters():
  """A kernel's outputs, which come first in int8, keep their mesh axes."""
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  floats = parameters.abstract_params(AlexaTM(tiny()), mesh, Rules())
  whole = quantized.abstract_quantized(floats)
  up = lambda tree: tree['decoder']['layers']['feed_forward']['up']['kernel']
  *layers, inner, outer = up(floats).sharding.spec
  assert inner != outer
  found = up(whole)
  assert found.values.shape == (*found.scale.shape, tiny().d_model)
  assert tuple(found.values.sharding.spec) == (*layers, outer, inner)
  assert tuple(found.scale.sharding.spec) == (*layers, outer)
  assert found.values.dtype == jnp.int8 and found.scale.dtype == jnp.float32


def test_int8_weights_train_and_export_nothing(small, tmp_path):
  with pytest.raises(ValueError, match=f"MODEL_DIR = '{small}' {REFUSED}"):
    convert.export_weights(small, str(tmp_path / 'out'), say=quiet)
  with pytest.raises(ValueError, match=f"INIT_ENCODER = '{small}' {REFUSED}"):
    warm_start.open_source(small)
  model = pretrained.open_pretrained(small)
  for read in (
    model.parameter_reader,
    lambda: model.read_params(one(), as_saved=False),
  ):
    with pytest.raises(ValueError, match=REFUSED):
      read()


def test_int8_weights_are_read_as_they_are(small):
  model = pretrained.open_pretrained(small)
  assert model.choose_weights(None) == model.choose_weights('int8') == 'int8'
  with pytest.raises(ValueError, match="WEIGHTS = 'bfloat16', but"):
    model.choose_weights('bfloat16')


def test_a_flipped_bit_is_damage(small):
  """Values and scales have checksums, as all arrays do."""
  sums = manager.CheckpointManager(small)._unsealed(3)[1]
  assert 'params/lm_head/values' in sums and 'params/lm_head/scale' in sums
  params = pretrained.open_pretrained(small).read_params(one())
  name = 'params/lm_head/values'
  values = np.array(params['lm_head'].values)
  checksums.verify_checksums({name: values}, sums)
  values[0, 0] ^= 1
  with pytest.raises(checksums.DamageError):
    checksums.verify_checksums({name: values}, sums)


def test_layers_are_quantized_one_by_one():
  """Else a float32 copy of all of them would be in memory."""
  x = jax.random.normal(jax.random.key(0), (3, 4, 5), jnp.bfloat16)
  path = 'encoder', 'layers', 'feed_forward', 'up', 'kernel'
  ((name, parts),) = parameter_writer.split_arrays([(path, x)], 'int8')
  whole = quantized.quantize_parameter(path, x)
  assert name == path
  np.testing.assert_array_equal(parts[*path, 'values'], whole.values)
  np.testing.assert_array_equal(parts[*path, 'scale'], whole.scale)
