"""Parts of layers: GELU, ReLU and norms, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.model import layers

from conftest import tiny


def test_gelu_is_exact_and_so_is_its_gradient():
  """Faults seen: tanh's approximation; x phi(x) left out of the gradient."""
  x = jnp.concatenate([jnp.linspace(-12, 12, 4801), jnp.array([0.0, 1e-30])])
  value = lambda f: jax.jit(jax.vmap(jax.value_and_grad(f)))(x)
  got = value(layers.gelu)
  for ours, theirs in zip(got, value(lambda x: jax.nn.gelu(x, False))):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
  half = x.astype(jnp.bfloat16)
  out, back = jax.vjp(layers.gelu, half)
  assert out.dtype == back(out)[0].dtype == jnp.bfloat16
  exact = jax.nn.gelu(half.astype(jnp.float32), False)
  np.testing.assert_allclose(out.astype(jnp.float32), exact, 2**-8, 1e-6)


def test_gelu_and_the_product_behind_it_are_so_on_tpus_too(rng):
  """Faults seen: the rise left out of the gradient; the bias's gradient of the
  wrong slope."""
  x, w, b, pull = (
    jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for shape in [(2, 3, 8), (8, 4), (4,), (2, 3, 4)]
  )
  plain = lambda x, w, b: jax.nn.gelu(x, False) @ w + b
  (ours, back), (theirs, plain_back) = (
    jax.vjp(f, x, w, b) for f in (layers.gelu_matmul, plain)
  )
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, (ours, back(pull)), (theirs, plain_back(pull)))


def test_of_relu_the_result_alone_is_kept():
  """Faults seen: its input, too; a mask beside it; a gradient of one at 0."""
  x = jnp.array([-1.0, 0.0, 0.5, 2.0], jnp.bfloat16)
  out, back = jax.vjp(layers.relu, x)
  np.testing.assert_array_equal(out, jnp.array([0, 0, 0.5, 2], out.dtype))
  (gradient,) = back(jnp.full(4, 3, out.dtype))
  assert out.dtype == gradient.dtype == jnp.bfloat16
  np.testing.assert_array_equal(gradient, jnp.array([0, 0, 3, 3], out.dtype))
  residuals = jax.tree.leaves(back)
  assert [x.shape for x in residuals] == [(4,)]
  np.testing.assert_array_equal(residuals[0], out)


@pytest.mark.parametrize('platform, apart', [('tpu', 1), ('gpu', 0)])
def test_relus_sign_is_read_in_the_backward_pass_on_tpus(platform, apart):
  x = jnp.ones((2, 4))
  device = jax.sharding.AbstractDevice('any', num_cores=1, platform=platform)
  mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    jaxpr = jax.make_jaxpr(jax.grad(lambda x: layers.relu(x).sum()))(x)
  assert str(jaxpr).count('optimization_barrier') == apart


@pytest.mark.parametrize('norm', ['standard', 'uncentred'])
def test_the_norms_gradient_is_that_of_its_formula(rng, norm):
  """Against JAX's own, of moments about the mean; some rows far from 0.

  Faults seen: 'uncentred' taken for the variance in the gradient; the mean of
  the slope left out, or the spread in front of all; a variance below 0 where
  a row is nearly constant.
  """
  x, pull = (jnp.asarray(rng.standard_normal((2, 5, 16)), 'f4') for _ in 'xy')
  x = x.at[0].add(7)
  scale, bias = (jnp.asarray(rng.standard_normal(16), 'f4') for _ in 'xy')

  def plain(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    spread = centred if norm == 'standard' else x
    second = jnp.square(spread).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(second + 1e-2) * scale + bias

  def ours(x, scale, bias, eps=1e-2):
    known = layers.norm_moments(x, tiny(norm=norm, norm_eps=eps))
    return layers.normalize(x, known, scale, bias, norm)

  (got, back), (want, plain_back) = (
    jax.vjp(f, x, scale, bias) for f in (ours, plain)
  )
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=3e-5)
  jax.tree.map(close, (got, back(pull)), (want, plain_back(pull)))
  x = 1000 + 1e-3 * x
  assert not jnp.isnan(ours(x, scale, bias, eps=1e-6)).any()


@pytest.mark.parametrize('kind, apart', [('TPU v5 lite', 1), ('TPU v5p', 2)])
def test_a_norms_sums_are_made_inside_products_where_that_is_fast(kind, apart):
  """Elsewhere its gradient is apart from the product in front, as what it gives
  is everywhere from those behind.

  Faults seen: apart on all, as JAX transposes a barrier; on none.
  """
  module, x = layers.LayerNorm(tiny()), jnp.ones((8, 5, 16))
  params = module.init(jax.random.key(0), x)
  norm = lambda x: module.apply(params, x)
  device = jax.sharding.AbstractDevice(kind, num_cores=1, platform='tpu')
  mesh = jax.sharding.AbstractMesh((8,), ('data',), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    forward = jax.make_jaxpr(norm)(x)
    both = jax.make_jaxpr(jax.grad(lambda x: norm(x).sum()))(x)
  assert str(forward).count('optimization_barrier') == 1
  assert str(both).count('optimization_barrier') == apart


def test_a_cache_is_written_at_its_slots():
  """Keys lie behind their dimension, values before it.

  Fault seen: keys written where values belong.
  """
  R, H, K, T, S = 2, 1, 3, 4, 1
  zeros = lambda *shape: jnp.zeros(shape)
  cache = layers.KVCache(
    zeros(R, H, K, T), zeros(R, H, T, K), zeros(R, H, K, S), zeros(R, H, S, K)
  )
  keys = jnp.arange(1.0, 1 + R * K).reshape(R, 1, H, K)
  slots = jnp.array([[3], [0]])
  cache = cache.write(keys, -keys, slots)
  for row, slot in enumerate((3, 0)):
    np.testing.assert_array_equal(
      cache.self_keys[row, :, :, slot], keys[row, 0]
    )
    np.testing.assert_array_equal(
      cache.self_values[row, :, slot], -keys[row, 0]
    )
  assert (cache.self_keys != 0).sum() == R * K
