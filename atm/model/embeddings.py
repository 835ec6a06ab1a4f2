"""Tables of an encoder-decoder: token and position embeddings, the LM head.

Letters as in transformer.py.
"""

import flax.linen as nn
import jax.numpy as jnp

from atm.model import loss
from atm.model.config import ModelConfig
from atm.model.layers import normal_init, zeros_init
from atm.parallel.sharding import constrain, constrain_columns


class Embeddings(nn.Module):
  """Base of a model: its tables, and what is looked up in them."""

  # A base class, not a submodule: the tables' names are keys of checkpoints,
  # and stand at the root.

  config: ModelConfig

  def setup(self):
    c = self.config
    table = normal_init(c, 'vocab', 'embed')
    shape = (c.vocab_size, c.d_model)
    self.encoder_embedding = self.param('encoder_embedding', table, shape)
    # The paper starts all three V x D matrices from one, and ties none.
    copied = nn.with_logical_partitioning(
      lambda key: self.encoder_embedding + 0, ('vocab', 'embed')
    )
    self.decoder_embedding = (
      self.encoder_embedding
      if c.ties in ('embeddings', 'all')
      else self.param('decoder_embedding', copied)
    )
    if c.ties in ('encoder_head', 'all'):
      self.head = self.encoder_embedding
    elif c.ties == 'decoder_head':
      self.head = self.decoder_embedding
    else:
      self.head = self.param('lm_head', copied)
    rows = normal_init(c, 'position', 'embed')
    shape = (c.positions, c.d_model)
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
    x = self._embed(
      tokens, self.encoder_embedding, self.encoder_positions, positions
    )
    if self.config.token_types:
      types = jnp.zeros_like(tokens) if types is None else types
      x += self.encoder_types[types].astype(x.dtype)
    return x

  def embed_target(self, tokens, positions):
    """Returns decoder inputs [B, T, D] of ids and positions."""
    rows = self.decoder_positions[self.config.position_offset :]
    return self._embed(tokens, self.decoder_embedding, rows, positions)

  def _embed(self, tokens, table, rows, positions):
    c, length = self.config, tokens.shape[1]
    if positions is None:
      if length > c.positions:
        raise ValueError(
          f'a sequence of {length} tokens is longer than Config.positions = '
          f'{c.positions}'
        )
      at = rows[:length]
    else:
      # Else XLA exchanges the gradient for columns first, as it does tokens'.
      at = constrain(rows[positions], 'batch', 'length', 'hidden')
    x = table[tokens].astype(c.dtype)
    if c.embed_scale:
      x *= c.d_model**0.5
    x = constrain(constrain_columns(x), 'batch', 'length', 'hidden')
    return x + at.astype(c.dtype)

  def head_and_bias(self, dtype):
    """Returns the LM head [V, D] in `dtype`, and the bias [V] or None."""
    bias = self.logits_bias if self.config.logits_bias else None
    return self.head.astype(dtype), bias

  def logits(self, states):
    """Returns float32 logits [B, T, V] of decoder states [B, T, D]."""
    logits = loss.compute_logits(states, *self.head_and_bias(states.dtype))
    return constrain(logits, 'batch', 'length', 'vocab')
