"""The AlexaTM encoder-decoder (paper section 2.2) in Flax linen.

Pre-LN Transformer: layer norm at the head of each sub-layer and at the end of
each stack, learned absolute positions, biases everywhere, exact GELU, three
V x D matrices (encoder embedding, decoder embedding, LM head) that start equal
and are not tied.

Letters: B batch, S encoder length, T decoder length, D d_model, H heads,
K head dimension, F feed-forward, V vocabulary, L layers.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from atm.model import config as config_lib
from atm.model import loss as loss_lib
from atm.model.attention import AttentionMask
from atm.model.layers import (
  DecoderLayer,
  EncoderLayer,
  LayerNorm,
  norm_moments,
  normal_init,
  scan_layers,
)
from atm.parallel.sharding import constrain, constrain_columns, map_batch_shards


class Encoder(nn.Module):
  config: config_lib.Config

  @nn.compact
  def __call__(self, x, sight, deterministic):
    c = self.config
    x = nn.Dropout(c.dropout)(x, deterministic=deterministic)
    inputs = (nn.broadcast, nn.broadcast)
    layers = scan_layers(EncoderLayer, c, c.encoder_layers, inputs)
    carry, _ = layers((x, norm_moments(x, c)), sight, deterministic)
    return LayerNorm(c, name='norm')(*carry)


class Decoder(nn.Module):
  config: config_lib.Config

  @nn.compact
  def __call__(self, x, encoded, sight, sight_encoded, deterministic):
    c = self.config
    x = nn.Dropout(c.dropout)(x, deterministic=deterministic)
    inputs = (nn.broadcast,) * 4
    layers = scan_layers(DecoderLayer, c, c.decoder_layers, inputs)
    carry = x, norm_moments(x, c)
    carry, _ = layers(carry, encoded, sight, sight_encoded, deterministic)
    return LayerNorm(c, name='norm')(*carry)

  def each_layer(self):
    """Functions that apply a method of each layer, from first to last.

    A layer is applied by itself, outside the scan, so that its part of a cache
    is an array of its own, which a loop over tokens writes in place.
    """
    layers = nn.unbox(self.variables['params']['layers'])
    if '0' not in layers:
      layers = split_layer_params(layers, self.config.decoder_layers)
    layer = DecoderLayer(self.config, parent=None)
    for number in range(self.config.decoder_layers):
      yield functools.partial(layer.apply, {'params': layers[str(number)]})

  def normed(self, x):
    return LayerNorm(self.config, parent=None).apply(
      {'params': nn.unbox(self.variables['params']['norm'])}, x
    )


def split_layer_params(layers: dict, count: int) -> dict:
  """Parameters [L, ...] of all layers as {'0': those of the first, ...}."""
  cut = lambda i: jax.tree.map(lambda x: x[i], layers)
  return {str(i): cut(i) for i in range(count)}


def _constrain_logits(logits):
  return constrain(logits, 'batch', 'length', 'vocab')


def _constrain_rows_logits(logits):
  return constrain(logits, None, 'length', 'vocab')


class AlexaTM(nn.Module):
  """The encoder-decoder, with the signatures t5x calls.

  Where segment ids are not given they are read off the ids: 1 where an id is
  not `pad_id`. Packed rows need segment ids and positions.
  """

  config: config_lib.Config

  def setup(self):
    c = self.config
    table = normal_init(c, 'vocab', 'embed')
    shape = (c.vocab_size, c.d_model)
    self.encoder_embedding = self.param('encoder_embedding', table, shape)
    # The paper starts all three V x D matrices from one, and ties none.
    same = nn.with_logical_partitioning(
      lambda key: self.encoder_embedding + 0, ('vocab', 'embed')
    )
    self.decoder_embedding = (
      self.encoder_embedding
      if c.ties in ('embeddings', 'all')
      else self.param('decoder_embedding', same)
    )
    tied_head = {
      'decoder_head': self.decoder_embedding,
      'encoder_head': self.encoder_embedding,
      'all': self.encoder_embedding,
    }
    if c.ties in tied_head:
      self.head = tied_head[c.ties]
    else:
      self.head = self.param('lm_head', same)
    rows = normal_init(c, 'position', 'embed')
    shape = (c.positions, c.d_model)
    self.encoder_positions = self.param('encoder_positions', rows, shape)
    shape = (c.positions + c.position_offset, c.d_model)
    self.decoder_positions = self.param('decoder_positions', rows, shape)
    if c.token_types:
      shape = (c.token_types, c.d_model)
      self.encoder_types = self.param('encoder_types', rows, shape)
    if c.logits_bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',))
      self.logits_bias = self.param('logits_bias', zeros, (c.vocab_size,))
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
    """Ids [B, S] and [B, T] to float32 logits [B, T, V].

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

  def loss(self, batch: dict, enable_dropout: bool = True, z_loss=0.0) -> dict:
    """Per-row sums of `loss.cross_entropy` for a batch of `batches.Batches`.

    The logits are made `loss_chunk` positions at a time, never all of them.
    """
    c, tokens = self.config, batch['encoder_input_tokens']
    source = batch['encoder_segment_ids']
    encoded = self.encode(
      tokens, source, batch.get('encoder_positions'), enable_dropout
    )
    states = self._states(
      encoded,
      source,
      batch['decoder_input_tokens'],
      batch['decoder_segment_ids'],
      batch.get('decoder_positions'),
      not enable_dropout,
    )
    compute = functools.partial(
      loss_lib.cross_entropy_from_states,
      z_loss=z_loss,
      chunk=c.loss_chunk,
      constrain=_constrain_rows_logits,
    )
    targets = batch['decoder_target_tokens'], batch['decoder_loss_weights']
    return map_batch_shards(
      compute, (states, *targets), *self._head(states.dtype)
    )

  def log_probabilities(self, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Of given targets, several of one encoder input in each row.

    Args:
      batch: as for `loss`, with decoder_positions; a decoder segment sees
        itself and all of its row's encoder input, whose segment ids are 1.

    Returns:
      float32 [B, T] in nats; bool [B, T], whether no token is likelier.
    """
    source, tokens = batch['encoder_segment_ids'], batch['decoder_input_tokens']
    segments = batch['decoder_segment_ids']
    states = self.decoder(
      self._embed_target(tokens, batch['decoder_positions']),
      self.encode(batch['encoder_input_tokens'], source, enable_dropout=False),
      AttentionMask(segments, segments, causal=True),
      AttentionMask(jnp.ones_like(segments), source),
      True,
    )
    compute = functools.partial(
      loss_lib.token_log_probabilities,
      chunk=self.config.loss_chunk,
      constrain=_constrain_rows_logits,
    )
    targets = batch['decoder_target_tokens']
    return map_batch_shards(
      compute, (states, targets), *self._head(states.dtype)
    )

  def _embed(self, tokens, table, rows, positions):
    c = self.config
    if positions is None:
      self._check_length(tokens.shape[1])
      at = rows[: tokens.shape[1]]
    else:
      # Else XLA exchanges its gradient for columns first.
      at = constrain(rows[positions], 'batch', 'length', 'hidden')
    x = table[tokens].astype(c.dtype)
    if c.embed_scale:
      x *= c.d_model**0.5
    x = constrain(constrain_columns(x), 'batch', 'length', 'hidden')
    return x + at.astype(c.dtype)

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
    encoder_token_types=None,
  ):
    """Ids [B, S] to encoder states [B, S, D].

    Token types [B, S] are 0 where the model has them and none are given.
    """
    segments = self._segments(encoder_input_tokens, encoder_segment_ids)
    x = self._embed(
      encoder_input_tokens,
      self.encoder_embedding,
      self.encoder_positions,
      encoder_positions,
    )
    if self.config.token_types:
      types = encoder_token_types
      types = jnp.zeros_like(encoder_input_tokens) if types is None else types
      x += self.encoder_types[types].astype(x.dtype)
    return self.encoder(
      x, AttentionMask(segments, segments), not enable_dropout
    )

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
    states = self._states(
      encoded, source, decoder_input_tokens, decoder_segment_ids,
      decoder_positions, not enable_dropout,
    )  # fmt: skip
    return self._logits(states)

  def _states(
    self, encoded, source, tokens, segments, positions, deterministic
  ):
    """Decoder states [B, T, D], teacher-forced."""
    # Causality already keeps a token from the padding behind it.
    target = jnp.ones_like(tokens) if segments is None else segments
    return self.decoder(
      self._embed_target(tokens, positions),
      encoded,
      AttentionMask(target, target, causal=True),
      AttentionMask(target, source),
      deterministic,
    )

  def _embed_target(self, tokens, positions):
    rows = self.decoder_positions[self.config.position_offset :]
    return self._embed(tokens, self.decoder_embedding, rows, positions)

  def empty_cache(self, encoded, length: int):
    """A `layers.KVCache` for each decoder layer, nothing of the decoder read.

    Args:
      encoded: [B, S, D] encoder states.
      length: positions of a row.
    """
    return [
      layer(encoded, length, method=DecoderLayer.empty)
      for layer in self.decoder.each_layer()
    ]

  def decode_cached(
    self, tokens, positions, caches, source, last=None, slots=None, seen=None
  ):
    """Reads [R, n] ids at [R, n] positions through a cache.

    Args:
      tokens: [R, n] decoder inputs.
      positions: [R, n], from 0.
      caches: of `empty_cache`, or of an earlier call.
      source: [B, S] segment ids of the encoder input, 0 on padding.
      last: [R], the one of the n of which logits are wanted; None: all.
      slots: [R, n], where in the cache they are written; None: at `positions`.
      seen: [R, n, T] bool, which of its T slots a query looks at; None: those
        up to its own.

    Returns:
      (float32 logits [R, n, V], or [R, V] of `last`; the caches).
    """
    T = caches[0].self_values.shape[2]
    slots = positions if slots is None else slots
    seen = jnp.arange(T) <= slots[..., None] if seen is None else seen
    source = (source > 0)[:, None]
    x, written = self._embed_target(tokens, positions), []
    for layer, cache in zip(self.decoder.each_layer(), caches, strict=True):
      x, cache = layer(
        x, cache, slots, seen, source, method=DecoderLayer.cached
      )
      written.append(cache)
    x = self.decoder.normed(x)
    if last is not None:
      x = jnp.take_along_axis(x, last[:, None, None], axis=1)
    logits = self._logits(x)
    return logits if last is None else logits[:, 0], written

  def _logits(self, states):
    logits = loss_lib.compute_logits(states, *self._head(states.dtype))
    return _constrain_logits(logits)

  def _head(self, dtype):
    """(LM head [V, D], bias [V] or None)."""
    bias = self.logits_bias if self.config.logits_bias else None
    return self.head.astype(dtype), bias

  def _decode_t5x(self, encoded, source, tokens):
    B, T = tokens.shape
    if not self.has_variable('cache', 'kv'):
      self.put_variable('cache', 'kv', self.empty_cache(encoded, T))
      self.put_variable('cache', 'index', jnp.zeros(B, jnp.int32))
      return jnp.zeros((B, T, self.config.vocab_size))
    index = self.get_variable('cache', 'index')
    positions = jnp.broadcast_to(jnp.arange(T), (B, T)) + index[:, None]
    # t5x makes the cache with other inputs than it then decodes.
    caches = [
      fresh.replace(self_keys=kept.self_keys, self_values=kept.self_values)
      for fresh, kept in zip(
        self.empty_cache(encoded, 1), self.get_variable('cache', 'kv')
      )
    ]
    logits, caches = self.decode_cached(tokens, positions, caches, source)
    self.put_variable('cache', 'kv', caches)
    self.put_variable('cache', 'index', index + T)
    return logits
