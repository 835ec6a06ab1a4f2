"""A cache in blocks, of which attention reads those that a row has filled.

For CPUs: XLA's products read an array as a whole, and a part of one as a copy
of it. Blocks are arrays by themselves, and a conditional reads one or not.

A blocked cache is a tuple of groups of rows, each a tuple of blocks, [R, H, K,
T] of keys or [R, H, T, K] of values; R rows of the group, T positions of the
block, H heads, K head dimension. The last group may have more rows than there
are queries: those are neither read nor written.
"""

import jax
import jax.numpy as jnp

MOST_PARTS = 4  # blocks of positions, at most


def split_evenly(count: int, parts: int = MOST_PARTS) -> list[int]:
  """Returns sizes of up to `parts` parts, all but the last of one size."""
  size = -(-count // parts)
  return [min(size, count - at) for at in range(0, count, size)]


def split_cache(x: jax.Array, axis: int) -> tuple:
  """Returns [R, H, ...] in blocks, one group; `axis` has the positions."""
  start, blocks = 0, []
  for size in split_evenly(x.shape[axis]):
    blocks.append(jax.lax.slice_in_dim(x, start, start + size, axis=axis))
    start += size
  return (tuple(blocks),)


def count_positions(values) -> int:
  """Returns how many positions values have, in blocks or in one array."""
  if isinstance(values, tuple):
    return sum(block.shape[2] for block in values[0])
  return values.shape[2]


def list_arrays(keys, values) -> list:
  """Returns the arrays of a cache, blocked or not, as `kernels.attend` reads.

  Those of a group's keys and then of its values, a group after the other.
  """
  if not isinstance(keys, tuple):
    return [keys, values]
  return [x for group in zip(keys, values) for blocks in group for x in blocks]


def write_blocks(blocks: tuple, new, slots, axis: int) -> tuple:
  """Returns a blocked cache with `new` [R, n, H, K] at positions [R, n].

  `axis` has the positions: 3 of keys, 2 of values.
  """
  groups, at = [], 0
  for group in blocks:
    rows = slice(at, at + len(group[0]))
    at, start, written = rows.stop, 0, []
    row = jnp.arange(len(slots[rows]))[:, None]
    for block in group:
      size = block.shape[axis]
      inside = (slots[rows] >= start) & (slots[rows] < start + size)
      where = jnp.where(inside, slots[rows] - start, size)  # dropped
      place = (row, slice(None), slice(None), where)
      place = place if axis == 3 else (row, slice(None), where)
      written.append(block.at[place].set(new[rows], mode='drop'))
      start += size
    groups.append(tuple(written))
  return tuple(groups)


def place_row(blocks: tuple, new, slot, axis: int) -> tuple:
  """Returns a blocked cache, one group, with `new` [1, H, ...] as row `slot`.

  `new` may have fewer positions than the cache, whose others stay.
  """
  (group,), start, written = blocks, 0, []
  for block in group:
    end = min(start + block.shape[axis], new.shape[axis])
    if start < end:
      part = jax.lax.slice_in_dim(new, start, end, axis=axis)
      place = (slot, *(0,) * (block.ndim - 1))
      block = jax.lax.dynamic_update_slice(block, part, place)
    written.append(block)
    start += block.shape[axis]
  return (tuple(written),)


def attend_to_blocks(query, keys, values, mask, score, weigh):
  """Computes attention of queries [R, n, H, K] to a cache in blocks.

  Args:
    query: of all rows of the groups.
    keys, values: in blocks.
    mask: [R, n or 1, S] bool. A block that no row of its group may attend to
      is not read.
    score: (query, keys of a block) -> scores [R, H, n, T].
    weigh: (mask [R, 1, n or 1, S], scores [R, H, n, S]) -> weights.

  Returns:
    [R, H, n, K].
  """
  out, at = [], 0
  for group_keys, group_values in zip(keys, values, strict=True):
    rows = slice(at, at + len(group_keys[0]))
    at, seen = rows.stop, mask[rows]
    ends = [sum(x.shape[3] for x in group_keys[: i + 1])
            for i in range(len(group_keys))]  # fmt: skip
    parts = [slice(e - x.shape[3], e) for e, x in zip(ends, group_keys)]
    is_seen = [seen[..., part].any() for part in parts]
    count = len(query[rows])
    read = lambda x, rows=rows, count=count: score(query[rows], x[:count])
    scores = [
      _read_where(*pair, read) for pair in zip(is_seen, group_keys, strict=True)
    ]
    weights = weigh(seen[:, None], jnp.concatenate(scores, axis=-1))
    out.append(
      sum(
        _read_where(
          asked, block, lambda x, w=weights[..., part]: w @ x[: len(w)]
        )
        for asked, block, part in zip(is_seen, group_values, parts)
      )
    )
  return jnp.concatenate(out)


def _read_where(asked, block, read):
  """Returns read(block), or zeros where it is not asked for."""
  like = jax.eval_shape(read, block)
  none = lambda _: jnp.zeros(like.shape, like.dtype)
  return jax.lax.cond(asked, read, none, block)
