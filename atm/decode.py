"""Generation through an explicit cache of keys and values."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from atm.layers import Cache
from atm.model import AlexaTM


def prefill(model: AlexaTM, params, tokens, segments, length: int) -> tuple:
  """Reads the encoder input and the decoder's start token.

  Args:
    model: the model.
    params: its parameters.
    tokens: [B, S] encoder ids.
    segments: [B, S], 1 on ids and 0 on padding.
    length: how many decoder positions the cache has room for.

  Returns:
    (logits [B, V] of the first token, the cache).
  """
  B, S = tokens.shape
  encoded = model.apply(
    {'params': params},
    tokens,
    segments,
    enable_dropout=False,
    method=AlexaTM.encode,
  )
  logits, cache = model.apply(
    {'params': params},
    jnp.full((B, 1), model.config.start_id),
    jnp.zeros((B, 1), jnp.int32),
    Cache.zeros(model.config, B, S, length),
    segments,
    encoded,
    method=AlexaTM.decode_cached,
  )
  return logits[:, 0], cache


def step(model: AlexaTM, params, token, position, cache: Cache, segments):
  """Reads one token [B] at `position` [B].

  Returns:
    (logits [B, V] of the token that follows, the cache).
  """
  logits, cache = model.apply(
    {'params': params},
    token[:, None],
    position[:, None],
    cache,
    segments,
    method=AlexaTM.decode_cached,
  )
  return logits[:, 0], cache


@functools.partial(jax.jit, static_argnames=('model', 'max_tokens'))
def greedy(model: AlexaTM, params, tokens, segments, max_tokens: int):
  """The most likely token each time, until the end token or `max_tokens`.

  Args:
    model: the model.
    params: its parameters.
    tokens: [B, S] encoder ids.
    segments: [B, S], 1 on ids and 0 on padding. A row of zeros is done before
      it begins.
    max_tokens: length of the output.

  Returns:
    (ids [B, max_tokens], padding after the end; lengths [B], the end token
    not counted).
  """
  B = tokens.shape[0]
  config = model.config
  logits, cache = prefill(model, params, tokens, segments, max_tokens)
  out = jnp.full((B, max_tokens), config.pad_id, jnp.int32)

  def unfinished(carry):
    position, _, _, _, _, done = carry
    return (position < max_tokens) & ~done.all()

  def advance(carry):
    position, logits, cache, out, length, done = carry
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    done |= token == config.end_id
    out = out.at[:, position].set(jnp.where(done, config.pad_id, token))
    length += ~done
    # The token chosen at `position` is the decoder's input one further on.
    at = jnp.full((B,), jnp.minimum(position + 1, max_tokens - 1))
    logits, cache = step(model, params, token, at, cache, segments)
    return position + 1, logits, cache, out, length, done

  start = (0, logits, cache, out, jnp.zeros(B, jnp.int32), segments.max(1) == 0)
  _, _, _, out, length, _ = jax.lax.while_loop(unfinished, advance, start)
  return out, length
