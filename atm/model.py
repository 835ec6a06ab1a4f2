"""The AlexaTM encoder-decoder (paper section 2.2) in Flax linen.

Pre-LN Transformer: layer norm at the head of each sub-layer and at the end of
each stack, learned absolute positions, biases everywhere, exact GELU, three
V x D matrices (encoder embedding, decoder embedding, LM head) that start equal
and are not tied.

Letters: B batch, S encoder length, T decoder length, D d_model, H heads,
K head dimension, F feed-forward, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from atm.attention import attention, mask
from atm.sharding import constrain, did_you_mean

REMAT = ('none', 'full')
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and numerics of a model; checks itself.

  The paper gives the 20B's sizes. It is silent on dropout, the standard
  deviation of the initialisation and the norm's epsilon; the defaults here are
  none, 0.02 and 1e-5.

  Attributes:
    vocab_size: V, at least the vocabulary's size.
    d_model: D.
    encoder_layers, decoder_layers: L of each stack.
    encoder_heads, decoder_heads: H of each stack; divide d_model.
    encoder_ff, decoder_ff: F of each stack.
    positions: longest sequence of either stack.
    dropout: on embeddings and on the output of every sub-layer.
    attention_dropout: on attention weights.
    activation_dropout: behind the activation of the feed-forward.
    norm_eps: epsilon of layer norm.
    init_std: of all matrices; biases start at 0, norms at 1.
    dtype: of activations. Parameters are float32.
    remat: 'none', or 'full' to recompute each layer in the backward pass.
    unroll: how many layers the compiled loop over layers does at a time.
    pad_id, start_id, end_id: padding, the decoder's first input, and the end
      of a sequence.

  Raises:
    ValueError: sizes that are not positive or do not divide, unknown names.
  """

  vocab_size: int = 153600
  d_model: int = 4096
  encoder_layers: int = 46
  decoder_layers: int = 32
  encoder_heads: int = 32
  decoder_heads: int = 32
  encoder_ff: int = 16384
  decoder_ff: int = 16384
  positions: int = 1024
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation_dropout: float = 0.0
  norm_eps: float = 1e-5
  init_std: float = 0.02
  dtype: str = 'bfloat16'
  remat: str = 'none'
  unroll: int = 1
  pad_id: int = 0
  start_id: int = 1
  end_id: int = 2

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      at_least = 0 if field.name.endswith('_id') else 1
      if field.type == 'int' and (
        not isinstance(value, int) or value < at_least
      ):
        raise ValueError(
          f'Config.{field.name} = {value!r}: expected a whole number, at '
          f'least {at_least}'
        )
      if field.name.endswith('dropout') and not 0 <= value < 1:
        raise ValueError(f'Config.{field.name} = {value!r}: expected [0, 1)')
    for name in ('encoder_heads', 'decoder_heads'):
      if self.d_model % getattr(self, name):
        raise ValueError(
          f'Config.{name} = {getattr(self, name)} does not divide '
          f'Config.d_model = {self.d_model}'
        )
    for name, known in (('remat', REMAT), ('dtype', DTYPES)):
      value = getattr(self, name)
      if value not in known:
        raise ValueError(
          f'Config.{name} = {value!r}.' + did_you_mean(str(value), known)
        )
    for name in ('pad_id', 'start_id', 'end_id'):
      if getattr(self, name) >= self.vocab_size:
        raise ValueError(
          f'Config.{name} = {getattr(self, name)} is no id below '
          f'Config.vocab_size = {self.vocab_size}'
        )


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


def normal(config: Config, *axes: str):
  """Initialiser N(0, init_std), with its logical axes."""
  return nn.with_logical_partitioning(
    nn.initializers.normal(config.init_std), axes
  )


class Dense(nn.Module):
  """y = x W + b over the last axis, on two-dimensional operands.

  Flattening [B, T, D] to [B T, D] keeps the weight's gradient a plain matrix
  product; on three axes XLA's CPU backend inserts strided transposes.
  """

  config: Config
  features: int
  axes: tuple[str, str]

  @nn.compact
  def __call__(self, x):
    c = self.config
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', normal(c, *self.axes), shape)
    axis = 'vector' if self.axes[1] == 'embed' else self.axes[1]
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axis,))
    bias = self.param('bias', zeros, (self.features,))
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(c.dtype)
    return (flat + bias.astype(c.dtype)).reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
  """Layer norm over D, in float32, with scale and bias."""

  config: Config

  @nn.compact
  def __call__(self, x):
    ones = nn.with_logical_partitioning(nn.initializers.ones, ('vector',))
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('vector',))
    scale = self.param('scale', ones, x.shape[-1:])
    bias = self.param('bias', zeros, x.shape[-1:])
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    variance = jnp.square(x).mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(variance + self.config.norm_eps)
    return (x * scale + bias).astype(self.config.dtype)


class Attention(nn.Module):
  """Multi-head attention with separate, biased q, k, v and out projections."""

  config: Config
  heads: int

  def setup(self):
    c = self.config
    inward = functools.partial(Dense, c, c.d_model, ('embed', 'heads'))
    self.query, self.key, self.value = inward(), inward(), inward()
    self.out = Dense(c, c.d_model, ('heads', 'embed'))
    self.weights_dropout = nn.Dropout(c.attention_dropout)

  def _split(self, x):
    x = constrain(x, 'batch', 'length', 'heads')
    return x.reshape(*x.shape[:-1], self.heads, -1)

  def keys_values(self, x):
    """[B, S, D] -> keys and values, each [B, S, H, K]."""
    return self._split(self.key(x)), self._split(self.value(x))

  def __call__(self, x, keys, values, see, deterministic):
    """Attends from x [B, T, D]; returns [B, T, D]."""
    drop = functools.partial(self.weights_dropout, deterministic=deterministic)
    y = attention(self._split(self.query(x)), keys, values, see, drop)
    return self.out(y.reshape(*y.shape[:-2], -1))


class FeedForward(nn.Module):
  """D -> F -> D with exact (erf) GELU."""

  config: Config
  width: int

  @nn.compact
  def __call__(self, x, deterministic):
    c = self.config
    x = Dense(c, self.width, ('embed', 'mlp'), name='up')(x)
    x = constrain(jax.nn.gelu(x, approximate=False), 'batch', 'length', 'mlp')
    x = nn.Dropout(c.activation_dropout)(x, deterministic=deterministic)
    return Dense(c, c.d_model, ('mlp', 'embed'), name='down')(x)


class EncoderLayer(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x, see, deterministic):
    c = self.config
    drop = nn.Dropout(c.dropout, deterministic=deterministic)
    h = LayerNorm(c, name='attention_norm')(x)
    attend = Attention(c, c.encoder_heads, name='attention')
    x = x + drop(attend(h, *attend.keys_values(h), see, deterministic))
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
    self, carry, layer, encoded, positions, see, see_encoded, deterministic
  ):
    x, cache = carry
    c = self.config
    drop = nn.Dropout(c.dropout, deterministic=deterministic)
    h = LayerNorm(c, name='self_attention_norm')(x)
    attend = Attention(c, c.decoder_heads, name='self_attention')
    keys, values = attend.keys_values(h)
    if cache is not None:
      cache = cache.write('self', layer, keys, values, positions)
      keys, values = cache.read('self', layer)
    x = x + drop(attend(h, keys, values, see, deterministic))

    h = LayerNorm(c, name='cross_attention_norm')(x)
    attend = Attention(c, c.decoder_heads, name='cross_attention')
    if encoded is not None:
      keys, values = attend.keys_values(encoded)
      if cache is not None:
        cache = cache.write('cross', layer, keys, values)
    else:
      keys, values = cache.read('cross', layer)
    x = x + drop(attend(h, keys, values, see_encoded, deterministic))

    h = LayerNorm(c, name='feed_forward_norm')(x)
    feed_forward = FeedForward(c, c.decoder_ff, name='feed_forward')
    x = x + drop(feed_forward(h, deterministic))
    return (constrain(x, 'batch', 'length', 'hidden'), cache), None


def layers(layer_class, config: Config, length: int, inputs: tuple, name: str):
  """A stack of layers as one scan over stacked parameters."""
  if config.remat == 'full':
    # deterministic, the last argument, is a Python bool.
    layer_class = nn.remat(
      layer_class, prevent_cse=False, static_argnums=(len(inputs) + 1,)
    )
  return nn.scan(
    layer_class,
    variable_axes={'params': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=inputs,
    length=length,
    unroll=min(config.unroll, length),
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )(config, name=name)


class Encoder(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x, see, deterministic):
    c = self.config
    x = nn.Dropout(c.dropout)(x, deterministic=deterministic)
    inputs = (nn.broadcast, nn.broadcast)
    stack = layers(EncoderLayer, c, c.encoder_layers, inputs, 'layers')
    x, _ = stack(x, see, deterministic)
    return LayerNorm(c, name='norm')(x)


class Decoder(nn.Module):
  config: Config

  @nn.compact
  def __call__(
    self, x, cache, encoded, positions, see, see_encoded, deterministic
  ):
    c = self.config
    x = nn.Dropout(c.dropout)(x, deterministic=deterministic)
    inputs = (0, *(nn.broadcast,) * 5)
    stack = layers(DecoderLayer, c, c.decoder_layers, inputs, 'layers')
    number = jnp.arange(c.decoder_layers)
    (x, cache), _ = stack(
      (x, cache), number, encoded, positions, see, see_encoded, deterministic
    )
    return LayerNorm(c, name='norm')(x), cache


class AlexaTM(nn.Module):
  """The encoder-decoder, with the signatures t5x calls.

  Where segment ids are not given they are read off the ids: 1 where an id is
  not `pad_id`. Packed rows need segment ids and positions.
  """

  config: Config

  def setup(self):
    c = self.config
    table = normal(c, 'vocab', 'embed')
    shape = (c.vocab_size, c.d_model)
    self.encoder_embedding = self.param('encoder_embedding', table, shape)
    # The paper starts all three V x D matrices from one, and ties none.
    same = nn.with_logical_partitioning(
      lambda key: self.encoder_embedding + 0, ('vocab', 'embed')
    )
    self.decoder_embedding = self.param('decoder_embedding', same)
    self.lm_head = self.param('lm_head', same)
    rows = normal(c, 'position', 'embed')
    shape = (c.positions, c.d_model)
    self.encoder_positions = self.param('encoder_positions', rows, shape)
    self.decoder_positions = self.param('decoder_positions', rows, shape)
    self.encoder = Encoder(c)
    self.decoder = Decoder(c)

  def __call__(
    self,
    encoder_input_tokens,
    decoder_input_tokens,
    decoder_target_tokens=None,
    encoder_segment_ids=None,
    decoder_segment_ids=None,
    encoder_positions=None,
    decoder_positions=None,
    decode: bool = False,
    enable_dropout: bool = True,
  ):
    """Ids [B, S] and [B, T] to logits [B, T, V] in the config's dtype.

    Args:
      encoder_input_tokens: [B, S] ids.
      decoder_input_tokens: [B, T] ids, the targets shifted right.
      decoder_target_tokens: not used; t5x passes it.
      encoder_segment_ids: [B, S]; a token sees tokens of its own segment.
      decoder_segment_ids: [B, T]; a segment sees the encoder's of that number.
      encoder_positions: [B, S]; default 0, 1, ...
      decoder_positions: [B, T]; default 0, 1, ...
      decode: read through a linen 'cache' collection, see `decode`.
      enable_dropout: needs an rng named 'dropout' where a rate is not 0.
    """
    encoded = self.encode(
      encoder_input_tokens,
      encoder_segment_ids,
      encoder_positions,
      enable_dropout=enable_dropout,
    )
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids=encoder_segment_ids,
      decoder_segment_ids=decoder_segment_ids,
      decoder_positions=decoder_positions,
      decode=decode,
      enable_dropout=enable_dropout,
    )

  def _embed(self, tokens, table, rows, positions):
    c = self.config
    if positions is None:
      self._check_length(tokens.shape[1])
      at = rows[: tokens.shape[1]]
    else:
      at = rows[positions]
    x = table[tokens].astype(c.dtype) + at.astype(c.dtype)
    return constrain(x, 'batch', 'length', 'hidden')

  def _check_length(self, length: int):
    if length > self.config.positions:
      raise ValueError(
        f'a sequence of {length} tokens is longer than Config.positions = '
        f'{self.config.positions}'
      )

  def _segments(self, tokens, segment_ids):
    if segment_ids is not None:
      return segment_ids
    return (tokens != self.config.pad_id).astype(jnp.int32)

  def encode(
    self,
    encoder_input_tokens,
    encoder_segment_ids=None,
    encoder_positions=None,
    enable_dropout: bool = True,
  ):
    """Ids [B, S] to encoder states [B, S, D]."""
    segments = self._segments(encoder_input_tokens, encoder_segment_ids)
    x = self._embed(
      encoder_input_tokens,
      self.encoder_embedding,
      self.encoder_positions,
      encoder_positions,
    )
    return self.encoder(x, mask(segments, segments), not enable_dropout)

  def decode(
    self,
    encoded,
    encoder_input_tokens,  # only for the padding mask
    decoder_input_tokens,
    decoder_target_tokens=None,
    encoder_segment_ids=None,
    decoder_segment_ids=None,
    decoder_positions=None,
    decode: bool = False,
    enable_dropout: bool = True,
    max_decode_length: int | None = None,
  ):
    """Encoder states [B, S, D] and ids [B, T] to logits [B, T, V].

    With `decode`, as t5x does it: a call without a 'cache' collection makes
    one for T tokens; each later call reads one token and moves on by one.
    `atm.decode` does not use this but `decode_cached`.
    """
    del decoder_target_tokens, max_decode_length
    source = self._segments(encoder_input_tokens, encoder_segment_ids)
    if decode:
      return self._decode_t5x(encoded, source, decoder_input_tokens)
    B, T = decoder_input_tokens.shape
    order = jnp.broadcast_to(jnp.arange(T), (B, T))
    # Causality already keeps a token from the padding behind it.
    target = decoder_segment_ids
    if target is None:
      target = jnp.ones((B, T), jnp.int32)
    see = mask(target, target, order, order)
    logits, _ = self._decoder(
      decoder_input_tokens, None, encoded, decoder_positions, see,
      mask(target, source), not enable_dropout,
    )  # fmt: skip
    return logits

  def decode_cached(self, tokens, positions, cache, source, encoded=None):
    """Reads [B, n] ids at [B, n] positions through a cache.

    Args:
      tokens: [B, n] decoder inputs.
      positions: [B, n], from 0; keys beyond a query's position are not seen.
      cache: a `Cache` for B rows.
      source: [B, S] segment ids of the encoder input, 0 on padding.
      encoded: [B, S, D] at the first call, which fills the cross-attention's
        part of the cache; None from then on.

    Returns:
      (logits [B, n, V], the cache with these positions written).
    """
    B, T = cache.self_keys.shape[1:3]
    ones = jnp.ones((B, T), jnp.int32)
    order = jnp.broadcast_to(jnp.arange(T), (B, T))
    see = mask(jnp.ones_like(tokens), ones, positions, order)
    see_encoded = mask(jnp.ones_like(tokens), source)
    return self._decoder(
      tokens, cache, encoded, positions, see, see_encoded, True
    )

  def _decoder(
    self, tokens, cache, encoded, positions, see, see_encoded, deterministic
  ):
    x = self._embed(
      tokens, self.decoder_embedding, self.decoder_positions, positions
    )
    x, cache = self.decoder(
      x, cache, encoded, positions, see, see_encoded, deterministic
    )
    flat = x.reshape(-1, x.shape[-1]) @ self.lm_head.T.astype(x.dtype)
    logits = flat.reshape(*x.shape[:-1], -1)
    return constrain(logits, 'batch', 'length', 'vocab'), cache

  def _decode_t5x(self, encoded, source, tokens):
    B, T = tokens.shape
    if not self.has_variable('cache', 'kv'):
      fresh = Cache.zeros(self.config, B, encoded.shape[1], T)
      self.put_variable('cache', 'kv', fresh)
      self.put_variable('cache', 'index', jnp.zeros(B, jnp.int32))
      return jnp.zeros((B, T, self.config.vocab_size), self.config.dtype)
    index = self.get_variable('cache', 'index')
    positions = jnp.broadcast_to(jnp.arange(T), (B, T)) + index[:, None]
    logits, cache = self.decode_cached(
      tokens, positions, self.get_variable('cache', 'kv'), source, encoded
    )
    self.put_variable('cache', 'kv', cache)
    self.put_variable('cache', 'index', index + T)
    return logits
