"""Caches in blocks: as one array, but for what is not read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.model import attention, cache_blocks

R, H, K, T = 10, 2, 4, 13


@pytest.fixture(scope='module')
def arrays():
  """(query [R, 2, H, K], keys [R, H, K, T], values [R, H, T, K])."""
  draw = np.random.default_rng(0)
  normal = lambda *shape: draw.standard_normal(shape).astype('f')
  return normal(R, 2, H, K), normal(R, H, K, T), normal(R, H, T, K)


def test_parts_are_of_one_size_but_the_last():
  assert cache_blocks.split_evenly(512) == [128] * 4
  assert cache_blocks.split_evenly(10) == [3, 3, 3, 1]
  assert cache_blocks.split_evenly(3) == [1, 1, 1]


def split(x, axis: int) -> tuple:
  """Returns an array in blocks, as two groups of rows."""
  parts = jnp.asarray(x[:4]), jnp.asarray(x[4:])
  return sum((cache_blocks.split_cache(part, axis) for part in parts), ())


def test_blocks_have_all_of_an_array(arrays):
  _, keys, values = arrays
  blocks = split(values, 2)
  assert [len(group) for group in blocks] == [4] * 2
  whole = np.concatenate([np.concatenate(x, axis=2) for x in blocks])
  np.testing.assert_array_equal(whole, values)
  assert cache_blocks.count_positions(blocks) == T
  assert cache_blocks.count_positions(values) == T


@pytest.mark.parametrize('axis', [2, 3])
def test_what_is_written_is_where_an_array_has_it(arrays, axis):
  query, keys, values = arrays
  cache = keys if axis == 3 else values
  slots = np.stack([np.arange(R), np.full(R, T - 1)], axis=1)  # other blocks
  row = np.arange(R)[:, None]
  expected = cache.copy()
  if axis == 3:
    expected[row, :, :, slots] = query
  else:
    expected[row, :, slots] = query
  blocks = split(cache, axis)
  written = cache_blocks.write_blocks(blocks, query, slots, axis)
  whole = np.concatenate([np.concatenate(x, axis=axis) for x in written])
  np.testing.assert_array_equal(whole, expected)


@pytest.mark.parametrize('length', [2, 5, T])
def test_a_row_is_placed_alone_and_as_far_as_it_goes(arrays, length):
  _, keys, _ = arrays
  blocks = cache_blocks.split_cache(jnp.asarray(keys), 3)
  place = jax.jit(lambda x, slot: cache_blocks.place_row(x, new, slot, 3))
  new = jnp.full((1, H, K, length), 7.0)
  for slot in (0, 4, R - 1):
    expected = keys.copy()
    expected[slot, ..., :length] = 7
    placed = place(blocks, slot)
    whole = np.concatenate([np.concatenate(x, axis=3) for x in placed])
    np.testing.assert_array_equal(whole, expected)


def test_attention_is_that_to_one_array_and_reads_no_more(arrays):
  """Blocks that no row may attend to hold NaN, which would spread."""
  query, keys, values = arrays
  lengths = np.array([1, 2, 3, 9, 8, 7, 13, 13, 4, 1])
  mask = (np.arange(T) < lengths[:, None])[:, None]
  expected = attention.attend_to_cache(query, keys, values, mask)
  ends = np.repeat([12, T], [4, 6])  # blocks of 4, 4, 4, 1
  unread = np.arange(T) >= ends[:, None]
  keys = np.where(unread[:, None, None], np.nan, keys)
  values = np.where(unread[:, None, :, None], np.nan, values)
  blocks = split(keys, 3), split(values, 2)
  made = jax.jit(attention.attend_to_cache)(query, *blocks, mask)
  np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-6)


def test_rows_behind_the_last_query_are_left_alone(arrays):
  query, keys, values = arrays
  blocks = split(keys, 3), split(values, 2)
  few, slots = query[:5, :1], np.full((5, 1), 3)  # one row of the last group
  written = cache_blocks.write_blocks(blocks[0], few, slots, 3)
  whole = np.concatenate([np.concatenate(x, axis=3) for x in written])
  np.testing.assert_array_equal(whole[5:], keys[5:])
  np.testing.assert_array_equal(whole[:5, ..., 3], few[:, 0])
  mask = np.ones((5, 1, T), bool)
  expected = attention.attend_to_cache(few, keys[:5], values[:5], mask)
  made = attention.attend_to_cache(few, *blocks, mask)
  np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-6)
