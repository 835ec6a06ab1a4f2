"""Matrices in int8."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from atm.model import quantized


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
    out['lm_head'].look_up(ids, jnp.float32), np.ones((1, 2, 4)), rtol=1e-6
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
