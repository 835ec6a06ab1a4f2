"""Ways to compute attention: all as einsum, and what remat keeps of a layer."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.model import attention
from atm.model.attention import AttentionMask
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding as sharding_lib
from atm.parallel.sharding import Rules
from atm.plan import hardware, hlo, program_costs

from conftest import batch
from model_gradients import SMALL, assert_close, loss_and_gradients

SIGHTS = ('encoder', 'decoder', 'cross')
splash_interpreted = functools.partial(
  attention.splash_attention, interpret=True
)
WAYS = {
  'rows': attention.rowwise_attention,
  'splash': splash_interpreted,
  'cudnn': functools.partial(attention.cudnn_attention, kernel='xla'),
}


def segments(rng, B, n):
  """[B, n]: two packed segments and padding, by row of other lengths."""
  cuts = np.sort(rng.integers(1, n, (B, 2)), axis=1)
  at = np.arange(n)[None]
  return np.where(at < cuts[:, :1], 1, np.where(at < cuts[:, 1:], 2, 0))


def inputs(rng, kind, B=4, T=9, S=13, H=2, K=8, dtype=jnp.float32):
  """(query, key, value, sight); in the decoder and the encoder S is T."""
  S = S if kind == 'cross' else T
  draw = lambda n: jnp.asarray(rng.standard_normal((B, n, H, K)), dtype)
  queries, keys = segments(rng, B, T), segments(rng, B, S)
  keys = keys if kind == 'cross' else queries
  sight = AttentionMask(queries, keys, causal=kind == 'decoder')
  return draw(T), draw(S), draw(S), sight


def value_and_slopes(compute, query, key, value, sight):
  """Of queries that may look somewhere: the others are nobody's input."""
  inside = np.asarray(sight.mask()).any(-1)[:, 0, :, None, None]
  pull = jnp.asarray(
    np.random.default_rng(5).standard_normal(query.shape), jnp.float32
  )

  def total(*given):
    out = jnp.where(inside, compute(*given, sight), 0)
    return (out * pull).sum(), out

  slopes, out = jax.jit(
    jax.grad(total, argnums=(0, 1, 2), has_aux=True)
  )(query, key, value)  # fmt: skip
  return out, *slopes


@pytest.mark.parametrize('kind', SIGHTS)
@pytest.mark.parametrize('way', WAYS)
def test_every_way_equals_einsum(rng, monkeypatch, way, kind):
  """Packed rows and padding; rows: two at a time; splash: padded to blocks."""
  monkeypatch.setattr(attention, 'ROWS_BYTES', 2 * 4 * 2 * 9 * 13)
  given = inputs(rng, kind)
  got = value_and_slopes(WAYS[way], *given)
  want = value_and_slopes(attention.einsum_attention, *given)
  for x, y in zip(got, want, strict=True):
    np.testing.assert_allclose(x, y, atol=3e-6)


def over_keys(B: int, t: int, S: int, H: int, K: int, dtype, sharding=None):
  """Shapes of what `attend_to_cache` takes, t queries to a row of B."""
  like = lambda dtype, *shape: jax.ShapeDtypeStruct(
    shape, dtype, sharding=sharding
  )
  return (
    like(dtype, B, t, H, K),
    like(dtype, B, H, K, S),
    like(dtype, B, H, S, K),
    like(bool, B, t, S),
  )


@pytest.mark.parametrize('tpu', [False, True])
@pytest.mark.parametrize('t', [1, 3])
def test_queries_that_share_keys_are_answered_apart(rng, monkeypatch, t, tpu):
  """Each by its own row of the mask.

  Fault seen: the row that fills up a TPU's product given for the query's.
  """
  monkeypatch.setattr(attention, 'on_tpu', lambda: tpu)
  B, S = 4, 13
  query, keys, values, _ = (
    jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    for x in over_keys(B, t, S, 2, 8, jnp.float32)
  )
  mask = jnp.asarray(rng.random((B, t, S)) < 0.5).at[:, :, 0].set(True)
  got = attention.attend_to_cache(query, keys, values, mask)
  assert got.shape == query.shape
  for row, i in np.ndindex(B, t):
    scores = jnp.einsum('hk,hks->hs', query[row, i], keys[row]) / 8**0.5
    scores = jnp.where(mask[row, i], scores, -jnp.inf)
    want = jnp.einsum('hs,hsk->hk', jax.nn.softmax(scores), values[row])
    np.testing.assert_allclose(got[row, i], want, atol=2e-6)


@pytest.mark.libtpu
def test_one_query_a_row_is_a_product_of_the_matrix_unit():
  """Most of its cycles are. Fault seen: the vector unit's, nine tenths."""
  devices = hardware.pod_devices(hardware.parse_pod('v5e:2x2'))
  mesh = mesh_lib.make_mesh(devices=devices[:1])
  placed = sharding_lib.NamedSharding(mesh, jax.P())
  given = over_keys(32, 1, 2048, 4, 128, jnp.bfloat16, placed)
  with sharding_lib.use_mesh(mesh, Rules()):
    compiled = jax.jit(attention.attend_to_cache).lower(*given).compile()
  cycles = program_costs.sum_cycles(hlo.parse(compiled.as_text()))
  assert cycles['matrix products'] > cycles['elementwise']


def test_splash_over_several_blocks(rng):
  """1100 queries, 1030 keys: three blocks of 384 each, the last not full."""
  given = inputs(rng, 'cross', B=1, T=1100, S=1030, H=1)
  got = value_and_slopes(splash_interpreted, *given)
  want = value_and_slopes(attention.einsum_attention, *given)
  for x, y in zip(got, want, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize('kind', SIGHTS)
def test_splash_lowers_for_tpus(rng, kind):
  """Forward and backward become TPU kernels here; none was run on one."""
  given = inputs(rng, kind, T=200, S=300, H=4, K=64, dtype=jnp.bfloat16)

  def total(query, key, value):
    out = attention.splash_attention(query, key, value, given[3])
    return out.astype(jnp.float32).sum()

  program = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*given[:3])
  text = program.lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') == 2  # forward; dq, dk and dv


@pytest.mark.parametrize('kind', SIGHTS)
def test_rows_in_bfloat16_are_as_near_as_einsum(rng, kind):
  """Distance from float32 on the same inputs, relative."""
  given = inputs(rng, kind, T=24, S=32, dtype=jnp.bfloat16)
  exact = [x.astype(jnp.float32) for x in given[:3]]
  exact = value_and_slopes(attention.einsum_attention, *exact, given[3])
  for way in (attention.rowwise_attention, attention.einsum_attention):
    for got, want in zip(value_and_slopes(way, *given), exact, strict=True):
      error = np.linalg.norm(np.asarray(got, np.float32) - want)
      assert error < 0.01 * np.linalg.norm(want)


@pytest.mark.parametrize('S', [1, 16, 100, 128, 384, 1024])
def test_the_greatest_of_a_row_is_found_by_columns(rng, S):
  """Rows of several blocks, of one, and those that no block divides."""
  x = jnp.asarray(rng.standard_normal((2, 3, S)), jnp.float32)
  found = jax.jit(attention._max_rows)(x)
  np.testing.assert_array_equal(found, x.max(-1, keepdims=True))


def test_rows_hold_no_scores_of_all_rows(rng, monkeypatch):
  given = inputs(rng, 'cross')
  some = 2 * 2 * 9 * 13  # of two rows of the four
  monkeypatch.setattr(attention, 'ROWS_BYTES', 4 * some)

  def largest(compute):
    total = lambda q, k, v: compute(q, k, v, given[3]).sum()
    jitted = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    text = jitted.lower(*given[:3]).as_text()
    shapes = re.findall(r'tensor<([\dx]+)x[fb]\d', text)
    shapes = [list(map(int, x.split('x'))) for x in shapes]
    return max(np.prod(x) for x in shapes if x[-1] == 13 and 9 in x)

  assert largest(attention.rowwise_attention) == some
  assert largest(attention.einsum_attention) == 2 * some


TARGETS = [
  ('tpu', 1, jnp.bfloat16, 64, 'splash'),
  ('tpu', 8, jnp.float32, 64, 'splash'),
  ('gpu', 4, jnp.bfloat16, 64, 'cudnn'),
  ('gpu', 4, jnp.float32, 64, 'einsum'),
  ('cpu', 1, jnp.float32, 512, 'rows'),
  ('cpu', 1, jnp.bfloat16, 64, 'rows'),
  ('cpu', 8, jnp.float32, 512, 'einsum'),
]


@pytest.mark.parametrize('platform, devices, dtype, length, want', TARGETS)
def test_auto_is_by_platform(
  monkeypatch, platform, devices, dtype, length, want
):
  monkeypatch.setattr(
    sharding_lib, 'current_target', lambda: (platform, devices)
  )
  x = jax.ShapeDtypeStruct((8, length, 8, 64), dtype)
  assert attention.choose_implementation(x) == want


def test_what_only_einsum_can_is_einsums(rng, monkeypatch):
  def refuse(*args):
    raise AssertionError('not by einsum')

  monkeypatch.setattr(attention, 'rowwise_attention', refuse)
  query, key, value, sight = inputs(rng, 'encoder')
  attend = functools.partial(
    attention.dot_product_attention, implementation='rows'
  )
  attend(query, key, value, sight, dropout=lambda x: x)
  half = [x.astype(jnp.bfloat16) for x in (query, key, value)]
  attend(*half, sight, scores_float32=False)
  with pytest.raises(AssertionError, match='not by einsum'):
    attend(query, key, value, sight)


# --- In a model


@pytest.mark.parametrize('way', ['rows', 'splash'])
def test_over_devices_every_one_attends_on_its_rows_and_heads(
  rng, monkeypatch, one_device, way
):
  monkeypatch.setattr(attention, 'splash_attention', splash_interpreted)
  rows = batch(rng, 8, 12, 10)
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  got = loss_and_gradients(mesh, rows, attention=way, **SMALL)
  assert_close(
    got, loss_and_gradients(one_device, rows, attention='einsum', **SMALL)
  )
