"""Products as the CPU is fast in them: the same values, other kernels."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.model import matmul
from atm.parallel import sharding, xla_options

from conftest import FUSED_AS_USERS


def inputs(rng, N, A, widths, dtype):
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  weights = [(draw(A, B), draw(B)) for B in widths]
  return draw(N, A), weights, [draw(N, B) for B in widths]


def plain(x, *weights):
  return [x @ w + b for w, b in weights]


def value_and_slopes(compute, x, weights, pulls):
  def total(x, weights):
    out = compute(x, *weights)
    return sum((y * pull).sum() for y, pull in zip(out, pulls)), out

  slopes, out = jax.jit(
    jax.grad(total, argnums=(0, 1), has_aux=True)
  )(x, weights)  # fmt: skip
  return out, *slopes


SHAPES = [
  (1, 16, [16]), (1, 16, [8, 8, 8]), (2, 1, [1]), (3, 8, [32]), (24, 32, [8]),
  (200, 64, [64, 64, 64]), (130, 48, [80, 16]), (256, 256, [64]),
]  # fmt: skip


@pytest.mark.parametrize('N, A, widths', SHAPES)
def test_values_and_gradients_are_those_of_plain_products(rng, N, A, widths):
  """One row, one column, the narrower side on the left and on the right.

  Faults seen: the transposed slope taken for the transposed input; columns of
  joined matrices cut at the wrong places; the bias's gradient left out.
  """
  given = inputs(rng, N, A, widths, jnp.float32)
  got, want = (value_and_slopes(f, *given) for f in (matmul.affine, plain))
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5)
  jax.tree.map(close, got, want)


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_heads_are_cut_and_joined_inside_the_product(
  rng, monkeypatch, platform
):
  """As every platform has it.

  Faults seen: heads joined in the other order; the bias's gradient of one row;
  it twice.
  """
  monkeypatch.setattr(sharding, 'current_target', lambda: (platform, 1))
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  x, out_of = draw(2, 5, 16), (draw(16, 24), draw(24))
  heads, into = draw(2, 5, 4, 6), (draw(24, 16), draw(16))
  for compute, reference, given, pull in (
    (
      lambda x, w, b: matmul.affine(x, (w, b), heads=4)[0],
      lambda x, w, b: (x @ w + b).reshape(2, 5, 4, 6),
      (x, *out_of),
      draw(2, 5, 4, 6),
    ),
    (
      lambda x, w, b: matmul.affine(x, (w, b), axes=2)[0],
      lambda x, w, b: x.reshape(2, 5, 24) @ w + b,
      (heads, *into),
      draw(2, 5, 16),
    ),
  ):
    (got, back), (want, plain_back) = (
      jax.vjp(f, *given) for f in (compute, reference)
    )
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5)
    jax.tree.map(close, (got, back(pull)), (want, plain_back(pull)))


@pytest.mark.parametrize('N, A, widths', SHAPES)
def test_bfloat16_sums_in_float32(rng, N, A, widths):
  """Within a rounding of what float32 gives for the same inputs."""
  given = inputs(rng, N, A, widths, jnp.bfloat16)
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), given)
  got, want = value_and_slopes(matmul.affine, *given), plain
  want = value_and_slopes(want, *exact)

  def near(x, y):
    assert x.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(x, np.float32) - y)
    assert error <= 2**-8 * np.linalg.norm(y)

  jax.tree.map(near, got, want)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  'A, widths', [(64, [256]), (256, [64]), (64, [64, 64])]
)
def test_every_product_is_of_the_fast_kind(rng, A, widths, dtype):
  """In the compiled program no product stands outside a fusion of YNNPACK's.

  Faults seen: the input of the weight's gradient transposed without being
  written out; its result transposed so.
  """
  given = inputs(rng, 512, A, widths, dtype)
  grad = jax.grad(
    lambda x, weights: sum(
      jnp.square(y).sum() for y in matmul.affine(x, *weights)
    ).astype(jnp.float32),
    argnums=(0, 1),
  )
  lowered = jax.jit(grad).lower(*given[:2])
  # Also where `xla_options.set_flags` turns them off.
  kinds = 'LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'
  fused = {**FUSED_AS_USERS, xla_options.YNN_FUSIONS: kinds}
  program = lowered.compile(fused).as_text()
  assert len(re.findall(r'kind=kCustom', program)) >= 3
  entry = program[program.index('\nENTRY') :]
  assert not re.findall(r' dot\(', entry)


def test_several_devices_use_plain_products(rng, monkeypatch):
  monkeypatch.setattr(sharding, 'current_target', lambda: ('cpu', 8))
  given = inputs(rng, 24, 32, [8, 16], jnp.float32)
  jaxpr = str(jax.make_jaxpr(lambda x, w: matmul.affine(x, *w))(*given[:2]))
  assert 'custom_vjp' not in jaxpr and 'layout' not in jaxpr
  jaxpr = str(jax.make_jaxpr(matmul.transpose)(given[0]))
  assert 'layout' not in jaxpr


@pytest.mark.parametrize('N', [1, 2, 48, 49])
def test_few_rows_by_columns_are_the_plain_product(rng, N):
  """Of few rows with the large matrix first, which is not written out anew."""
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  x, w = draw(N, 16), draw(40, 16)
  compute = jax.jit(matmul.rows_by_columns)
  np.testing.assert_allclose(compute(x, w), x @ w.T, rtol=1e-5, atol=2e-5)
  jaxpr = str(jax.make_jaxpr(matmul.rows_by_columns)(x, w))
  assert ('barrier' in jaxpr) == (1 < N <= matmul.FEW_ROWS)


@pytest.mark.parametrize('shape', [(3, 8), (2, 9, 8), (3, 5, 1)])
def test_sums_of_many_rows_are_products_with_ones(rng, shape):
  """Of few rows and of many; of one column.

  Faults seen: a mean of all rows; sums of a row of ones for each row of ones.
  """
  x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  flat = np.asarray(x, np.float64).reshape(-1, shape[-1])
  close(jax.jit(matmul.sum_columns)(x), flat.sum(0))
  means = np.asarray(x, np.float64).mean(-1)
  close(jax.jit(matmul.mean_rows)(x), means)
  close(matmul.mean_rows(x, keepdims=True), means[..., None])
  for compute in matmul.sum_columns, matmul.mean_rows:
    is_product = 'dot_general' in str(jax.make_jaxpr(compute)(x))
    assert is_product == (len(flat) >= shape[-1])
