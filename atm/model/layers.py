"""Layers and their parts; each reads what it needs of a `ModelConfig`.

Letters as in transformer.py: B batch, S encoder length, T decoder length,
D d_model, H heads, K head dimension, F feed-forward.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from atm.model import attention, cache_blocks, lora, matmul, quantized, remat
from atm.model.config import ModelConfig
from atm.parallel.sharding import constrain

# Initialisers, by the logical axes of what they make.
zeros_init = functools.partial(
  nn.with_logical_partitioning, nn.initializers.zeros
)
ones_init = functools.partial(
  nn.with_logical_partitioning, nn.initializers.ones
)


def normal_init(config: ModelConfig, *axes: str):
  """Returns the initialiser N(0, init_std) of a matrix with logical axes."""
  return nn.with_logical_partitioning(
    nn.initializers.normal(config.init_std), axes
  )


class Dense(nn.Module):
  """Affine layer y = x W + b over the last axis."""

  config: ModelConfig
  inputs: int
  features: int
  axes: tuple[str, str]

  def setup(self):
    c = self.config
    shape = (self.inputs, self.features)
    initializer = normal_init(c, *self.axes)
    self.kernel = quantized.read_parameter(self, 'kernel', initializer, shape)
    # Biases over d_model are split as norms are: by the mesh's rule `vector`.
    axis = 'vector' if self.axes[1] == 'embed' else self.axes[1]
    self.bias = self.param('bias', zeros_init((axis,)), (self.features,))

  def weights(self) -> tuple[jax.Array, jax.Array]:
    """Returns (W, b) in the dtype of activations, W as it is held in int8."""
    dtype = self.config.dtype
    return quantized.cast(self.kernel, dtype), self.bias.astype(dtype)

  def __call__(self, x, axes: int = 1):
    """Maps [..., inputs] to [..., features]; inputs may be several `axes`."""
    changes = [self.compute_change(x, axes=axes)]
    return matmul.affine(x, self.weights(), axes=axes, changes=changes)[0]

  def compute_change(self, x, heads=None, axes: int = 1) -> jax.Array | None:
    """Returns what the kernel's adapter adds, see `lora.compute_change`."""
    return lora.compute_change(self, 'kernel', x, heads, axes)


class LayerNorm(nn.Module):
  """Layer norm over D, with scale and bias; see `normalize`."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x, moments=None):
    """Normalises x [..., D]; `moments`: its `norm_moments`, if known."""
    c, dtype = self.config, x.dtype
    ones, zeros = ones_init(('vector',)), zeros_init(('vector',))
    scale = self.param('scale', ones, x.shape[-1:]).astype(dtype)
    bias = self.param('bias', zeros, x.shape[-1:]).astype(dtype)
    x = normalize(x, moments or norm_moments(x, c), scale, bias, c.norm)
    return checkpoint_name(x, remat.NORM)


def norm_moments(x, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
  """Returns mean and spread of x [..., D], each [...], for the norm's input.

  spread = rsqrt(second + eps); `second` is the variance (`norm` 'standard') or
  the mean of x^2 ('uncentred', as the released AlexaTM has it).
  """
  # No gradient: `normalize` has all of it. The variance's error is
  # mean^2 / variance times the rounding of float32, or of x without
  # `norm_float32`.
  x = jax.lax.stop_gradient(x)
  y = x.astype(jnp.float32 if config.norm_float32 else x.dtype)
  # E[x^2] - E[x]^2: both sums in one pass over x; about the mean it takes two.
  mean, second = matmul.mean_rows(y), matmul.mean_rows(jnp.square(y))
  if config.norm == 'standard':
    second = jnp.maximum(second - jnp.square(mean), 0)  # rounding: below 0
  spread = jax.lax.rsqrt(second + config.norm_eps)
  mean, spread = (checkpoint_name(m, remat.MOMENTS) for m in (mean, spread))
  return mean, spread


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalize(x, moments, scale, bias, norm: str) -> jax.Array:
  """Computes (x - mean) * spread * scale + bias (Ba et al., 2016).

  x [..., D], its `norm_moments`, in whose dtype all but scale and bias [D] is
  computed; `norm` as they read it.
  """
  # The backward's four sums are one pass; it reads x, mean and spread: two
  # numbers a position, which remat keeps.
  return _normalize_forward(x, moments, scale, bias, norm)[0]


def _normalize_forward(x, moments, scale, bias, norm):
  mean, spread = moments
  y = x.astype(mean.dtype)
  y = ((y - mean[..., None]) * spread[..., None]).astype(x.dtype)
  y = y * scale + bias
  if not matmul.on_one_cpu():
    # A TPU would compute it inside each product that reads it, which slows
    # them by more than the pass over memory it spares.
    y = jax.lax.optimization_barrier(y)
  return y, (x, scale, mean, spread)


def _normalize_backward(norm, residuals, cotangent):
  x, scale, mean, spread = residuals
  if not (matmul.on_one_cpu() or matmul.fuses_sums()):
    # Else XLA makes the sums below inside the product that gives `cotangent`.
    cotangent = jax.lax.optimization_barrier(cotangent)
  wide = mean.dtype
  y, mean, spread = x.astype(wide), mean[..., None], spread[..., None]
  unit = (y - mean) * spread
  cotangent = cotangent.astype(wide)
  bias_grad = matmul.sum_columns(cotangent)
  scale_grad = matmul.sum_columns(cotangent * unit)
  cotangent *= scale.astype(wide)
  average = matmul.mean_rows(cotangent, keepdims=True)
  along = matmul.mean_rows(cotangent * unit, keepdims=True)
  # d spread / d x: of the variance it is about the mean, of E[x^2] about 0.
  spread_grad = unit if norm == 'standard' else y * spread
  x_grad = (cotangent - average - spread_grad * along) * spread
  vectors = (grad.astype(scale.dtype) for grad in (scale_grad, bias_grad))
  return x_grad.astype(x.dtype), None, *vectors


normalize.defvjp(_normalize_forward, _normalize_backward)


class Attention(nn.Module):
  """Multi-head attention with separate, biased q, k, v and out projections."""

  config: ModelConfig
  heads: int

  def setup(self):
    c = self.config
    D = c.d_model
    inward = functools.partial(Dense, c, D, D, ('embed', 'heads'))
    self.query, self.key, self.value = inward(), inward(), inward()
    self.out = Dense(c, D, D, ('heads', 'embed'))
    self.weights_dropout = nn.Dropout(c.attention_dropout)

  def project(self, x, *names: str) -> tuple[jax.Array, ...]:
    """Maps [B, T, D] to [B, T, H, K] for each of 'query', 'key', 'value'."""
    each = [getattr(self, name) for name in names]
    weights = [dense.weights() for dense in each]
    changes = [dense.compute_change(x, self.heads) for dense in each]
    heads = matmul.affine(x, *weights, heads=self.heads, changes=changes)
    return tuple(constrain(y, 'batch', 'length', 'heads', None) for y in heads)

  def __call__(self, query, keys, values, mask, deterministic):
    """Attends from queries [B, T, H, K] to [B, S, H, K]; returns [B, T, D]."""
    c, drop = self.config, None
    if c.attention_dropout and not deterministic:
      drop = functools.partial(self.weights_dropout, deterministic=False)
    y = attention.dot_product_attention(
      query, keys, values, mask, drop, c.scores_float32, c.attention
    )
    return self.out(y, axes=2)

  def cached(self, query, keys, values, mask):
    """Attends as `attention.attend_to_cache` does; returns [R, n, D]."""
    scores_float32 = self.config.scores_float32
    y = attention.attend_to_cache(query, keys, values, mask, scores_float32)
    return self.out(y, axes=2)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """Computes x Phi(x) by erf in float32 (Hendrycks and Gimpel, 2016)."""
  # The gradient, cotangent (Phi(x) + x phi(x)), reads x alone: JAX's own would
  # keep float32 arrays of the feed-forward's width.
  return _gelu_and_derivative(x)[0].astype(x.dtype)


def _gelu_and_derivative(x):
  y = x.astype(jnp.float32)
  below = 0.5 * (1 + jax.lax.erf(y * 0.5**0.5))
  density = jnp.exp(-0.5 * jnp.square(y)) * (2 * jnp.pi) ** -0.5
  return y * below, below + y * density


def _gelu_backward(x, cotangent):
  derivative = _gelu_and_derivative(x)[1]
  return ((derivative * cotangent.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def gelu_matmul(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
  """Computes gelu(x) W + b of x [..., F], W [F, D], b [D], fast on TPUs."""
  # Forward GELU belongs to the product that makes x, backward to those that
  # read it.
  # Without a barrier XLA applies GELU to this product's operand, tile by tile,
  # and on v6e takes nearly twice the product's time.
  return jnp.tensordot(jax.lax.optimization_barrier(gelu(x)), w, 1) + b


def _gelu_matmul_backward(residuals, cotangent):
  x, w = residuals
  active, derivative = _gelu_and_derivative(x)
  rows = tuple(range(x.ndim - 1))
  w_grad = jnp.tensordot(active.astype(x.dtype), cotangent, (rows, rows))
  x_grad = jnp.tensordot(
    cotangent, w, (-1, 1), preferred_element_type=jnp.float32
  )
  return (derivative * x_grad).astype(x.dtype), w_grad, cotangent.sum(rows)


gelu_matmul.defvjp(
  lambda x, w, b: (gelu_matmul(x, w, b), (x, w)), _gelu_matmul_backward
)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
  """Computes max(x, 0), the one array of its width that a backward reads."""
  return _relu_forward(x)[0]


def _relu_forward(x):
  # The product behind reads the result, which tells the derivative, too: x is
  # not kept. Policies of remat keep the result where they would keep x.
  active = checkpoint_name(jnp.maximum(x, 0), remat.UP)
  active = checkpoint_name(active, remat.ACTIVATION)
  return active, active


def _relu_backward(active, cotangent):
  if matmul.on_tpu():
    # Else XLA writes the comparison out in the forward pass and reads it back,
    # in passes of their own: 1.07 times the cycles of both products on v5e.
    active = jax.lax.optimization_barrier(active)
  return (jnp.where(active > 0, cotangent, 0),)


relu.defvjp(_relu_forward, _relu_backward)


class FeedForward(nn.Module):
  """Feed-forward block D -> F -> D with exact (erf) GELU, or ReLU."""

  config: ModelConfig
  width: int

  @nn.compact
  def __call__(self, x, deterministic):
    c = self.config
    x = Dense(c, c.d_model, self.width, ('embed', 'mlp'), name='up')(x)
    x = constrain(x, 'batch', 'length', 'mlp')
    down = Dense(c, self.width, c.d_model, ('mlp', 'embed'), name='down')
    drops = c.activation_dropout and not deterministic
    if c.activation == 'relu':
      x = relu(x)
    else:
      x = checkpoint_name(x, remat.UP)
      fuses = matmul.on_tpu() and not drops
      if fuses and isinstance(down.kernel, jax.Array):
        y = gelu_matmul(x, *down.weights())
        adapted = lora.find_adapter(down, 'kernel') is not None
        return y + down.compute_change(gelu(x)) if adapted else y
      x = checkpoint_name(gelu(x), remat.ACTIVATION)
    x = nn.Dropout(c.activation_dropout)(x, deterministic=deterministic)
    return down(x)


@flax.struct.dataclass
class KVCache:
  """Keys and values of the positions that one decoder layer has read.

  An explicit pytree, one entry a batch row. Several rows may read one encoder
  input, as samples do: R rows, B encoder inputs, R a multiple of B, and the
  rows of an input are adjacent. The T slots of a row are positions; with beam
  search, all that an input's beams have written.

  Attributes:
    self_keys, cross_keys: [R, H, K, T] and [B, H, K, S]: the product of one
      query with them reads memory in order. Without an encoder the cross keys
      and values are the prompt's own.
    self_values, cross_values: [R, H, T, K] and [B, H, S, K]. Each of the four
      may be in blocks instead, see `cache_blocks`.
  """

  self_keys: jax.Array
  self_values: jax.Array
  cross_keys: jax.Array
  cross_values: jax.Array

  def write(self, keys, values, slots) -> 'KVCache':
    """Returns the cache with [R, n, H, K] keys, values at slots [R, n] of T."""
    if isinstance(self.self_keys, tuple):
      write = cache_blocks.write_blocks
      return self.replace(
        self_keys=write(self.self_keys, keys, slots, 3),
        self_values=write(self.self_values, values, slots, 2),
      )
    row = jnp.arange(len(slots))[:, None]
    return self.replace(
      self_keys=self.self_keys.at[row, :, :, slots].set(keys),
      self_values=self.self_values.at[row, :, slots].set(values),
    )


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each behind a norm (pre-LN)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, carry, mask, deterministic):
    """Runs in a scan: carries (x [B, S, D], its moments); (carry, None)."""
    c, (x, moments) = self.config, carry
    drop = nn.Dropout(c.dropout, deterministic=deterministic)
    h = LayerNorm(c, name='attention_norm')(x, moments)
    attend = Attention(c, c.encoder_heads, name='attention')
    heads = attend.project(h, 'query', 'key', 'value')
    x = x + drop(attend(*heads, mask, deterministic))
    x = checkpoint_name(x, remat.STREAM)
    h = LayerNorm(c, name='feed_forward_norm')(x)
    feed_forward = FeedForward(c, c.encoder_ff, name='feed_forward')
    x = x + drop(feed_forward(h, deterministic))
    x = constrain(x, 'batch', 'length', 'hidden')
    # Not by the next layer: where its input is made they take no pass of their
    # own.
    return (x, norm_moments(x, c)), None


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention, feed-forward, each behind a norm."""

  config: ModelConfig

  def setup(self):
    c = self.config
    self.self_attention_norm = LayerNorm(c)
    self.self_attention = Attention(c, c.decoder_heads)
    self.cross_attention_norm = LayerNorm(c)
    self.cross_attention = Attention(c, c.decoder_heads)
    self.feed_forward_norm = LayerNorm(c)
    self.feed_forward = FeedForward(c, c.decoder_ff)
    self.dropout = nn.Dropout(c.dropout)

  def __call__(self, carry, encoded, mask, cross_mask, deterministic):
    """Runs in a scan: carries (x [B, T, D], its moments); (carry, None)."""
    x, moments = carry
    drop = functools.partial(self.dropout, deterministic=deterministic)
    attend = self.self_attention
    h = self.self_attention_norm(x, moments)
    heads = attend.project(h, 'query', 'key', 'value')
    x = x + drop(attend(*heads, mask, deterministic))
    attend = self.cross_attention
    query = attend.project(self.cross_attention_norm(x), 'query')
    heads = *query, *attend.project(encoded, 'key', 'value')
    x = x + drop(attend(*heads, cross_mask, deterministic))
    x = checkpoint_name(x, remat.STREAM)
    h = self.feed_forward_norm(x)
    x = x + drop(self.feed_forward(h, deterministic))
    x = constrain(x, 'batch', 'length', 'hidden')
    return (x, norm_moments(x, self.config)), None

  def empty_cache(self, encoded, length: int) -> KVCache:
    """Returns a cache of `length` positions that has read encoded [B, S, D]."""
    c = self.config
    keys, values = self.cross_attention.project(encoded, 'key', 'value')
    keys, values = keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)
    H = c.decoder_heads
    zeros = jnp.zeros((len(encoded), H, length, c.d_model // H), c.dtype)
    every = zeros.swapaxes(2, 3), zeros, keys, values
    return KVCache(*(constrain(x, 'batch', 'heads', None, None) for x in every))

  def cached(self, x, cache: KVCache, slots, visible, source):
    """Reads n positions of each row, and all that the cache holds of it.

    Args:
      x: [R, n, D].
      cache: this layer's.
      slots: [R, n], where in the cache x is written.
      visible: [R, n, T], slots that each of x may attend to.
      source: [B, 1, S], encoder positions that are no padding.

    Returns:
      (x [R, n, D], the cache).
    """
    attend = self.self_attention
    heads = attend.project(self.self_attention_norm(x), 'query', 'key', 'value')
    query, *written = heads
    cache = cache.write(*written, slots)
    keys = cache.self_keys, cache.self_values
    x = x + attend.cached(query, *keys, visible)
    attend = self.cross_attention
    (query,) = attend.project(self.cross_attention_norm(x), 'query')
    keys = cache.cross_keys, cache.cross_values
    x = x + attend.cached(query, *keys, source)
    x = x + self.feed_forward(self.feed_forward_norm(x), True)
    return constrain(x, 'batch', 'length', 'hidden'), cache


def scan_layers(layer_class, config: ModelConfig, length: int, inputs: int):
  """Returns a stack of `length` layers as one scan over parameters `layers`.

  A layer is called with a carry and `inputs` more arguments, which all layers
  share; the last is `deterministic`.
  """
  unroll = min(config.unroll, length)
  if config.remat != 'none':
    layer_class = nn.remat(
      layer_class,
      prevent_cse=unroll > 1,  # a loop keeps the two passes apart by itself
      static_argnums=(inputs + 1,),  # deterministic is a Python bool
      policy=remat.REMAT[config.remat],
    )
  return nn.scan(
    layer_class,
    variable_axes={'params': 0, lora.COLLECTION: 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=(nn.broadcast,) * inputs,
    length=length,
    unroll=unroll,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )(config, name='layers')
