"""The AlexaTM encoder-decoder (paper section 2.2) in Flax linen.

Pre-LN Transformer: layer norm at the head of each sub-layer and at the end of
each stack, learned absolute positions, biases everywhere, exact GELU, three
V x D matrices (encoder embedding, decoder embedding, LM head) that start equal
and are not tied. `ModelConfig` has what other models of this form do otherwise.

Letters: B batch, S encoder length, T decoder length, D d_model, H heads,
K head dimension, F feed-forward, V vocabulary, L layers.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from atm.model import loss as loss_lib
from atm.model import one_stack
from atm.model.attention import AttentionMask
from atm.model.cached_decoding import CachedDecoding
from atm.model.config import ModelConfig
from atm.model.layers import (
  DecoderLayer,
  EncoderLayer,
  LayerNorm,
  norm_moments,
  scan_layers,
)
from atm.parallel.sharding import constrain, map_batch_shards


class Stack(nn.Module):
  """Stack of layers and a norm, from embeddings to states, both [B, T, D].

  Its parameters `layers` are those of all layers, stacked, or, where nothing is
  trained, those of `split_layer_params`.
  """

  config: ModelConfig
  layer_class: type[nn.Module]
  length: int

  @nn.compact
  def __call__(self, x, *inputs):
    """Computes states; the last of the layers' inputs is `deterministic`."""
    c = self.config
    if c.embedding_norm:
      x = LayerNorm(c, name='embedding_norm')(x)
    x = nn.Dropout(c.dropout)(x, deterministic=inputs[-1])
    carry = x, norm_moments(x, c)
    if '0' in self.variables.get('params', {}).get('layers', {}):
      for layer in self.each_layer():
        carry, _ = layer(carry, *inputs)
    else:
      layers = scan_layers(self.layer_class, c, self.length, len(inputs))
      carry, _ = layers(carry, *inputs)
    return LayerNorm(c, name='norm')(*carry)

  def each_layer(self):
    """Yields functions that apply a method of each layer, first to last."""
    # A layer is applied by itself, outside the scan, so that its part of a
    # cache is an array of its own, which a loop over tokens writes in place.
    layers = nn.unbox(self.variables['params']['layers'])
    if '0' not in layers:
      layers = split_layer_params(layers, self.length)
    layer = self.layer_class(self.config, parent=None)
    for number in range(self.length):
      yield functools.partial(layer.apply, {'params': layers[str(number)]})

  def apply_norm(self, x, name: str = 'norm'):
    """Applies a norm of the stack, for layers run one by one."""
    return LayerNorm(self.config, parent=None).apply(
      {'params': nn.unbox(self.variables['params'][name])}, x
    )


def split_layer_params(layers: dict, count: int) -> dict:
  """Splits parameters [L, ...] of all layers to {'0': the first's, ...}."""
  layer = lambda i: jax.tree.map(lambda x: x[i], layers)
  return {str(i): layer(i) for i in range(count)}


def _constrain_shard_logits(logits):
  """Pins logits inside `map_batch_shards`, where the batch is split already."""
  return constrain(logits, None, 'length', 'vocab')


class AlexaTM(CachedDecoding):
  """The encoder-decoder, with the signatures t5x calls.

  Where segment ids are not given they follow from the ids: 1 where an id is
  not `pad_id`. Packed rows need segment ids and positions.
  """

  def setup(self):
    super().setup()
    c = self.config
    layer = one_stack.OneStackLayer
    if c.has_encoder:
      self.encoder = Stack(c, EncoderLayer, c.encoder_layers)
      layer = DecoderLayer
    self.decoder = Stack(c, layer, c.decoder_layers)

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
    """Computes float32 logits [B, T, V] of ids [B, S] and [B, T].

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
      encoder_input_tokens, encoder_segment_ids, encoder_positions,
      enable_dropout,
    )  # fmt: skip
    return self.decode(
      encoded, encoder_input_tokens, decoder_input_tokens,
      decoder_target_tokens, encoder_segment_ids, decoder_segment_ids,
      decoder_positions, decode, enable_dropout,
    )  # fmt: skip

  def loss(
    self, batch: dict, enable_dropout: bool = True, z_loss: float = 0.0,
    label_smoothing: float = 0.0,
  ) -> dict:  # fmt: skip
    """Computes the sums of `loss.cross_entropy` for each row of a batch.

    The logits are made `loss_chunk` positions at a time, never all of them.

    Args:
      batch: arrays of `batches.Batches`; of one stack, perhaps also
        prompt_loss_weights [B, S] of predicting each prompt token's next.
      enable_dropout: see `__call__`.
      z_loss, label_smoothing: see `loss.cross_entropy`.
    """
    tokens, source = batch['encoder_input_tokens'], batch['encoder_segment_ids']
    encoded = self.encode(
      tokens, source, batch.get('encoder_positions'), enable_dropout
    )
    weights = batch.get('prompt_loss_weights')
    states = self._states(
      encoded, source, batch['decoder_input_tokens'],
      batch['decoder_segment_ids'], batch.get('decoder_positions'),
      not enable_dropout, 0 if weights is None else tokens.shape[1],
    )  # fmt: skip
    targets = batch['decoder_target_tokens'], batch['decoder_loss_weights']
    if weights is not None:
      prompt = jnp.roll(tokens, -1, 1), weights
      targets = tuple(
        jnp.concatenate(pair, 1) for pair in zip(prompt, targets, strict=True)
      )
    compute = functools.partial(
      loss_lib.cross_entropy_from_states, z_loss=z_loss,
      label_smoothing=label_smoothing,
    )  # fmt: skip
    return self._by_target(compute, states, *targets)

  def log_probabilities(self, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Scores given targets, several of one encoder input in each row.

    Args:
      batch: as for `loss`, with decoder_positions; a decoder segment sees
        itself and all of its row's encoder input, whose segment ids are 1.

    Returns:
      float32 [B, T] in nats; bool [B, T], whether no token is likelier.
    """
    source, tokens = batch['encoder_segment_ids'], batch['decoder_input_tokens']
    segments, positions = (
      batch[f'decoder_{name}'] for name in ('segment_ids', 'positions')
    )
    encoded = self.encode(
      batch['encoder_input_tokens'], source, enable_dropout=False
    )
    mask = AttentionMask(segments, segments, causal=True)
    if self.config.has_encoder:
      states = self.decoder(
        self.embed_target(tokens, positions), encoded, mask,
        AttentionMask(jnp.ones_like(segments), source), True,
      )  # fmt: skip
    else:  # through a cache: all targets of a row have one prompt
      T = tokens.shape[1]
      slots = jnp.broadcast_to(jnp.arange(T), tokens.shape)
      states, _ = self._cached_states(
        tokens, positions, self.empty_cache(encoded, T, source), source, slots,
        mask.mask()[:, 0],
      )  # fmt: skip
    targets = batch['decoder_target_tokens']
    return self._by_target(loss_lib.token_log_probabilities, states, targets)

  def _by_target(self, compute, states, *targets):
    """Runs a function of loss.py in chunks, each device on its batch rows."""
    compute = functools.partial(
      compute, chunk=self.config.loss_chunk, constrain=_constrain_shard_logits
    )
    head = self.head_and_bias(states.dtype)
    return map_batch_shards(compute, (states, *targets), *head)

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
    """Computes encoder states [B, S, D] of ids [B, S].

    Token types [B, S] are 0 where the model has them and none are given.
    Without an encoder these are embeddings, of which the stack is to read.
    """
    segments = self._segments(encoder_input_tokens, encoder_segment_ids)
    x = self.embed_source(
      encoder_input_tokens, encoder_positions, encoder_token_types
    )
    if not self.config.has_encoder:
      return x
    mask = AttentionMask(segments, segments)
    return self.encoder(x, mask, not enable_dropout)

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
    """Computes logits [B, T, V] of encoder states [B, S, D] and ids [B, T].

    With `decode`, as t5x does it: a call without a 'cache' collection makes
    one for T tokens; each later call reads one token and moves on by one.
    The room `inference` does not use this but `decode_cached`.
    """
    del decoder_target_tokens, max_decode_length
    source = self._segments(encoder_input_tokens, encoder_segment_ids)
    if decode:
      return self._decode_t5x(encoded, source, decoder_input_tokens)
    states = self._states(
      encoded, source, decoder_input_tokens, decoder_segment_ids,
      decoder_positions, not enable_dropout,
    )  # fmt: skip
    return self.logits(states)

  def _states(
    self, encoded, source, tokens, segments, positions, deterministic,
    prompt: int = 0,
  ):  # fmt: skip
    """Computes decoder states [B, T, D], teacher-forced.

    Of one stack behind those of the last `prompt` positions of the prompt.
    """
    # Without segments: causality already hides the padding behind a token.
    target = jnp.ones_like(tokens) if segments is None else segments
    if not self.config.has_encoder:
      if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
      at = one_stack.shift_positions(positions, source, target)
      x = jnp.concatenate([encoded, self.embed_target(tokens, at)], 1)
      mask = one_stack.join_masks(self.config, source, target)
      return self.decoder(x, mask, deterministic)[
        :, encoded.shape[1] - prompt :
      ]
    return self.decoder(
      self.embed_target(tokens, positions),
      encoded,
      AttentionMask(target, target, causal=True),
      AttentionMask(target, source),
      deterministic,
    )
