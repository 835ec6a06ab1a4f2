"""How Hugging Face classes name our parameters and our configuration."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from atm import fileio
from atm.messages import did_you_mean, quote
from atm.model.config import ModelConfig


class WeightsError(ValueError):
  """Weights that are not what their config.json says; names the key."""


class StackKeys(NamedTuple):
  """Where a Hugging Face class keeps an encoder or a decoder."""

  norm: str  # prefix of the final norm
  layer: str  # prefix of layer {}
  parts: Mapping[str, str]  # our name within a layer -> theirs


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a Hugging Face class keeps our parameters."""

  # Our name -> theirs, of arrays that stand alone.
  tables: Mapping[str, str]
  stacks: Mapping[str, StackKeys]  # 'encoder' and perhaps 'decoder'
  # Our name -> other keys that hold the same matrix where it is tied. They are
  # compared in this order, each with the first that has it.
  aliases: Mapping[str, tuple[str, ...]]
  ignored: tuple[str, ...] = ()  # keys that hold nothing to learn

  def keys(self, path: tuple[str, ...], shape: tuple[int, ...]) -> list[str]:
    """Returns the keys that hold a parameter: one, or one a layer."""
    if len(path) == 1:
      return [self.tables[path[0]]]
    suffix = '.bias' if path[-1] == 'bias' else '.weight'
    norm, layer, parts = self.stacks[path[0]]
    if path[1] == 'norm':
      return [norm + suffix]
    name = parts['/'.join(path[2:-1])] + suffix
    return [f'{layer.format(i)}.{name}' for i in range(shape[0])]


def _make_bart_layer(**attentions: str) -> dict[str, str]:
  """Returns the parts of a BART layer, by our attentions -> theirs."""
  parts = {'feed_forward/up': 'fc1', 'feed_forward/down': 'fc2'}
  parts['feed_forward_norm'] = 'final_layer_norm'
  for ours, theirs in attentions.items():
    parts[f'{ours}_norm'] = f'{theirs}_layer_norm'
    parts[f'{ours}/out'] = f'{theirs}.out_proj'
    for name in ('query', 'key', 'value'):
      parts[f'{ours}/{name}'] = f'{theirs}.{name[0]}_proj'
  return parts


_BART_ENCODER = _make_bart_layer(attention='self_attn')
_BART_DECODER = _make_bart_layer(
  self_attention='self_attn', cross_attention='encoder_attn'
)
_ROBERTA_ENCODER = {
  'attention/query': 'attention.self.query',
  'attention/key': 'attention.self.key',
  'attention/value': 'attention.self.value',
  'attention/out': 'attention.output.dense',
  'feed_forward/up': 'intermediate.dense',
  'feed_forward/down': 'output.dense',
}
_DECODER_TABLES = {
  'decoder_positions': 'model.decoder.embed_positions.weight',
  'lm_head': 'lm_head.weight',
  'logits_bias': 'final_logits_bias',
}
_TIED = ('model.decoder.embed_tokens.weight', 'lm_head.weight')

ALEXATM = Layout(
  tables={
    'encoder_embedding': 'model.encoder.token_embeddings.weight',
    'encoder_positions': 'model.encoder.position_embeddings.weight',
    'encoder_types': 'model.encoder.token_type_embeddings.weight',
    'decoder_embedding': 'model.decoder.embed_tokens.weight',
    **_DECODER_TABLES,
  },
  stacks={
    'encoder': StackKeys(
      'model.encoder.pre_ln_encoder.layer_norm',
      'model.encoder.pre_ln_encoder.layer.{}',
      {
        **_ROBERTA_ENCODER,
        'attention_norm': 'layer_norm',
        'feed_forward_norm': 'intermediate.layer_norm',
      },
    ),
    'decoder': StackKeys(
      'model.decoder.layernorm_output', 'model.decoder.layers.{}', _BART_DECODER
    ),
  },
  aliases={
    # First, for the LM head may be tied to the decoder's embedding alone.
    'decoder_embedding': ('lm_head.weight',),
    'encoder_embedding': _TIED,
  },
  # `shared` may have been repointed by a change of vocabulary.
  ignored=('model.shared.weight', 'model.encoder.position_ids'),
)

BLENDERBOT = Layout(
  tables={
    'encoder_embedding': 'model.shared.weight',
    'encoder_positions': 'model.encoder.embed_positions.weight',
    **_DECODER_TABLES,
  },
  stacks={
    name: StackKeys(
      f'model.{name}.layer_norm', f'model.{name}.layers.{{}}', parts
    )
    for name, parts in (('encoder', _BART_ENCODER), ('decoder', _BART_DECODER))
  },
  aliases={
    'encoder_embedding': ('model.encoder.embed_tokens.weight', *_TIED),
  },
)

LAYOUTS = {'alexatm': ALEXATM, 'blenderbot': BLENDERBOT}
# Where a Blenderbot's matrices are not all one, which of them are: a field that
# transformers keeps and does not read.
TIES_FIELD = 'atm_ties'
_TIED_COPIES = {
  'none': {},
  'embeddings': {'encoder_embedding': _TIED[:1]},
  'decoder_head': {'decoder_embedding': _TIED[1:]},
  'encoder_head': {'encoder_embedding': _TIED[1:]},
}


def make_untied_layout(ties: str) -> Layout:
  """Returns the layout of a Blenderbot that has three matrices, by our ties.

  transformers 5 reads the three apart where `tie_word_embeddings` is false.
  """
  tables = {
    **BLENDERBOT.tables,
    'encoder_embedding': 'model.encoder.embed_tokens.weight',
    'decoder_embedding': 'model.decoder.embed_tokens.weight',
  }
  return dataclasses.replace(
    BLENDERBOT, tables=tables, aliases=_TIED_COPIES[ties],
    ignored=('model.shared.weight',),
  )  # fmt: skip


def get_layout(hf: dict) -> Layout:
  """Returns the layout of a config.json of one of LAYOUTS."""
  kind, ties = get_model_type(hf), hf.get(TIES_FIELD)
  if kind == 'blenderbot' and ties in _TIED_COPIES:
    return make_untied_layout(ties)
  return LAYOUTS[kind]


XLMR = 'xlm-roberta-xl'  # XL and XXL; an encoder only, see `warm_start`


def make_xlmr_layout(keys: Iterable[str]) -> Layout:
  """Returns the layout of XLM-R XL's encoder, by the keys of a folder."""
  # Heads and buffers are ignored; all but the bare model has a prefix.
  keys = set(keys)
  prefix = 'roberta.' if any(k.startswith('roberta.') for k in keys) else ''
  inner = prefix + 'embeddings.'
  ignored = ('lm_head.', f'{prefix}pooler.', f'{inner}position_ids')
  parts = {
    **_ROBERTA_ENCODER,
    'attention_norm': 'attention.self_attn_layer_norm',
    'feed_forward_norm': 'LayerNorm',
  }
  prefix += 'encoder.'
  return Layout(
    tables={
      'encoder_embedding': inner + 'word_embeddings.weight',
      'encoder_positions': inner + 'position_embeddings.weight',
      'encoder_types': inner + 'token_type_embeddings.weight',
    },
    stacks={
      'encoder': StackKeys(prefix + 'LayerNorm', prefix + 'layer.{}', parts)
    },
    aliases={},
    ignored=tuple(k for k in keys if k.startswith(ignored)),
  )


def find_layout(hf: dict, keys: Iterable[str]) -> Layout:
  """Returns the layout of a folder by its config.json and keys."""
  kind = get_model_type(hf, (*LAYOUTS, XLMR))
  return make_xlmr_layout(keys) if kind == XLMR else get_layout(hf)


# --- config.json

# Field of Config -> the integer of config.json.
_SIZES = {
  'vocab_size': 'vocab_size',
  'd_model': 'd_model',
  'encoder_layers': 'encoder_layers',
  'encoder_heads': 'encoder_attention_heads',
  'encoder_ff': 'encoder_ffn_dim',
  'decoder_layers': 'decoder_layers',
  'decoder_heads': 'decoder_attention_heads',
  'decoder_ff': 'decoder_ffn_dim',
  'positions': 'max_position_embeddings',
  'pad_id': 'pad_token_id',
  'start_id': 'decoder_start_token_id',
  'end_id': 'eos_token_id',
}
_XLMR_SIZES = {
  'vocab_size': 'vocab_size',
  'd_model': 'hidden_size',
  'encoder_layers': 'num_hidden_layers',
  'encoder_heads': 'num_attention_heads',
  'encoder_ff': 'intermediate_size',
  'decoder_heads': 'num_attention_heads',
  'positions': 'max_position_embeddings',
  'token_types': 'type_vocab_size',
  'pad_id': 'pad_token_id',
  'start_id': 'bos_token_id',
  'end_id': 'eos_token_id',
}
_DROPOUTS = ('dropout', 'attention_dropout', 'activation_dropout')
# AlexaTM's (share_embeddings, tie_word_embeddings) -> Config.ties.
_TIES = {
  (False, False): 'none',
  (True, False): 'embeddings',
  (False, True): 'decoder_head',
  (True, True): 'all',
}
# AlexaTM's encoder is configured like RoBERTa, under names of its own.
_TWINS = {
  'num_hidden_layers': 'encoder_layers',
  'intermediate_size': 'encoder_ffn_dim',
}


class _ConfigFile(NamedTuple):
  """A config.json, and its path, which errors name."""

  fields: dict
  path: str = 'config.json'

  def error(self, what) -> WeightsError:
    return WeightsError(f'{self.path}: {what}')

  def get(self, key: str, kind, *default):
    """Returns a field, or its default; raises WeightsError if it is no kind."""
    fields = {**dict.fromkeys([key][: len(default)], *default), **self.fields}
    try:
      return fileio.get_key(fields, key, kind, self.path)
    except ValueError as e:
      raise WeightsError(str(e)) from e

  def get_float(self, key: str, default: float) -> float:
    return self.get(key, (float, int), default)

  def get_sizes(self, sizes: Mapping[str, str]) -> dict[str, int]:
    """Returns fields of Config, of the names of integers here."""
    return {name: self.get(key, int) for name, key in sizes.items()}

  def check_fixed(self, **fixed: str) -> None:
    """Raises WeightsError where a field has a value that no Config has."""
    for key, value in fixed.items():
      if (found := self.fields.get(key, value)) != value:
        raise self.error(f'{key} = {quote(found)}: only {value!r} is supported')

  def make_config(self, **values) -> ModelConfig:
    """Returns a float32 Config; raises WeightsError for values it refuses."""
    try:
      return ModelConfig(**values, dtype='float32')
    except ValueError as e:
      raise self.error(e) from e


def _read_alexatm(file: _ConfigFile) -> dict:
  # transformers' 'gelu' is the exact one, by erf.
  file.check_fixed(hidden_act='gelu', position_embedding_type='absolute')
  for twin, key in _TWINS.items():
    if (found := file.get(twin, int, file.get(key, int))) != file.get(key, int):
      raise file.error(f'{twin} = {found}, but {key} = {file.get(key, int)}')
  share = file.get('share_embeddings', bool, False)
  tie = file.get('tie_word_embeddings', bool, True)
  cast = file.get('fp32_cast_query_key', (str, bool, type(None)), None)
  return dict(
    token_types=file.get('type_vocab_size', int, 0),
    position_offset=file.get('extra_pos_embeddings', int, 2),
    ties=_TIES[share, tie],
    norm='uncentred',
    norm_eps=file.get_float('layer_norm_eps', 1e-12),
    norm_float32=file.get('fp32_cast_layer_norm', bool, False),
    scores_float32=cast is not None,
  )


def _read_blenderbot(file: _ConfigFile) -> dict:
  file.check_fixed(activation_function='gelu')
  tie = file.get('tie_word_embeddings', bool, True)
  ties = file.get(TIES_FIELD, str, 'all' if tie else 'embeddings')
  if TIES_FIELD in file.fields and (tie or ties not in _TIED_COPIES):
    known = f'one of {[*_TIED_COPIES]}, and tie_word_embeddings false'
    raise file.error(f'{TIES_FIELD} = {quote(ties)}: expected {known}')
  return dict(
    embed_scale=file.get('scale_embedding', bool, False),
    ties=ties,
    norm_eps=1e-5,  # of torch.nn.LayerNorm; config.json has no field for it
  )


def get_model_type(
  hf: dict,
  known: Collection[str] = tuple(LAYOUTS),
  path: str = 'config.json',
) -> str:
  """Returns the model_type of a config.json; raises WeightsError if unknown."""
  name = hf.get('model_type')
  if not isinstance(name, str) or name not in known:
    near = did_you_mean(name if isinstance(name, str) else '', known)
    raise WeightsError(f'{path}: model_type = {quote(name)}.' + near)
  return name


def config_from_hf(hf: dict, path: str = 'config.json') -> ModelConfig:
  """Returns the float32 Config of a config.json, or raises WeightsError."""
  is_alexatm = get_model_type(hf, path=path) == 'alexatm'
  file = _ConfigFile(hf, path)
  return file.make_config(
    **(_read_alexatm if is_alexatm else _read_blenderbot)(file),
    **file.get_sizes(_SIZES),
    **{name: file.get_float(name, 0.0) for name in _DROPOUTS},
    logits_bias=True,
  )


def config_from_xlmr(hf: dict, path: str = 'config.json') -> ModelConfig:
  """Returns the sizes of an XLM-R XL encoder; its decoder is a placeholder."""
  file = _ConfigFile(hf, path)
  file.check_fixed(hidden_act='gelu', position_embedding_type='absolute')
  sizes = file.get_sizes(_XLMR_SIZES)
  # The table of positions begins with rows of padding, which are not counted.
  sizes['positions'] -= sizes['pad_id'] + 1
  norm_eps = file.get_float('layer_norm_eps', 1e-5)
  return file.make_config(**sizes, decoder_layers=1, norm_eps=norm_eps)


def explain_no_format(config: ModelConfig) -> str | None:
  """Returns why no Hugging Face class computes what a model does, or None."""
  if config.norm == 'standard':
    fixed = {'norm_eps': 1e-5, 'position_offset': 0, 'token_types': 0}
    kind = "of norm 'standard' Blenderbot is, which has"
  else:
    fixed = {'embed_scale': False}
    kind = "of norm 'uncentred' the released AlexaTM is, which has"
    if config.ties == 'encoder_head':
      fixed['ties'] = 'all'
  fixed |= {
    'activation': 'gelu', 'embedding_norm': False,
    'position_embedding': 'learned', 'encoder_position_offset': 0,
  }  # fmt: skip
  for name, value in fixed.items():
    if (found := getattr(config, name)) != value:
      return f'model.Config.{name} = {found!r}: {kind} {value!r}'
  return None


def config_to_hf(config: ModelConfig) -> dict:
  """Returns the config.json of the class that computes what a model does.

  Raises ValueError where there is none, see `explain_no_format`.
  """
  if why := explain_no_format(config):
    raise ValueError(f'{why}. No Hugging Face class computes this model')
  standard = config.norm == 'standard'
  return (_write_blenderbot if standard else _write_alexatm)(config)


def _write_blenderbot(config: ModelConfig) -> dict:
  tied = config.ties == 'all'
  return {
    'model_type': 'blenderbot',
    'architectures': ['BlenderbotForConditionalGeneration'],
    'is_encoder_decoder': True,
    **{key: getattr(config, name) for name, key in _SIZES.items()},
    'bos_token_id': config.start_id,
    'activation_function': 'gelu',
    'scale_embedding': config.embed_scale,
    'tie_word_embeddings': tied,
    **({} if tied else {TIES_FIELD: config.ties}),
    **{name: getattr(config, name) for name in _DROPOUTS},
    # Else it would decode as a chat model does.
    'forced_eos_token_id': None,
    'encoder_no_repeat_ngram_size': 0,
  }


def _write_alexatm(config: ModelConfig) -> dict:
  tied = {ties: key for key, ties in _TIES.items()}[config.ties]
  sizes = {key: getattr(config, name) for name, key in _SIZES.items()}
  return {
    'model_type': 'alexatm',
    'architectures': ['AlexaTMSeq2SeqForConditionalGeneration'],
    'is_encoder_decoder': True,
    **sizes,
    **{twin: sizes[key] for twin, key in _TWINS.items()},
    'bos_token_id': config.start_id,
    'hidden_act': 'gelu',
    'extra_pos_embeddings': config.position_offset,
    'type_vocab_size': max(1, config.token_types),
    'layer_norm_eps': config.norm_eps,
    'fp32_cast_layer_norm': config.norm_float32,
    'fp32_cast_query_key': True if config.scores_float32 else None,
    'share_embeddings': tied[0],
    'tie_word_embeddings': tied[1],
    **{name: getattr(config, name) for name in _DROPOUTS},
    'hidden_dropout_prob': config.dropout,
    'attention_probs_dropout_prob': config.attention_dropout,
  }
