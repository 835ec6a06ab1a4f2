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
from jax.ad_checkpoint import checkpoint_name

from atm import attention, products
from atm.sharding import constrain

Config = Any  # a model.Config; model.py stands below this file

# What each layer keeps for its backward pass; the rest it computes again.
_saved = jax.checkpoint_policies.save_only_these_names
# Names of results; STREAM is what the feed-forward's norm reads.
NORM, ACTIVATION, UP, STREAM = 'norm', 'activation', 'up', 'stream'
REMAT = {
  'none': None,  # all that JAX's derivatives read
  'full': jax.checkpoint_policies.nothing_saveable,
  'outputs': _saved(products.SAVED, attention.SAVED, NORM, ACTIVATION),
  'dots': _saved(products.SAVED, attention.SAVED),
  'save_widened': _saved(attention.SAVED, UP, STREAM),
  'save_attended': _saved(attention.SAVED, STREAM),
  'offload_widened': jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[attention.SAVED, UP],
    offload_src='device',
    offload_dst='pinned_host',
  ),
  'save_attention': _saved(attention.SAVED, attention.HEADS),
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
    x = x.astype(dtype) * scale + bias
    if not products.on_cpu():
      # A TPU would compute the norm's gradient inside the product behind it,
      # which slows the product by more than the pass over memory it spares.
      x = jax.lax.optimization_barrier(x)
    return checkpoint_name(x, NORM)


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
    heads = products.affine(x, *weights, heads=self.heads)
    return tuple(constrain(y, 'batch', 'length', 'heads', None) for y in heads)

  def __call__(self, query, keys, values, sight, deterministic):
    """Attends from queries [B, T, H, K] to [B, S, H, K]; returns [B, T, D]."""
    c, drop = self.config, None
    if c.attention_dropout and not deterministic:
      drop = functools.partial(self.weights_dropout, deterministic=False)
    y = attention.attention(
      query, keys, values, sight, drop, c.scores_float32, c.attention
    )
    return self.out(y.reshape(*y.shape[:-2], -1))

  def cached(self, query, keys, values, mask):
    """As __call__, over the keys and values of a cache.

    Args:
      query: [R, n, H, K].
      keys, values: [B, H, K, S], [B, H, S, K]; R a multiple of B.
      mask: [B, n or 1, S] bool.

    Returns:
      [R, n, D].
    """
    scores_float32 = self.config.scores_float32
    y = attention.over_cache(query, keys, values, mask, scores_float32)
    return self.out(y.reshape(*y.shape[:-2], -1))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x), exact, by erf (Hendrycks and Gimpel, 2016); computed in float32.

  Its gradient, slope (Phi(x) + x phi(x)), reads x alone: JAX's own would keep
  float32 arrays of the feed-forward's width.
  """
  return _gelu_parts(x)[0].astype(x.dtype)


def _gelu_parts(x):
  """x Phi(x), and what it rises by."""
  y = x.astype(jnp.float32)
  below = 0.5 * (1 + jax.lax.erf(y * 0.5**0.5))
  density = jnp.exp(-0.5 * jnp.square(y)) * (2 * jnp.pi) ** -0.5
  return y * below, below + y * density


def _gelu_backward(x, slope):
  rise = _gelu_parts(x)[1]
  return ((rise * slope.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class FeedForward(nn.Module):
  """D -> F -> D with exact (erf) GELU."""

  config: Config
  width: int

  @nn.compact
  def __call__(self, x, deterministic):
    c = self.config
    x = Dense(c, c.d_model, self.width, ('embed', 'mlp'), name='up')(x)
    x = checkpoint_name(x, UP)
    x = checkpoint_name(gelu(x), ACTIVATION)
    x = constrain(x, 'batch', 'length', 'mlp')
    x = nn.Dropout(c.activation_dropout)(x, deterministic=deterministic)
    return Dense(c, self.width, c.d_model, ('mlp', 'embed'), name='down')(x)


AXES = (3, 1), (1, 3)  # of keys and values in a cache, behind their heads


@flax.struct.dataclass
class Cache:
  """What one decoder layer keeps of the positions it has read.

  An explicit pytree of which the row is the unit. Several rows may read one
  encoder input, as beams do: R rows, B encoder inputs, R a multiple of B, and
  the rows of an input stand together.

  Attributes:
    self_keys, cross_keys: [R, H, K, T] and [B, H, K, S]: one query's product
      with them reads rows.
    self_values, cross_values: [R, H, T, K] and [B, H, S, K].
  """

  self_keys: jax.Array
  self_values: jax.Array
  cross_keys: jax.Array
  cross_values: jax.Array

  def written(self, keys, values, positions) -> Cache:
    """With [R, n, H, K] keys and values at positions [R, n]."""
    row = jnp.arange(len(positions))[:, None]
    return self.replace(
      self_keys=self.self_keys.at[row, :, :, positions].set(keys),
      self_values=self.self_values.at[row, :, positions].set(values),
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
    x = checkpoint_name(x, STREAM)
    h = LayerNorm(c, name='feed_forward_norm')(x)
    feed_forward = FeedForward(c, c.encoder_ff, name='feed_forward')
    x = x + drop(feed_forward(h, deterministic))
    return constrain(x, 'batch', 'length', 'hidden'), None


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention, feed-forward."""

  config: Config

  def setup(self):
    c = self.config
    self.self_attention_norm = LayerNorm(c)
    self.self_attention = Attention(c, c.decoder_heads)
    self.cross_attention_norm = LayerNorm(c)
    self.cross_attention = Attention(c, c.decoder_heads)
    self.feed_forward_norm = LayerNorm(c)
    self.feed_forward = FeedForward(c, c.decoder_ff)
    self.dropout = nn.Dropout(c.dropout)

  def __call__(self, x, encoded, sight, sight_encoded, deterministic):
    """Reads a whole sequence [B, T, D]; for a scan: returns (x, None)."""
    drop = functools.partial(self.dropout, deterministic=deterministic)
    attend = self.self_attention
    heads = attend.project(self.self_attention_norm(x), 'query', 'key', 'value')
    x = x + drop(attend(*heads, sight, deterministic))
    attend = self.cross_attention
    query = attend.project(self.cross_attention_norm(x), 'query')
    heads = *query, *attend.project(encoded, 'key', 'value')
    x = x + drop(attend(*heads, sight_encoded, deterministic))
    x = checkpoint_name(x, STREAM)
    h = self.feed_forward_norm(x)
    x = x + drop(self.feed_forward(h, deterministic))
    return constrain(x, 'batch', 'length', 'hidden'), None

  def empty(self, encoded, length: int) -> Cache:
    """A cache of `length` positions for each row of encoded [B, S, D]."""
    c = self.config
    heads = self.cross_attention.project(encoded, 'key', 'value')
    keys, values = (x.transpose(0, 2, *last) for x, last in zip(heads, AXES))
    shape = (
      len(encoded),
      c.decoder_heads,
      length,
      c.d_model // c.decoder_heads,
    )
    zeros = jnp.zeros(shape, c.dtype)
    every = zeros.swapaxes(2, 3), zeros, keys, values
    return Cache(*(constrain(x, 'batch', 'heads', None, None) for x in every))

  def cached(self, x, cache: Cache, positions, seen, source):
    """Reads n positions of each row, and all that the cache holds of it.

    Args:
      x: [R, n, D].
      cache: this layer's.
      positions: [R, n], where x is written.
      seen: [R, n, T], cached positions that each of x may look at.
      source: [B, 1, S], encoder positions that are no padding.

    Returns:
      (x [R, n, D], the cache).
    """
    attend = self.self_attention
    heads = attend.project(self.self_attention_norm(x), 'query', 'key', 'value')
    query, *written = heads
    cache = cache.written(*written, positions)
    keys = cache.self_keys, cache.self_values
    x = x + attend.cached(query, *keys, seen)
    attend = self.cross_attention
    (query,) = attend.project(self.cross_attention_norm(x), 'query')
    keys = cache.cross_keys, cache.cross_values
    x = x + attend.cached(query, *keys, source)
    x = x + self.feed_forward(self.feed_forward_norm(x), True)
    return constrain(x, 'batch', 'length', 'hidden'), cache


def stack(layer_class, config: Config, length: int, inputs: tuple):
  """A stack of layers as one scan over stacked parameters named `layers`."""
  unroll = min(config.unroll, length)
  if config.remat != 'none':
    # deterministic, the last argument, is a Python bool.
    layer_class = nn.remat(
      layer_class,
      prevent_cse=unroll > 1,  # a loop keeps the two passes apart by itself
      static_argnums=(len(inputs) + 1,),
      policy=REMAT[config.remat],
    )
  return nn.scan(
    layer_class,
    variable_axes={'params': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=inputs,
    length=length,
    unroll=unroll,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )(config, name='layers')
