"""Models of one stack: decoder-only, and prefix LMs.

A row's inputs, the prompt, and behind them the decoder's are one sequence. In
packed rows the prompt of a segment is wholly in front of its targets, too: to
attend causally and within a segment is exact.

Letters as in transformer.py: B batch, S prompt length, T decoder length.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from atm.model import attention, remat
from atm.model.attention import AttentionMask
from atm.model.config import ModelConfig
from atm.model.layers import (
  Attention,
  FeedForward,
  KVCache,
  LayerNorm,
  norm_moments,
)
from atm.parallel.sharding import constrain


def join_masks(config: ModelConfig, source, target=None) -> AttentionMask:
  """Returns the mask of prompts and targets by their segments.

  Args:
    config: of the model.
    source: [B, S], 0 on padding.
    target: [B, T]; None: the prompt alone.
  """
  both = source if target is None else jnp.concatenate([source, target], 1)
  prefix = source.shape[1] if config.architecture == 'prefix_lm' else 0
  return AttentionMask(both, both, causal=True, prefix=prefix)


def shift_positions(positions, source, segments=None) -> jax.Array:
  """Returns positions behind the prompt, [R, n] of decoder positions [R, n].

  Args:
    positions: from 0 in each segment.
    source: [B, S] segment ids of the prompts, 0 on padding; R a multiple of B.
    segments: [R, n] segment ids of the positions, with R = B; None: the prompt
      is all of its row.
  """
  if segments is None:
    lengths = (source > 0).sum(1, keepdims=True)
    return positions + jnp.repeat(lengths, len(positions) // len(source), 0)
  same = segments[:, :, None] == source[:, None]
  return positions + jnp.where(segments > 0, same.sum(-1), 0)


class OneStackLayer(nn.Module):
  """Self-attention and feed-forward, each behind a norm (pre-LN)."""

  config: ModelConfig

  def setup(self):
    c = self.config
    self.self_attention_norm = LayerNorm(c)
    self.self_attention = Attention(c, c.decoder_heads)
    self.feed_forward_norm = LayerNorm(c)
    self.feed_forward = FeedForward(c, c.decoder_ff)
    self.dropout = nn.Dropout(c.dropout)

  def __call__(self, carry, mask, deterministic):
    """Runs in a scan: carries (x [B, N, D], its moments); (carry, None)."""
    return self._read(carry, mask, deterministic)[0], None

  def _read(self, carry, mask, deterministic):
    """Returns the carry, and keys and values [B, N, H, K]."""
    x, moments = carry
    drop = functools.partial(self.dropout, deterministic=deterministic)
    attend = self.self_attention
    h = self.self_attention_norm(x, moments)
    query, *held = attend.project(h, 'query', 'key', 'value')
    x = x + drop(attend(query, *held, mask, deterministic))
    x = checkpoint_name(x, remat.STREAM)
    x = x + drop(self.feed_forward(self.feed_forward_norm(x), deterministic))
    x = constrain(x, 'batch', 'length', 'hidden')
    return (x, norm_moments(x, self.config)), held

  def read_prompt(self, carry, mask, length: int):
    """Returns the carry behind prompts [B, S, D], and a `KVCache`.

    Its cross keys and values are the prompt's; it has `length` positions more.
    """
    carry, (keys, values) = self._read(carry, mask, True)
    keys, values = keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)
    B, H, K, _ = keys.shape
    zeros = jnp.zeros((B, H, length, K), self.config.dtype)
    every = zeros.swapaxes(2, 3), zeros, keys, values
    every = (constrain(x, 'batch', 'heads', None, None) for x in every)
    return carry, KVCache(*every)

  def cached(self, x, cache: KVCache, slots, visible, source):
    """Reads n positions of each row, see `layers.DecoderLayer.cached`."""
    attend = self.self_attention
    heads = attend.project(self.self_attention_norm(x), 'query', 'key', 'value')
    query, *written = heads
    cache = cache.write(*written, slots)
    y = attention.attend_to_prompt_and_cache(
      query,
      (cache.cross_keys, cache.cross_values, source),
      (cache.self_keys, cache.self_values, visible),
      self.config.scores_float32,
    )
    x = x + attend.out(y, axes=2)
    x = x + self.feed_forward(self.feed_forward_norm(x), True)
    return constrain(x, 'batch', 'length', 'hidden'), cache
