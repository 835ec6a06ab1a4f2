"""Kernels of decoding: XLA's values, and rows that do not depend on others."""

import ctypes
import os
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.model import (
  attention,
  cache_blocks,
  kernels,
  matmul,
  packed,
  quantized,
)  # fmt: skip

needs_compiler = pytest.mark.skipif(
  not kernels.are_available(), reason='there is no C compiler'
)


def draw(*shape, seed=0):
  rng = np.random.default_rng((seed, *shape))
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


# Columns in part of a panel, of several; rows in part of a tile, of groups; A
# beyond a tile's depth.
PRODUCTS = [
  (1, 1, 1), (2, 3, 15), (5, 64, 33), (12, 300, 96), (13, 40, 1000),
  (29, 257, 31), (200, 520, 64), (97, 16, 70),
]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize('N, A, B', PRODUCTS)
def test_multiply(N, A, B):
  x, w, b = draw(N, A), draw(A, B), draw(B)
  panels = packed.pack_matrix(w).panels
  made = np.asarray(jax.jit(kernels.multiply)(x, panels, b))
  exact = np.float64(x) @ np.float64(w) + np.float64(b)
  np.testing.assert_allclose(made, exact, atol=1e-6 * A, rtol=1e-5)
  # A row by itself has the same bits.
  for i in {0, N // 2, N - 1}:
    alone = jax.jit(kernels.multiply)(x[i : i + 1], panels, b)
    np.testing.assert_array_equal(alone[0], made[i])


@needs_compiler
def test_threads_do_not_change_bits():
  x, w, b = draw(40, 512), draw(512, 2000), draw(2000)
  panels, multiply = packed.pack_matrix(w).panels, jax.jit(kernels.multiply)
  first = np.asarray(multiply(x, panels, b))
  for _ in range(20):
    np.testing.assert_array_equal(multiply(x, panels, b), first)


def draw_int8(N, A, B):
  """Returns x whose rows are quantised to themselves, and W [B, A] in int8."""
  rng = np.random.default_rng((N, A, B))
  x = rng.integers(-127, 128, (N, A)).astype(np.float32)
  x[:, 0] = 127
  w = rng.integers(-127, 128, (B, A)).astype(np.int8)
  w[0], x[-1] = -127, 127 * np.sign(x[-1] + 0.5)  # the greatest sums
  scale = rng.uniform(0.5, 2, B).astype(np.float32)
  return jnp.asarray(x), quantized.QuantizedMatrix(jnp.asarray(w), scale)


@needs_compiler
@pytest.mark.parametrize('N, A, B', PRODUCTS)
def test_multiply_int8(N, A, B):
  (x, w), b = draw_int8(N, A, B), draw(B)
  made = np.asarray(jax.jit(lambda *x: packed.pack_int8(w).affine(*x))(x, b))
  sums = np.int64(x) @ np.int64(w.values).T
  np.testing.assert_allclose(made, sums * w.scale + b, rtol=1e-6, atol=1e-5)
  # Rows of other magnitudes, and of zeros.
  factor = np.float32(2.0) ** np.arange(-20, 20)[np.arange(N) % 40, None]
  factor[N // 2] = 0
  scaled = packed.pack_int8(w).affine(x * factor, jnp.zeros(B))
  expected = matmul.affine_int8(x * factor, w, 0)
  np.testing.assert_allclose(scaled, expected, rtol=1e-5)
  assert not np.any(scaled[N // 2])


# R, n, B, H, K, S, and queries of a row with masks of their own.
CACHES = [
  (1, 1, 1, 1, 1, 1, 1), (4, 1, 4, 8, 64, 300, 1), (6, 3, 2, 2, 16, 77, 1),
  (5, 4, 5, 2, 20, 33, 4), (3, 1, 3, 1, 7, 5, 1), (2, 8, 2, 3, 80, 130, 8),
]  # fmt: skip


def attend_by_xla(monkeypatch, *args):
  with monkeypatch.context() as patch:
    patch.setattr(kernels, 'are_available', lambda: False)
    attend = lambda *args: attention.attend_to_cache(*args)
    return jax.jit(attend)(*args)


def draw_mask(B, n, S):
  rng = np.random.default_rng(B + S)
  ends = rng.integers(1, S + 1, (B, n, 1))
  mask = (np.arange(S) < ends) & (rng.random((B, n, S)) < 0.8)
  return jnp.asarray(mask | (np.arange(S) == ends - 1))


@needs_compiler
@pytest.mark.parametrize('R, n, B, H, K, S, masks', CACHES)
def test_attend(monkeypatch, R, n, B, H, K, S, masks):
  query = draw(R, n, H, K)
  keys, values = draw(B, H, K, S, seed=1), draw(B, H, S, K, seed=2)
  mask = draw_mask(B, masks, S)
  args = query, keys, values, mask
  made = np.asarray(jax.jit(lambda *x: attention.attend_to_cache(*x))(*args))
  expected = attend_by_xla(monkeypatch, *args)
  np.testing.assert_allclose(made, expected, atol=2e-6, rtol=2e-5)
  if B == R:  # a row by itself, with fewer positions, has the same bits
    seen = int(np.flatnonzero(mask[:1].any((0, 1))).max()) + 1
    alone = kernels.attend(
      query[:1], mask[:1, :, :seen], keys[:1, ..., :seen], values[:1, :, :seen]
    )
    np.testing.assert_array_equal(alone[0], made[0])


@needs_compiler
def test_attend_to_blocks_of_groups(monkeypatch):
  # The last group has a row more than there are queries.
  R, H, K, S = 7, 2, 16, 90
  split = lambda x, axis: cache_blocks.split_cache(x, axis)
  parts = [slice(0, 4), slice(4, 8)]
  keys, values = draw(8, H, K, S, seed=1), draw(8, H, S, K, seed=2)
  blocked = [
    sum((split(x[part], axis) for part in parts), ())
    for x, axis in ((keys, 3), (values, 2))
  ]
  query, mask = draw(R, 1, H, K), draw_mask(R, 1, S)
  attend = lambda *x: attention.attend_to_cache(*x)
  made = np.asarray(jax.jit(attend)(query, *blocked, mask))
  expected = attend_by_xla(monkeypatch, query, *blocked, mask)
  np.testing.assert_allclose(made, expected, atol=2e-6, rtol=2e-5)
  whole = jax.jit(attend)(query, keys[:R], values[:R], mask)
  np.testing.assert_array_equal(whole, made)


@needs_compiler
def test_nothing_to_attend_to():
  none = jnp.zeros((2, 1, 40), bool)
  caches = draw(2, 3, 8, 40), draw(2, 3, 40, 8)
  assert not np.any(kernels.attend(draw(2, 1, 3, 8), none, *caches))


@needs_compiler
def test_extreme_scores():
  query = jnp.full((1, 1, 1, 2), 1e4)
  keys = jnp.asarray([[[[1.0, -1.0, 1.0]] * 2]])
  values = jnp.asarray([[[[1.0, 2.0], [9.0, 9.0], [3.0, 4.0]]]])
  mask = jnp.ones((1, 1, 3), bool)
  made = kernels.attend(query, mask, keys, values)
  np.testing.assert_array_equal(made[0, 0, 0], [2.0, 3.0])


# --- The library


@needs_compiler
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='flags of x86-64')
@pytest.mark.parametrize('level', ['x86-64', 'x86-64-v3'])
def test_other_processors(monkeypatch, tmp_path, level):
  """Vectors of other widths give the same values, within rounding."""
  flags = [x for x in kernels.COMPILER_FLAGS if not x.startswith('-march')]
  monkeypatch.setattr(kernels, 'COMPILER_FLAGS', (f'-march={level}', *flags))
  path = str(tmp_path / 'made.so')
  assert kernels._compile(kernels._find_compiler(), path)
  library = ctypes.CDLL(path)
  for name in 'product', 'int8_product', 'attention':
    target = f'test_{name}_{level}'
    capsule = jax.ffi.pycapsule(library[f'atm_{name}'])
    jax.ffi.register_ffi_target(target, capsule, 'cpu')

  def call(name, like, *args):
    out = jax.ShapeDtypeStruct(like.shape, jnp.float32)
    return jax.ffi.ffi_call(f'test_{name}_{level}', out)(*args)

  x, w, b = draw(29, 257), draw(257, 70), draw(70)
  args = x, packed.pack_matrix(w).panels, b
  made = kernels.multiply(*args)
  tolerance = dict(atol=1e-4, rtol=1e-5)  # the oldest have no FMA
  np.testing.assert_allclose(call('product', made, *args), made, **tolerance)
  x, w = draw_int8(29, 257, 70)
  w = packed.pack_int8(w)
  made = w.affine(x, b)
  args = x, w.panels, w.scale, w.totals, b
  np.testing.assert_allclose(call('int8_product', made, *args), made, rtol=1e-6)
  args = draw(3, 2, 2, 20), draw_mask(3, 1, 77)
  args += draw(3, 2, 20, 77), draw(3, 2, 77, 20)
  made = kernels.attend(*args)
  np.testing.assert_allclose(call('attention', made, *args), made, **tolerance)


@pytest.mark.parametrize('command', [None, ['false'], ['sleep', '9']])
def test_without_a_compiler(monkeypatch, tmp_path, command):
  monkeypatch.setattr(kernels, 'FOLDER', str(tmp_path / 'made'))
  monkeypatch.setattr(kernels, 'COMPILE_SECONDS', 0.1)
  monkeypatch.setattr(kernels, '_find_compiler', lambda: command)
  assert kernels._find_library() is None
  assert not command or os.listdir(tmp_path / 'made') == []


def test_a_library_that_cannot_be_loaded(monkeypatch, tmp_path):
  path = tmp_path / 'made.so'
  path.write_bytes(b'no library')
  monkeypatch.setattr(kernels, '_find_library', lambda: str(path))
  assert kernels.are_available.__wrapped__() is False


@needs_compiler
def test_compiles_once(monkeypatch, tmp_path):
  monkeypatch.setattr(kernels, 'FOLDER', str(tmp_path))
  path = kernels._find_library()
  changed = os.stat(path).st_mtime_ns
  assert kernels._find_library() == path
  assert os.stat(path).st_mtime_ns == changed
  assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_finds_the_compiler_of_cc(monkeypatch):
  monkeypatch.setenv('CC', 'env gcc -m64')
  assert kernels._find_compiler() == ['env', 'gcc', '-m64']
  monkeypatch.setenv('CC', 'no-such-compiler')
  assert kernels._find_compiler() is None
