"""Tables of a model: token and position embeddings, the LM head.

Letters as in transformer.py.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atm.model import lora, loss, quantized
from atm.model.config import ModelConfig
from atm.model.layers import normal_init, zeros_init
from atm.parallel.sharding import constrain, constrain_columns

# A parameter beside a model's own: the LM head once more, [D, V], see
# `generate.prepare_params`.
HEAD_COLUMNS = 'head_columns'


def sinusoids(rows: jax.Array, width: int, fairseq: bool) -> jax.Array:
  """Computes float32 [..., width] of table rows [...]: sines, then cosines.

  Args:
    rows: whole numbers.
    width: D.
    fairseq: frequencies 10000^(-i / (floor(D / 2) - 1)) and a last column of
      zeros where D is odd, as fairseq has them and so M2M-100 and NLLB; False:
      10000^(-2i / D), as Vaswani et al. (2017) and Pegasus.
  """
  if fairseq:
    # fairseq computes angles in float32, whose rounding is part of its table.
    half = width // 2
    steps = np.arange(half, dtype=np.float32)
    steps *= np.float32(-math.log(10_000) / (half - 1))
    frequencies = np.exp(steps.astype(np.float64)).astype(np.float32)
    angles = rows.astype(jnp.float32)[..., None] * frequencies
    zeros = jnp.zeros((*rows.shape, width % 2), jnp.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles), zeros], -1)
  # Of the exact angle: its turns are counted in units of 2^-32, and whole ones
  # overflow; float32 of the angle itself would lose its last digits.
  frequencies = 10_000.0 ** (-2 * np.arange((width + 1) // 2) / width)
  turns = frequencies / (2 * np.pi) * 2**32
  units = np.round(turns).astype(np.int32)
  rest = ((turns - units) * (2 * np.pi / 2**32)).astype(np.float32)
  rows = rows.astype(jnp.int32)[..., None]
  angles = (rows * units).astype(jnp.float32) * np.float32(2 * np.pi / 2**32)
  angles += rows.astype(jnp.float32) * rest
  cosines = jnp.cos(angles[..., : width // 2])
  return jnp.concatenate([jnp.sin(angles), cosines], -1)


def name_head(config) -> str:
  """Returns the name of the parameter that is the LM head."""
  return {
    'decoder_head': 'decoder_embedding',
    'encoder_head': 'encoder_embedding',
    'all': 'encoder_embedding',
  }.get(config.ties, 'lm_head')


class Embeddings(nn.Module):
  """Base of a model: its tables, and what is looked up in them."""

  # A base class, not a submodule: the tables' names are keys of checkpoints,
  # and stand at the root.

  config: ModelConfig

  def setup(self):
    c = self.config
    table = normal_init(c, 'vocab', 'embed')
    shape = (c.vocab_size, c.d_model)
    read = functools.partial(quantized.read_parameter, self)
    # The paper starts all three V x D matrices from one, and ties none.
    copied = nn.with_logical_partitioning(
      lambda key: first + 0, ('vocab', 'embed')
    )
    if c.has_encoder:
      first = read('encoder_embedding', table, shape)
      self.encoder_embedding = self.decoder_embedding = first
      if c.ties not in ('embeddings', 'all'):
        self.decoder_embedding = read('decoder_embedding', copied)
    else:
      first = self.decoder_embedding = read('decoder_embedding', table, shape)
    if c.ties in ('encoder_head', 'all'):
      self.head = self.encoder_embedding
    elif c.ties == 'decoder_head':
      self.head = self.decoder_embedding
    else:
      self.head = read('lm_head', copied)
    rows = normal_init(c, 'position', 'embed')
    if c.position_embedding == 'learned':
      if c.has_encoder:
        shape = (c.positions + c.encoder_position_offset, c.d_model)
        self.encoder_positions = self.param('encoder_positions', rows, shape)
      shape = (c.positions + c.position_offset, c.d_model)
      self.decoder_positions = self.param('decoder_positions', rows, shape)
    if c.token_types:
      shape = (c.token_types, c.d_model)
      self.encoder_types = self.param('encoder_types', rows, shape)
    if c.logits_bias:
      bias = self.param('logits_bias', zeros_init(('vocab',)), (c.vocab_size,))
      self.logits_bias = bias

  def embed_source(self, tokens, positions, types):
    """Returns encoder inputs [B, S, D] of ids, positions and token types."""
    if not self.config.has_encoder:
      return self.embed_target(tokens, positions)
    table = self.encoder_embedding
    x = self._embed(tokens, table, 'encoder', positions)
    if self.config.token_types:
      types = jnp.zeros_like(tokens) if types is None else types
      x += self.encoder_types[types].astype(x.dtype)
    return x

  def embed_target(self, tokens, positions):
    """Returns decoder inputs [B, T, D] of ids and positions."""
    return self._embed(tokens, self.decoder_embedding, 'decoder', positions)

  def _embed(self, tokens, table, stack, positions):
    c, length = self.config, tokens.shape[1]
    if positions is None and length > c.positions:
      raise ValueError(
        f'a sequence of {length} tokens is longer than Config.positions = '
        f'{c.positions}'
      )
    if c.position_embedding == 'learned':
      at = self._learned_positions(stack, length, positions)
    else:
      at = self._sinusoidal_positions(stack, tokens, positions)
    x = quantized.look_up_rows(table, tokens, c.dtype)
    own = c.ties not in ('embeddings', 'all') and stack == 'decoder'
    name = 'decoder_embedding' if own else 'encoder_embedding'
    change = lora.look_up_change(self, name, tokens, x.dtype)
    if change is not None:
      x += change
    if c.embed_scale:
      x *= c.d_model**0.5
    x = constrain(constrain_columns(x), 'batch', 'length', 'hidden')
    return x + at.astype(c.dtype)

  def _learned_positions(self, stack, length, positions):
    """Returns rows [length, D] or [B, length, D] of a stack's table."""
    c = self.config
    rows = (
      self.encoder_positions[c.encoder_position_offset :]
      if stack == 'encoder'
      else self.decoder_positions[c.position_offset :]
    )
    if positions is None:
      return rows[:length]
    # Else XLA exchanges the gradient for columns first, as it does tokens'.
    return constrain(rows[positions], 'batch', 'length', 'hidden')

  def _sinusoidal_positions(self, stack, tokens, positions):
    """Returns float32 rows [length, D] or [B, length, D], computed."""
    c = self.config
    fairseq = c.position_embedding == 'sinusoidal_fairseq'
    words = tokens != c.pad_id
    if positions is None:
      positions = jnp.arange(tokens.shape[1])
      if fairseq:
        positions = jnp.cumsum(words, axis=1) - 1
    offset = (
      c.encoder_position_offset if stack == 'encoder' else c.position_offset
    )
    at = sinusoids(positions + offset, c.d_model, fairseq)
    if fairseq:
      at = jnp.where(words[..., None], at, 0)
    else:  # Pegasus stores its table beside its parameters, as rounded as they
      at = at.astype(self.decoder_embedding.dtype)
    if at.ndim == 3:
      at = constrain(at, 'batch', 'length', 'hidden')
    return at

  def head_and_bias(self, dtype):
    """Returns the LM head [V, D] in `dtype` or int8, and bias [V] or None."""
    bias = self.logits_bias if self.config.logits_bias else None
    head = lora.adapt_table(self, name_head(self.config), self.head)
    return quantized.cast(head, dtype), bias

  def logits(self, states):
    """Returns float32 logits [B, T, V] of decoder states [B, T, D]."""
    logits = loss.compute_logits(
      states,
      *self.head_and_bias(states.dtype),
      self.variables['params'].get(HEAD_COLUMNS),
    )
    return constrain(logits, 'batch', 'length', 'vocab')
