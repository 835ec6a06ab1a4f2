"""Layers and their parts; each reads what it needs of a model.Config.

Letters as in model.py: B batch, S encoder length, T decoder length, D d_model,
H heads, K head dimension, F feed-forward.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from atm import attention, products
from atm.sharding import constrain

Config = Any  # a model.Config; model.py stands below this file

# What each layer keeps for its backward pass; the rest it computes again.
saved = jax.checkpoint_policies.save_only_these_names
REMAT = {
  'none': None,  # all that JAX's derivatives read
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': saved(products.SAVED, attention.SAVED),
  'save_attention': saved(attention.SAVED),
}


def normal(config: Config, *axes: str):
  """Initialiser N(0, init_std), with its logical axes."""
  return nn.with_logical_partitioning(
    nn.initializers.normal(config.init_std), axes
  )


class Dense(nn.Module):
  """y = x W + b over the last axis."""

  config: Config
  inputs: int
  features: int
  axes: tuple[str, str]

  def setup(self):
    c = self.config
    shape = (self.inputs, self.features)
    self.kernel = self.param('kernel', normal(c, *self.axes), shape)
    axis = 'vector' if self.axes[1] == 'embed' else self.axes[1]
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axis,))
    self.bias = self.param('bias', zeros, (self.features,))

  def weights(self) -> tuple[jax.Array, jax.Array]:
    """(W, b) in the dtype of activations."""
    dtype = self.config.dtype
    return self.kernel.astype(dtype), self.bias.astype(dtype)

  def __call__(self, x):
    return products.affine(x, self.weights())[0]


class LayerNorm(nn.Module):
  """Layer norm over D, with scale and bias.

  (x - mean) * rsqrt(second + eps) * scale + bias, where `second` is the
  variance (`norm` 'standard'), or the mean of x^2 ('uncentred', as the released
  AlexaTM has it). With `norm_float32` all but scale and bias is computed in
  float32, and cast back before them.
  """

  config: Config

  @nn.compact
  def __call__(self, x):
    c, dtype = self.config, x.dtype
    ones = nn.with_logical_partitioning(nn.initializers.ones, ('vector',))
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('vector',))
    scale = self.param('scale', ones, x.shape[-1:]).astype(dtype)
    bias = self.param('bias', zeros, x.shape[-1:]).astype(dtype)
    x = x.astype(jnp.float32) if c.norm_float32 else x
    centred = x - x.mean(-1, keepdims=True)
    spread = centred if c.norm == 'standard' else x
    second = jnp.square(spread).mean(-1, keepdims=True)
    x = centred * jax.lax.rsqrt(second + c.norm_eps)
    return x.astype(dtype) * scale + bias


class Attention(nn.Module):
  """Multi-head attention with separate, biased q, k, v and out projections."""

  config: Config
  heads: int

  def setup(self):
    c = self.config
    D = c.d_model
    inward = functools.partial(Dense, c, D, D, ('embed', 'heads'))
    self.query, self.key, self.value = inward(), inward(), inward()
    self.out = Dense(c, D, D, ('heads', 'embed'))
    self.weights_dropout = nn.Dropout(c.attention_dropout)

  def project(self, x, *names: str) -> tuple[jax.Array, ...]:
    """[B, T, D] -> [B, T, H, K] for each of 'query', 'key' and 'value'."""
    weights = [getattr(self, name).weights() for name in names]
    return tuple(map(self._split, products.affine(x, *weights)))

  def _split(self, x):
    x = constrain(x, 'batch', 'length', 'heads')
    return x.reshape(*x.shape[:-1], self.heads, -1)

  def __call__(self, query, keys, values, sight, deterministic):
    """Attends from queries [B, T, H, K] to [B, S, H, K]; returns [B, T, D]."""
    c, drop = self.config, None
    if c.attention_dropout and not deterministic:
      drop = functools.partial(self.weights_dropout, deterministic=False)
    y = attention.attention(
      query, keys, values, sight, drop, c.scores_float32, c.attention
    )
    return self.out(y.reshape(*y.shape[:-2], -1))


class FeedForward(nn.Module):
  """D -> F -> D with exact (erf) GELU."""

  config: Config
  width: int

  @nn.compact
  def __call__(self, x, deterministic):
    c = self.config
    x = Dense(c, c.d_model, self.width, ('embed', 'mlp'), name='up')(x)
    x = constrain(jax.nn.gelu(x, approximate=False), 'batch', 'length', 'mlp')
    x = nn.Dropout(c.activation_dropout)(x, deterministic=deterministic)
    return Dense(c, self.width, c.d_model, ('mlp', 'embed'), name='down')(x)


@flax.struct.dataclass
class Cache:
  """What a decoder keeps of the positions it has read.

  An explicit pytree; the batch row is its unit.

  Attributes:
    self_keys, self_values: [L, B, T, H, K].
    cross_keys, cross_values: [L, B, S, H, K].
  """

  self_keys: jax.Array
  self_values: jax.Array
  cross_keys: jax.Array
  cross_values: jax.Array

  @classmethod
  def zeros(cls, config: Config, batch: int, source: int, target: int):
    """An empty cache for B = batch, S = source, T = target."""
    H = config.decoder_heads
    shape = lambda n: (
      config.decoder_layers, batch, n, H, config.d_model // H
    )  # fmt: skip
    zeros = lambda n: jnp.zeros(shape(n), config.dtype)
    return cls(zeros(target), zeros(target), zeros(source), zeros(source))

  def write(self, kind: str, layer, keys, values, positions=None) -> Cache:
    """Puts [B, n, H, K] keys and values of one layer at [B, n] positions."""
    name_k, name_v = f'{kind}_keys', f'{kind}_values'
    at = (layer,) if positions is None else (
      layer, jnp.arange(len(positions))[:, None], positions
    )  # fmt: skip
    return self.replace(
      **{
        name_k: getattr(self, name_k).at[at].set(keys),
        name_v: getattr(self, name_v).at[at].set(values),
      }
    )

  def read(self, kind: str, layer) -> tuple[jax.Array, jax.Array]:
    return (
      getattr(self, f'{kind}_keys')[layer],
      getattr(self, f'{kind}_values')[layer],
    )


class EncoderLayer(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x, sight, deterministic):
    c = self.config
    drop = nn.Dropout(c.dropout, deterministic=deterministic)
    h = LayerNorm(c, name='attention_norm')(x)
    attend = Attention(c, c.encoder_heads, name='attention')
    heads = attend.project(h, 'query', 'key', 'value')
    x = x + drop(attend(*heads, sight, deterministic))
    h = LayerNorm(c, name='feed_forward_norm')(x)
    feed_forward = FeedForward(c, c.encoder_ff, name='feed_forward')
    x = x + drop(feed_forward(h, deterministic))
    return constrain(x, 'batch', 'length', 'hidden'), None


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention, feed-forward.

  Without a cache it reads a whole sequence. With one it writes the keys and
  values of its inputs into it and looks at all that the cache holds; where
  `encoded` is None the cross-attention's come from the cache too.
  """

  config: Config

  @nn.compact
  def __call__(
    self, carry, layer, encoded, positions, sight, sight_encoded, deterministic
  ):
    x, cache = carry
    c = self.config
    drop = nn.Dropout(c.dropout, deterministic=deterministic)
    h = LayerNorm(c, name='self_attention_norm')(x)
    attend = Attention(c, c.decoder_heads, name='self_attention')
    query, keys, values = attend.project(h, 'query', 'key', 'value')
    if cache is not None:
      cache = cache.write('self', layer, keys, values, positions)
      keys, values = cache.read('self', layer)
    x = x + drop(attend(query, keys, values, sight, deterministic))

    h = LayerNorm(c, name='cross_attention_norm')(x)
    attend = Attention(c, c.decoder_heads, name='cross_attention')
    if encoded is not None:
      keys, values = attend.project(encoded, 'key', 'value')
      if cache is not None:
        cache = cache.write('cross', layer, keys, values)
    else:
      keys, values = cache.read('cross', layer)
    (query,) = attend.project(h, 'query')
    x = x + drop(attend(query, keys, values, sight_encoded, deterministic))

    h = LayerNorm(c, name='feed_forward_norm')(x)
    feed_forward = FeedForward(c, c.decoder_ff, name='feed_forward')
    x = x + drop(feed_forward(h, deterministic))
    return (constrain(x, 'batch', 'length', 'hidden'), cache), None


def stack(layer_class, config: Config, length: int, inputs: tuple):
  """A stack of layers as one scan over stacked parameters named `layers`."""
  if config.remat != 'none':
    # deterministic, the last argument, is a Python bool.
    layer_class = nn.remat(
      layer_class,
      prevent_cse=False,
      static_argnums=(len(inputs) + 1,),
      policy=REMAT[config.remat],
    )
  return nn.scan(
    layer_class,
    variable_axes={'params': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=inputs,
    length=length,
    unroll=min(config.unroll, length),
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )(config, name='layers')
