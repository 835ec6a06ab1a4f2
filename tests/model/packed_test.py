"""Packed matrices: what is packed, and the same outputs without."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.inference import api
from atm.model import embeddings, kernels, packed, parameters, quantized
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

import plan_runs

needs_compiler = pytest.mark.skipif(
  not kernels.are_available(), reason='there is no C compiler'
)


@pytest.mark.parametrize('A, B', [(3, 5), (4, 32), (7, 100)])
def test_pack(A, B):
  w = np.random.default_rng(0).standard_normal((A, B)).astype('f')
  made = packed.pack_matrix(jnp.asarray(w))
  assert made.outputs == B and made.dtype == jnp.float32
  wide = np.concatenate(list(made.panels), axis=1)
  np.testing.assert_array_equal(wide[:, :B], w)
  assert not wide[:, B:].any()


def test_pack_kernels():
  w, b = jnp.ones((2, 3)), jnp.ones(3)
  made = packed.pack_kernels({'up': {'kernel': w, 'bias': b}})['up']
  assert isinstance(made['kernel'], packed.PackedMatrix)
  assert made['bias'] is b


def test_pack_int8():
  values = np.arange(-20, 15, dtype=np.int8).reshape(5, 7)
  w = quantized.QuantizedMatrix(jnp.asarray(values), jnp.ones(5))
  made = packed.pack_int8(w)
  assert made.panels.shape == (1, 2, 32, 4) and made.outputs == 5
  wide = np.asarray(made.panels).swapaxes(1, 2).reshape(32, 8)
  np.testing.assert_array_equal(wide[:5, :7], values)
  assert not wide[5:].any() and not wide[:, 7:].any()
  np.testing.assert_array_equal(made.totals, values.sum(1, dtype=int))


def test_can_pack():
  assert not packed.can_pack(jax.ShapeDtypeStruct((2, 3), jnp.float32))
  assert not packed.can_pack(jnp.ones((2, 3), jnp.bfloat16))
  assert packed.can_pack(jnp.ones((2, 3))) == kernels.are_available()


@pytest.fixture
def model():
  """A model on one device, with weights that tell words apart."""
  config = plan_runs.tiny(dtype='float32', init_std=0.3)
  params = nn.unbox(parameters.init_params(AlexaTM(config), 0))
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return api.Model(config, params, None, mesh, Rules(), 0)


def complete(model):
  """Returns greedy outputs, beams and copies by drafts."""
  prompts = [[5, 6, 7, 8, 5, 6, 7, 8], [9], [11, 12, 13]]
  options = dict(max_tokens=9, min_tokens=9)
  return [
    model.generate(prompts, **options, **more)
    for more in ({}, {'beams': 3}, {'prompt_lookup_num_tokens': 3})
  ]


@needs_compiler
@pytest.mark.parametrize('weights', ['float32', 'int8'])
def test_outputs_are_those_without_kernels(model, monkeypatch, weights):
  if weights == 'int8':
    model = api.quantize(model)
  made = complete(model)
  head = model._decode_params[embeddings.HEAD_COLUMNS]
  kind = packed.PackedInt8 if weights == 'int8' else packed.PackedMatrix
  assert isinstance(head, kind)
  monkeypatch.setattr(kernels, 'are_available', lambda: False)
  del model.__dict__['_decode_params']
  assert complete(model) == made
  head = model._decode_params.get(embeddings.HEAD_COLUMNS)
  assert not isinstance(head, quantized.Matrix)
