"""Configuration of the encoder-decoder: sizes, numerics, memory."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

from atm.messages import (
  MOST_INT32,
  check_choice,
  check_count,
  check_fields,
  check_flag,
  check_number,
)
from atm.model.attention import IMPLEMENTATIONS
from atm.model.remat import REMAT

# What parameters are held in while nothing is trained.
WEIGHTS = ('float32', 'bfloat16', 'int8')
CONFIG_CHOICES = {
  'dtype': ('float32', 'bfloat16'),
  'remat': tuple(REMAT),
  'attention': IMPLEMENTATIONS,
  'norm': ('standard', 'uncentred'),
  'ties': ('none', 'embeddings', 'decoder_head', 'encoder_head', 'all'),
  'activation': ('gelu', 'relu'),
  'position_embedding': ('learned', 'sinusoidal', 'sinusoidal_fairseq'),
}

IDS = 'pad_id', 'start_id', 'end_id'
# Layers have a name each in weight files.
MOST_LAYERS = 10_000


def _list_checks() -> Iterator[tuple[str, Callable]]:
  """Yields (field, its check) of all fields of `ModelConfig`."""
  for name in (
    'vocab_size', 'd_model', 'encoder_heads', 'decoder_heads', 'encoder_ff',
    'decoder_ff', 'positions', 'loss_chunk', 'unroll',
  ):  # fmt: skip
    yield name, check_count
  for name in ('encoder_layers', 'decoder_layers'):
    yield name, partial(check_number, least=1, most=MOST_LAYERS)
  for name in (
    'token_types', 'position_offset', 'encoder_position_offset', *IDS
  ):  # fmt: skip
    yield name, partial(check_number, least=0, most=MOST_INT32)
  for name in ('dropout', 'attention_dropout', 'activation_dropout'):
    yield name, partial(check_number, least=0, below=1, whole=False)
  for name in ('norm_eps', 'init_std'):
    yield name, partial(check_number, least=0, whole=False)
  for name in (
    'embed_scale', 'logits_bias', 'norm_float32', 'scores_float32',
    'embedding_norm',
  ):  # fmt: skip
    yield name, check_flag
  for name, known in CONFIG_CHOICES.items():
    yield name, partial(check_choice, known=known)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes and numerics of a model; checks itself.

  The paper gives the 20B's sizes. It is silent on dropout, the standard
  deviation of the initialisation and the norm's epsilon; the defaults here are
  none, 0.02 and 1e-5. Sizes default to the 20B's.

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
    ties: which of the three V x D matrices are one: 'none'; 'embeddings'
      (encoder's and decoder's); 'decoder_head' (the LM head is the decoder's);
      'encoder_head'; 'all'. A tied matrix is stored once.
    embed_scale: multiply token embeddings by sqrt(d_model).
    token_types: rows of a table of token types added in the encoder; 0: none.
    position_offset: first row of the decoder's position table that is used.
    logits_bias: a constant (untrained) bias on the logits.
    norm: 'standard' layer norm, or 'uncentred', see `layers.norm_moments`.
    norm_eps: epsilon of layer norm.
    norm_float32: compute layer norm in float32 whatever the dtype.
    scores_float32: compute attention scores and softmax in float32.
    init_std: of all matrices; biases start at 0, norms at 1.
    dtype: of activations. Parameters are float32.
    remat: what of each layer the backward pass computes again, from 'none' to
      'full'; a policy of `remat.REMAT`, where each is explained.
    attention: how attention is computed: 'auto' (by platform), 'einsum',
      'rows', 'splash' or 'cudnn', see attention.py.
    loss_chunk: target positions of a row whose logits are in memory at a time
      while the loss and its gradient are computed.
    unroll: how many layers the compiled loop over layers does at a time.
    pad_id, start_id, end_id: padding, the decoder's first input, and the end
      of a sequence.
    activation: of the feed-forward: 'gelu', the exact one, or 'relu'.
    embedding_norm: a layer norm behind the embeddings of both stacks, before
      their dropout (mBART).
    position_embedding: 'learned' tables, or tables that are computed:
      'sinusoidal' (Pegasus) or 'sinusoidal_fairseq' (M2M-100, NLLB), see
      `embeddings.sinusoids`. Padding has a row of zeros in the latter, and is
      not counted where positions are not given.
    encoder_position_offset: first row of the encoder's position table that is
      used.

  Raises:
    ValueError: sizes that are not positive, too large or do not divide,
      unknown names.
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
  ties: str = 'none'
  embed_scale: bool = False
  token_types: int = 0
  position_offset: int = 0
  logits_bias: bool = False
  norm: str = 'standard'
  norm_eps: float = 1e-5
  norm_float32: bool = True
  scores_float32: bool = True
  init_std: float = 0.02
  dtype: str = 'bfloat16'
  remat: str = 'none'
  attention: str = 'auto'
  loss_chunk: int = 64
  unroll: int = 1
  pad_id: int = 0
  start_id: int = 1
  end_id: int = 2
  activation: str = 'gelu'
  embedding_norm: bool = False
  position_embedding: str = 'learned'
  encoder_position_offset: int = 0

  checks: ClassVar[dict[str, Callable]] = {
    name: partial(check, f'Config.{name}') for name, check in _list_checks()
  }

  def __post_init__(self):
    check_fields(self)
    for name in ('encoder_heads', 'decoder_heads'):
      if self.d_model % getattr(self, name):
        raise ValueError(
          f'Config.{name} = {getattr(self, name)} does not divide '
          f'Config.d_model = {self.d_model}'
        )
    if self.position_embedding == 'sinusoidal_fairseq' and self.d_model < 4:
      raise ValueError(
        f'Config.d_model = {self.d_model}: expected at least 4 where '
        "Config.position_embedding = 'sinusoidal_fairseq'"
      )
    for name in IDS:
      if getattr(self, name) >= self.vocab_size:
        raise ValueError(
          f'Config.{name} = {getattr(self, name)} is no id below '
          f'Config.vocab_size = {self.vocab_size}'
        )
