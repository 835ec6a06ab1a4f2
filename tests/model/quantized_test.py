"""Matrices in int8."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from atm.inference import api
from atm.model import embeddings, matmul, parameters, quantized
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

import plan_runs


def test_rows_are_rounded_to_a_127th_of_their_greatest_magnitude():
  x = np.random.default_rng(0).standard_normal((3, 7, 5)).astype(np.float32)
  x[1, 2] = 0
  matrix = quantized.quantize_rows(x)
  assert matrix.values.dtype == jnp.int8 and matrix.scale.shape == (3, 7)
  scale = np.abs(x).max(-1) / 127
  np.testing.assert_allclose(matrix.scale, scale, rtol=1e-6)
  error = np.abs(np.asarray(matrix.values) * scale[..., None] - x)
  assert (error <= scale[..., None] * 0.5001).all()
  assert np.abs(matrix.values).max() == 127 and not matrix.values[1, 2].any()


def test_kernels_are_transposed_tables_are_not_and_vectors_stay():
  params = {
    'lm_head': jnp.ones((7, 4)),
    'encoder': {'layers': {'up': {'kernel': jnp.ones((2, 4, 8))}}},
    'norm': {'scale': jnp.ones(4)},
  }
  out = quantized.quantize_params(params)
  kernel = out['encoder']['layers']['up']['kernel']
  assert kernel.values.shape == (2, 8, 4) and kernel.scale.shape == (2, 8)
  assert out['lm_head'].values.shape == (7, 4)
  assert out['norm']['scale'] is params['norm']['scale']
  ids = jnp.array([[3, 1]])
  np.testing.assert_allclose(
    quantized.look_up_rows(out['lm_head'], ids, jnp.float32),
    np.ones((1, 2, 4)),
    rtol=1e-6,
  )


def test_shardings_follow_the_axes():
  mesh = jax.make_mesh((1, 1), ('a', 'b'))
  path = (jax.tree_util.DictKey('kernel'),)
  for spec, want in (
    ((None, 'a', 'b'), (None, 'b', 'a')),
    (('b',), (None, 'b')),
  ):
    place = NamedSharding(mesh, PartitionSpec(*spec))
    x = jax.ShapeDtypeStruct((2,) * len(want), jnp.float32, sharding=place)
    out = quantized.place_quantized(path, x)
    assert tuple(out.values.spec) == want
    assert tuple(out.scale.spec) == want[:-1]


@pytest.mark.parametrize('rows', [1, 2, 70])
def test_products_are_those_of_the_rounded_operands(rows):
  draws = np.random.default_rng(rows)
  x = draws.standard_normal((rows, 24)).astype(np.float32)
  w = draws.standard_normal((24, 16)).astype(np.float32)
  b = draws.standard_normal(16).astype(np.float32)
  matrix = quantized.quantize_rows(jnp.asarray(w.T))
  (got,) = quantized.JittedByWeights(matmul.affine)(x, (matrix, b))
  rounded = quantized.quantize_rows(jnp.asarray(x))
  float_rows = [
    np.asarray(m.values, np.float32) * np.asarray(m.scale)[:, None]
    for m in (rounded, matrix)
  ]
  want = float_rows[0] @ float_rows[1].T + b
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  assert np.abs(got - (x @ w + b)).max() < 0.2  # int8 was near float


def test_a_model_in_int8_scores_nearly_as_in_float():
  # Of one table rows are looked up, of the other they give logits, too.
  config = plan_runs.tiny(ties='decoder_head', dtype='float32')
  params = nn.unbox(parameters.init_params(AlexaTM(config), 0))
  model = api.Model(
    config,
    params,
    None,
    mesh_lib.make_mesh(devices=jax.devices()[:1]),
    Rules(),
    0,
  )
  inputs, targets = [[5, 6, 7], [9]], [[8, 9], [4, 5, 6]]
  want, _ = model.score(inputs, targets)
  sizes = {x.dtype for x in jax.tree.leaves(params)}
  model = api.quantize(model)
  got, _ = model.score(inputs, targets)
  assert sizes == {jnp.dtype('float32')} and quantized.has_int8(model.params)
  np.testing.assert_allclose(got, want, rtol=2e-2)
  assert (got != want).any()
  (ids,) = model.generate([[5, 6, 7]], max_tokens=3, min_tokens=3)
  assert len(ids) == 3
  # A head by columns in float would be four times the bytes of it in int8.
  columns = model._decode_params.get(embeddings.HEAD_COLUMNS)
  assert not isinstance(columns, jax.Array)
