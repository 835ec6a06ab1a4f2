"""Rules that change logits [R, V] before a token is chosen of them.

Each takes its settings as scalars, for all rows, or as [R] or [R, 1] of each.
R rows, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

NEG_INF = -jnp.inf


def penalize_written(logits, written, penalty):
  """Divides positive logits of ids `written` [R, V], multiplies negative."""
  other = jnp.where(logits < 0, logits * penalty, logits / penalty)
  return jnp.where(written, other, logits)


def ban_ngrams(logits, ids, tail, n):
  """Bans ids that would end one of the n-grams of `ids` again.

  Args:
    logits: [R, V].
    ids: [R, L] with the n-grams, -1 in front or behind.
    tail: [R, M], what was written last, -1 in front.
    n: how long an n-gram is; or [R], 0 of rows that ban none.
  """
  L, M = ids.shape[1], tail.shape[1]
  longest = jnp.minimum(jnp.max(n), L + 1)
  n = jnp.broadcast_to(n, len(ids))[:, None]
  pad = lambda x: jnp.pad(x, ((0, 0), (L, 0)), constant_values=-1)
  padded_ids, padded_tail = pad(ids), pad(tail)

  def compare(j, bans):
    """Compares the ids that are j in front of the last of each n-gram."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, axis=1)
    before, last = cut(padded_ids, L - j, L), cut(padded_tail, L + M - j, 1)
    return bans & ((before == last) & (before >= 0) | (j >= n))

  bans = jax.lax.fori_loop(1, longest, compare, (ids >= 0) & (n > 0))
  rows = jnp.arange(len(ids))[:, None]
  return logits.at[rows, ids].add(jnp.where(bans, NEG_INF, 0.0))


def ban_sequences(logits, tail, banned):
  """Bans the last ids of sequences [N, M] whose others `tail` ends with."""
  before, last = banned[:, :-1], banned[:, -1]
  M = before.shape[1]
  tail = tail[:, tail.shape[1] - M :] if tail.shape[1] > M else tail
  same = (tail[:, None] == before) | (before < 0)
  bans = same.all(-1) & (last >= 0)  # [R, N]
  return logits.at[:, last].add(jnp.where(bans, NEG_INF, 0.0))


def ban_early_end(logits, count, min_tokens, end_id: int):
  """Bans the end token in rows of less than min_tokens; `count` is [R]."""
  early = count < min_tokens
  ends = jnp.where(early, NEG_INF, logits[:, end_id])
  return logits.at[:, end_id].set(ends)


def force_end(logits, count, max_tokens, end_id: int):
  """Leaves the end token alone where there is room for one token."""
  only = jnp.where(jnp.arange(logits.shape[-1]) == end_id, 0.0, NEG_INF)
  last = count + 1 >= max_tokens
  return jnp.where(last[:, None], only, logits)


def truncate(logits, top_k, top_p, min_p):
  """Sets logits to -inf where top_k, top_p and min_p, in turn, cut.

  Values at a limit are all kept. Limits are searched for, as sorting takes 15
  times as long on a CPU.
  """
  V, top = logits.shape[-1], logits.max(-1, keepdims=True)
  k = jnp.where(top_k > 0, jnp.minimum(top_k, V), V)
  above = lambda x: (logits > x).sum(-1, keepdims=True)
  least = _find_least(lambda x: above(x) < k, top)
  kept = jnp.where(logits < least, NEG_INF, logits)
  share = jax.nn.softmax(kept, axis=-1)
  below = lambda x: jnp.where(kept <= x, share, 0).sum(-1, keepdims=True)
  of_p = _find_least(lambda x: (top_p >= 1) | (below(x) > 1 - top_p), top)
  least = jnp.maximum(jnp.maximum(least, of_p), top + jnp.log(min_p))
  return jnp.where(logits < least, NEG_INF, logits)


def _find_least(holds, most):
  """Returns the least float32 [R, 1] that something holds for; at most `most`.

  Halves the range from -inf to `most`, as whole numbers of the same order.
  """
  number = lambda x: _flip_negative(jax.lax.bitcast_convert_type(x, jnp.int32))
  value = lambda n: jax.lax.bitcast_convert_type(_flip_negative(n), jnp.float32)

  def halve(_, limits):
    low, high = limits
    middle = (low & high) + ((low ^ high) >> 1)  # their sum may be too great
    found = holds(value(middle))
    return jnp.where(found, low, middle + 1), jnp.where(found, middle, high)

  limits = number(jnp.full_like(most, NEG_INF)), number(most)
  return value(jax.lax.fori_loop(0, 32, halve, limits)[1])


def _flip_negative(bits):
  """Turns a float's bits into an int32 of the same order, and back."""
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
