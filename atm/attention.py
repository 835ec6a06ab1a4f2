"""Scaled dot-product attention behind one function."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e9  # finite: a row that may look nowhere gives no NaN


def mask(
  query_segments: jax.Array,
  key_segments: jax.Array,
  query_positions: jax.Array | None = None,
  key_positions: jax.Array | None = None,
) -> jax.Array:
  """Who may look at whom: [B, 1, T, S] bool.

  Args:
    query_segments: [B, T] integers; a query sees keys of its own segment.
    key_segments: [B, S] integers.
    query_positions: [B, T] or None; where given, a query sees no key whose
      position is greater than its own (causal).
    key_positions: [B, S] or None.
  """
  see = query_segments[:, :, None] == key_segments[:, None, :]
  if query_positions is not None:
    see &= query_positions[:, :, None] >= key_positions[:, None, :]
  return see[:, None]


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  see: jax.Array,
  dropout=lambda weights: weights,
  scores_float32: bool = True,
) -> jax.Array:
  """softmax(q k' / sqrt(K)) v.

  Args:
    query: [B, T, H, K].
    key: [B, S, H, K].
    value: [B, S, H, K].
    see: [B, 1, T, S] bool, from `mask`.
    dropout: applied to the weights [B, H, T, S].
    scores_float32: compute scores and softmax in float32, else in the dtype of
      `query`.

  Returns:
    [B, T, H, K] in the dtype of `query`.
  """
  scale = query.shape[-1] ** -0.5
  scores = jnp.einsum(
    'bthk,bshk->bhts',
    query,
    key,
    preferred_element_type=jnp.float32 if scores_float32 else query.dtype,
  )
  scores = jnp.where(see, scores * scale, MASKED)
  weights = dropout(jax.nn.softmax(scores).astype(query.dtype))
  return jnp.einsum('bhts,bshk->bthk', weights, value)
