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

from atm.model import attention, matmul, remat
from atm.parallel.sharding import constrain

Config = Any  # a model.Config; model.py stands below this file


def normal_init(config: Config, *axes: str):
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
    self.kernel = self.param('kernel', normal_init(c, *self.axes), shape)
    axis = 'vector' if self.axes[1] == 'embed' else self.axes[1]
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axis,))
    self.bias = self.param('bias', zeros, (self.features,))

  def weights(self) -> tuple[jax.Array, jax.Array]:
    """(W, b) in the dtype of activations."""
    dtype = self.config.dtype
    return self.kernel.astype(dtype), self.bias.astype(dtype)

  def __call__(self, x, axes: int = 1):
    """[..., inputs] -> [..., features]; inputs may be several `axes` of x."""
    return matmul.affine(x, self.weights(), axes=axes)[0]


class LayerNorm(nn.Module):
  """Layer norm over D, with scale and bias.

  See `normalize`; `norm` 'uncentred' is as the released AlexaTM has it. With
  `norm_float32` all but scale and bias is computed in float32, and cast back
  before them.
  """

  config: Config

  @nn.compact
  def __call__(self, x, known=None):
    """Normalizes x [..., D]; `known`: its `norm_moments` if computed before."""
    c, dtype = self.config, x.dtype
    ones = nn.with_logical_partitioning(nn.initializers.ones, ('vector',))
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('vector',))
    scale = self.param('scale', ones, x.shape[-1:]).astype(dtype)
    bias = self.param('bias', zeros, x.shape[-1:]).astype(dtype)
    x = normalize(x, known or norm_moments(x, c), scale, bias, c.norm)
    return checkpoint_name(x, remat.NORM)


def norm_moments(x, config) -> tuple[jax.Array, jax.Array]:
  """Mean and spread of x [..., D], each [...], for the norm that reads x.

  spread = rsqrt(second + eps); `second` is the variance (`norm` 'standard') or
  the mean of x^2 ('uncentred'). Both come of the sums of x and x^2, one pass
  over x; the variance is the mean of x^2 less mean^2, with mean^2 / variance
  times the rounding of float32, or of x without `norm_float32`. They have no
  gradient: `normalize` has all of it.
  """
  x = jax.lax.stop_gradient(x)
  y = x.astype(jnp.float32 if config.norm_float32 else x.dtype)
  mean, second = y.mean(-1), jnp.square(y).mean(-1)
  if config.norm == 'standard':
    second = jnp.maximum(second - jnp.square(mean), 0)
  spread = jax.lax.rsqrt(second + config.norm_eps)
  return checkpoint_name(mean, remat.MOMENTS), checkpoint_name(
    spread, remat.MOMENTS
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalize(x, known, scale, bias, norm: str) -> jax.Array:
  """(x - mean) * spread * scale + bias.

  The backward's four sums are one pass; it reads x, mean and spread: two
  numbers a position, which remat keeps.

  Args:
    x: [..., D].
    known: x's `norm_moments`; their dtype is that of all but scale and bias.
    scale, bias: [D].
    norm: what `norm_moments` had.
  """
  return _normalize_forward(x, known, scale, bias, norm)[0]


def _normalize_forward(x, known, scale, bias, norm):
  mean, spread = known
  y = x.astype(mean.dtype)
  y = ((y - mean[..., None]) * spread[..., None]).astype(x.dtype)
  y = y * scale + bias
  if not matmul.on_cpu():
    # A TPU would compute it inside each product that reads it, which slows
    # them by more than the pass over memory it spares.
    y = jax.lax.optimization_barrier(y)
  return y, (x, scale, mean, spread)


def _normalize_backward(norm, kept, slope):
  x, scale, mean, spread = kept
  if not (matmul.on_cpu() or matmul.fuses_sums()):
    slope = jax.lax.optimization_barrier(slope)
  wide = mean.dtype
  y, mean, spread = x.astype(wide), mean[..., None], spread[..., None]
  unit = (y - mean) * spread
  slope, rows = slope.astype(wide), tuple(range(x.ndim - 1))
  bias_slope, scale_slope = slope.sum(rows), (slope * unit).sum(rows)
  slope *= scale.astype(wide)
  average = slope.mean(-1, keepdims=True)
  along = (slope * unit).mean(-1, keepdims=True)
  of_spread = unit if norm == 'standard' else y * spread
  x_slope = (slope - average - of_spread * along) * spread
  vectors = (s.astype(scale.dtype) for s in (scale_slope, bias_slope))
  return x_slope.astype(x.dtype), None, *vectors


normalize.defvjp(_normalize_forward, _normalize_backward)


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
    heads = matmul.affine(x, *weights, heads=self.heads)
    return tuple(constrain(y, 'batch', 'length', 'heads', None) for y in heads)

  def __call__(self, query, keys, values, sight, deterministic):
    """Attends from queries [B, T, H, K] to [B, S, H, K]; returns [B, T, D]."""
    c, drop = self.config, None
    if c.attention_dropout and not deterministic:
      drop = functools.partial(self.weights_dropout, deterministic=False)
    y = attention.dot_product_attention(
      query, keys, values, sight, drop, c.scores_float32, c.attention
    )
    return self.out(y, axes=2)

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
    y = attention.attend_to_cache(query, keys, values, mask, scores_float32)
    return self.out(y, axes=2)


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


@jax.custom_vjp
def gelu_matmul(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
  """gelu(x) W + b as TPUs are fast in it: x [..., F], W [F, D], b [D].

  Forward GELU belongs to the product that makes x, backward to those that read
  it. Left alone, XLA applies it forward to this product's operand, tile by
  tile, and on v6e takes nearly twice the product's time.
  """
  return jnp.tensordot(jax.lax.optimization_barrier(gelu(x)), w, 1) + b


def _gelu_product_backward(kept, slope):
  x, w = kept
  active, rise = _gelu_parts(x)
  rows = tuple(range(x.ndim - 1))
  w_slope = jnp.tensordot(active.astype(x.dtype), slope, (rows, rows))
  x_slope = jnp.tensordot(slope, w, (-1, 1), preferred_element_type=jnp.float32)
  return (rise * x_slope).astype(x.dtype), w_slope, slope.sum(rows)


gelu_matmul.defvjp(
  lambda x, w, b: (gelu_matmul(x, w, b), (x, w)), _gelu_product_backward
)


class FeedForward(nn.Module):
  """D -> F -> D with exact (erf) GELU."""

  config: Config
  width: int

  @nn.compact
  def __call__(self, x, deterministic):
    c = self.config
    x = Dense(c, c.d_model, self.width, ('embed', 'mlp'), name='up')(x)
    x = checkpoint_name(constrain(x, 'batch', 'length', 'mlp'), remat.UP)
    down = Dense(c, self.width, c.d_model, ('mlp', 'embed'), name='down')
    drops = c.activation_dropout and not deterministic
    if matmul.on_tpu() and not drops:
      return gelu_matmul(x, *down.weights())
    x = checkpoint_name(gelu(x), remat.ACTIVATION)
    x = nn.Dropout(c.activation_dropout)(x, deterministic=deterministic)
    return down(x)


CACHE_AXES = (3, 1), (1, 3)  # of keys and values in a cache, behind their heads


@flax.struct.dataclass
class KVCache:
  """What one decoder layer keeps of the positions it has read.

  An explicit pytree of which the row is the unit. Several rows may read one
  encoder input, as samples do: R rows, B encoder inputs, R a multiple of B, and
  the rows of an input stand together. The T slots of a row are positions; or,
  of beams, what all of an input's have written.

  Attributes:
    self_keys, cross_keys: [R, H, K, T] and [B, H, K, S]: one query's product
      with them reads rows.
    self_values, cross_values: [R, H, T, K] and [B, H, S, K].
  """

  self_keys: jax.Array
  self_values: jax.Array
  cross_keys: jax.Array
  cross_values: jax.Array

  def written(self, keys, values, slots) -> KVCache:
    """With [R, n, H, K] keys and values at slots [R, n] of T."""
    row = jnp.arange(len(slots))[:, None]
    return self.replace(
      self_keys=self.self_keys.at[row, :, :, slots].set(keys),
      self_values=self.self_values.at[row, :, slots].set(values),
    )


class EncoderLayer(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, carry, sight, deterministic):
    """For a scan: carries (x [B, S, D], its moments); returns (carry, None)."""
    c, (x, known) = self.config, carry
    drop = nn.Dropout(c.dropout, deterministic=deterministic)
    h = LayerNorm(c, name='attention_norm')(x, known)
    attend = Attention(c, c.encoder_heads, name='attention')
    heads = attend.project(h, 'query', 'key', 'value')
    x = x + drop(attend(*heads, sight, deterministic))
    x = checkpoint_name(x, remat.STREAM)
    h = LayerNorm(c, name='feed_forward_norm')(x)
    feed_forward = FeedForward(c, c.encoder_ff, name='feed_forward')
    x = x + drop(feed_forward(h, deterministic))
    x = constrain(x, 'batch', 'length', 'hidden')
    return (x, norm_moments(x, c)), None


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

  def __call__(self, carry, encoded, sight, sight_encoded, deterministic):
    """For a scan: carries (x [B, T, D], its moments); returns (carry, None)."""
    x, known = carry
    drop = functools.partial(self.dropout, deterministic=deterministic)
    attend = self.self_attention
    h = self.self_attention_norm(x, known)
    heads = attend.project(h, 'query', 'key', 'value')
    x = x + drop(attend(*heads, sight, deterministic))
    attend = self.cross_attention
    query = attend.project(self.cross_attention_norm(x), 'query')
    heads = *query, *attend.project(encoded, 'key', 'value')
    x = x + drop(attend(*heads, sight_encoded, deterministic))
    x = checkpoint_name(x, remat.STREAM)
    h = self.feed_forward_norm(x)
    x = x + drop(self.feed_forward(h, deterministic))
    x = constrain(x, 'batch', 'length', 'hidden')
    return (x, norm_moments(x, self.config)), None

  def empty(self, encoded, length: int) -> KVCache:
    """A cache of `length` positions for each row of encoded [B, S, D]."""
    c = self.config
    heads = self.cross_attention.project(encoded, 'key', 'value')
    keys, values = (
      x.transpose(0, 2, *last) for x, last in zip(heads, CACHE_AXES)
    )
    shape = (
      len(encoded),
      c.decoder_heads,
      length,
      c.d_model // c.decoder_heads,
    )
    zeros = jnp.zeros(shape, c.dtype)
    every = zeros.swapaxes(2, 3), zeros, keys, values
    return KVCache(*(constrain(x, 'batch', 'heads', None, None) for x in every))

  def cached(self, x, cache: KVCache, slots, seen, source):
    """Reads n positions of each row, and all that the cache holds of it.

    Args:
      x: [R, n, D].
      cache: this layer's.
      slots: [R, n], where in the cache x is written.
      seen: [R, n, T], slots that each of x may look at.
      source: [B, 1, S], encoder positions that are no padding.

    Returns:
      (x [R, n, D], the cache).
    """
    attend = self.self_attention
    heads = attend.project(self.self_attention_norm(x), 'query', 'key', 'value')
    query, *written = heads
    cache = cache.written(*written, slots)
    keys = cache.self_keys, cache.self_values
    x = x + attend.cached(query, *keys, seen)
    attend = self.cross_attention
    (query,) = attend.project(self.cross_attention_norm(x), 'query')
    keys = cache.cross_keys, cache.cross_values
    x = x + attend.cached(query, *keys, source)
    x = x + self.feed_forward(self.feed_forward_norm(x), True)
    return constrain(x, 'batch', 'length', 'hidden'), cache


def scan_layers(layer_class, config: Config, length: int, inputs: tuple):
  """A stack of layers as one scan over stacked parameters named `layers`."""
  unroll = min(config.unroll, length)
  if config.remat != 'none':
    # deterministic, the last argument, is a Python bool.
    layer_class = nn.remat(
      layer_class,
      prevent_cse=unroll > 1,  # a loop keeps the two passes apart by itself
      static_argnums=(len(inputs) + 1,),
      policy=remat.REMAT[config.remat],
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
