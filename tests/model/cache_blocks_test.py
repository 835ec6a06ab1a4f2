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


def test_groups_of_rows_grow_up_to_a_quarter_of_all():
  assert cache_blocks.split_rows(16) == [1, 1, 2, 4, 4, 4]
  assert cache_blocks.split_rows(10) == [1, 1, 2, 3, 3]
  assert cache_blocks.split_rows(4) == [1, 1, 1, 1]
  assert cache_blocks.split_rows(1) == [1]


def test_blocks_have_all_of_an_array(arrays):
  _, keys, values = arrays
  blocks = cache_blocks.split_cache(values, 2)
  assert [len(group) for group in blocks] == [4] * 5
  whole = np.concatenate([np.concatenate(x, axis=2) for x in blocks])
  np.testing.assert_array_equal(whole, values)
  assert cache_blocks.count_positions(blocks) == T
  assert cache_blocks.count_positions(values) == T
  assert len(cache_blocks.keep_rows(blocks, 4)) == 3
  with pytest.raises(ValueError, match='2 rows of the last group'):
    cache_blocks.keep_rows(blocks, 5)


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
  blocks = cache_blocks.split_cache(jnp.asarray(cache), axis)
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
  ends = np.repeat([4, 4, 12, T, T], [1, 1, 2, 3, 3])  # blocks of 4, 4, 4, 1
  unread = np.arange(T) >= ends[:, None]
  keys = np.where(unread[:, None, None], np.nan, keys)
  values = np.where(unread[:, None, :, None], np.nan, values)
  blocks = (
    cache_blocks.split_cache(jnp.asarray(x), axis)
    for x, axis in ((keys, 3), (values, 2))
  )
  made = jax.jit(attention.attend_to_cache)(query, *blocks, mask)
  np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-6)
