"""Configuration of a model: architecture, sizes, numerics, memory."""

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
# encoder_decoder: the paper's. The others are one stack, the decoder's, without
# cross-attention, that reads a prompt and what follows it.
ARCHITECTURES = 'encoder_decoder', 'decoder_only', 'prefix_lm'
CONFIG_CHOICES = {
  'architecture': ARCHITECTURES,
  'dtype': ('float32', 'bfloat16'),
  'remat': tuple(REMAT),
  'attention': IMPLEMENTATIONS,
  'norm': ('standard', 'uncentred'),
  'ties': ('none', 'embeddings', 'decoder_head', 'encoder_head', 'all'),
  'activation': ('gelu', 'relu'),
  'position_embedding': ('learned', 'sinusoidal', 'sinusoidal_fairseq'),
}

# Values that fields have where there is no encoder. Of two matrices V x D that
# are left one may be both, by the name of the encoder-decoder's same tie.
ONE_STACK = {
  'encoder_layers': (0,),
  'ties': ('none', 'decoder_head'),
  'token_types': (0,),
  'encoder_position_offset': (0,),
}

IDS = 'pad_id', 'start_id', 'end_id'
# Layers have a name each in weight files.
MOST_LAYERS = 10_000


def _check_encoder_layers(name: str, value) -> int:
  """Returns layers of an encoder; 0 is left to `_check_architecture`."""
  if isinstance(value, int) and value == 0 and value is not False:
    return value
  return check_number(name, value, 1, MOST_LAYERS)


def _list_checks() -> Iterator[tuple[str, Callable]]:
  """Yields (field, its check) of all fields of `ModelConfig`."""
  for name in (
    'vocab_size', 'd_model', 'encoder_heads', 'decoder_heads', 'encoder_ff',
    'decoder_ff', 'positions', 'loss_chunk', 'unroll',
  ):  # fmt: skip
    yield name, check_count
  yield 'encoder_layers', _check_encoder_layers
  yield 'decoder_layers', partial(check_number, least=1, most=MOST_LAYERS)
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
    architecture: 'encoder_decoder'; 'decoder_only', one causal stack over the
      inputs and behind them the targets (GPT); or 'prefix_lm', where inputs
      also attend to later inputs (Raffel et al., 2020, section 3.2.1). The
      latter two have `encoder_layers` 0, the decoder's sizes, one table of
      embeddings, and `positions` for inputs and targets together.

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
  architecture: str = 'encoder_decoder'

  checks: ClassVar[dict[str, Callable]] = {
    name: partial(check, f'Config.{name}') for name, check in _list_checks()
  }

  def __post_init__(self):
    check_fields(self)
    self._check_architecture()
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

  @property
  def has_encoder(self) -> bool:
    """Whether inputs have a stack of their own, the encoder."""
    return self.architecture == 'encoder_decoder'

  @property
  def room_name(self) -> str:
    """What bounds a sequence, as error messages say it."""
    both = '' if self.has_encoder else ' for an input and its output together'
    return f'Config.positions = {self.positions}{both}'

  def check_encoder(self, what: str) -> None:
    """Raises ValueError where `what` needs an encoder, and there is none."""
    if not self.has_encoder:
      raise ValueError(
        f'{what} needs a model with an encoder: expected Config.architecture = '
        f"'encoder_decoder', but this model has {self.architecture!r}"
      )

  def check_prompt_loss(self) -> None:
    """Raises ValueError where a token of the prompt sees those behind it."""
    if self.architecture != 'decoder_only':
      raise ValueError(
        "PROMPT_LOSS = True: expected Config.architecture = 'decoder_only', "
        f'but this model has {self.architecture!r}: there a token of the '
        'prompt sees those behind it'
      )

  def _check_architecture(self):
    """Raises ValueError where a field does not fit the architecture."""
    if self.has_encoder:
      check_number('Config.encoder_layers', self.encoder_layers, 1)
      return
    for name, known in ONE_STACK.items():
      if (value := getattr(self, name)) not in known:
        raise ValueError(
          f'Config.{name} = {value!r}: expected '
          f'{" or ".join(map(repr, known))} where Config.architecture = '
          f'{self.architecture!r}, which has one stack and one table of '
          'embeddings'
        )
