"""config.json of Hugging Face classes, to our configuration and back."""

from collections.abc import Mapping
from typing import NamedTuple

from atm import fileio
from atm.checkpoint.hf_keys import (
  TIED_COPIES,
  TIES_FIELD,
  WeightsError,
  get_model_type,
)
from atm.messages import quote
from atm.model.config import CONFIG_CHOICES, ModelConfig

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
# Sizes of tables, which may have grown since a model was imported.
_RESIZED = ('vocab_size', 'positions')
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
# Other names of sizes, which transformers would take instead.
_BART_TWINS = {
  'num_hidden_layers': 'encoder_layers',
  'hidden_size': 'd_model',
  'num_attention_heads': 'encoder_attention_heads',
}
UNCENTRED = {
  'embed_scale': False,
  'activation': 'gelu',
  'embedding_norm': False,
  'position_embedding': 'learned',
  'encoder_position_offset': 0,
}


class BartClass(NamedTuple):
  """A class of the BART family with norms in front, as transformers has it."""

  name: str  # of the class, without ForConditionalGeneration
  model: Mapping[str, object]  # fields of Config that it fixes
  defaults: Mapping[str, object]  # of fields that config.json need not have
  # Fields of early folders with the only values that the class computes.
  fixed: Mapping[str, bool]

  @property
  def architecture(self) -> str:
    return f'{self.name}ForConditionalGeneration'


_LEARNED = {
  'embedding_norm': False,
  'position_embedding': 'learned',
  'position_offset': 0,
  'encoder_position_offset': 0,
}
_DROPOUT = {'dropout': 0.1}
_NORMS = {'normalize_before': True, 'add_final_layer_norm': True}
BART_CLASSES = {
  'blenderbot': BartClass(
    'Blenderbot', _LEARNED, {'activation_function': 'gelu'}, {}
  ),
  'mbart': BartClass(
    'MBart',
    {
      **_LEARNED,
      'embedding_norm': True,
      'position_offset': 2,
      'encoder_position_offset': 2,
    },
    {'activation_function': 'gelu', **_DROPOUT},
    {
      **_NORMS,
      'normalize_embedding': True,
      'static_position_embeddings': False,
    },
  ),
  'm2m_100': BartClass(
    'M2M100',
    {
      **_LEARNED,
      'position_embedding': 'sinusoidal_fairseq',
      'logits_bias': False,
    },
    {
      'activation_function': 'relu',
      'scale_embedding': True,
      'decoder_start_token_id': 2,
      'attention_dropout': 0.1,
      **_DROPOUT,
    },
    {**_NORMS, 'normalize_embedding': False},
  ),
  'pegasus': BartClass(
    'Pegasus',
    {**_LEARNED, 'position_embedding': 'sinusoidal'},
    {
      'activation_function': 'gelu',
      'decoder_start_token_id': 0,
      'pad_token_id': 0,
      'eos_token_id': 1,
      **_DROPOUT,
    },
    {
      **_NORMS,
      'normalize_embedding': False,
      'static_position_embeddings': True,
    },
  ),
}


def fixed_fields(kind: str, pad_id: int) -> dict:
  """Returns the fields of Config that a class of the BART family fixes."""
  fields = dict(BART_CLASSES[kind].model)
  if kind == 'm2m_100':  # the rows up to padding's are not positions
    fields |= {'position_offset': pad_id + 1}
    fields |= {'encoder_position_offset': pad_id + 1}
  return fields


# --- Reading


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

  def check_fixed(self, **fixed) -> None:
    """Raises WeightsError where a field has a value that no Config has."""
    for key, value in fixed.items():
      if (found := self.fields.get(key, value)) != value:
        raise self.error(f'{key} = {quote(found)}: only {value!r} is supported')

  def check_twins(self, twins: Mapping[str, str]) -> None:
    """Raises WeightsError where a size has two values under its two names."""
    for twin, key in twins.items():
      size = self.get(key, int)
      if (found := self.get(twin, int, size)) != size:
        raise self.error(f'{twin} = {found}, but {key} = {size}')

  def make_config(self, **values) -> ModelConfig:
    """Returns a float32 Config; raises WeightsError for values it refuses."""
    try:
      return ModelConfig(**values, dtype='float32')
    except ValueError as e:
      raise self.error(e) from e


def _read_alexatm(file: _ConfigFile) -> dict:
  # transformers' 'gelu' is the exact one, by erf.
  file.check_fixed(hidden_act='gelu', position_embedding_type='absolute')
  file.check_twins(_TWINS)
  share = file.get('share_embeddings', bool, False)
  tie = file.get('tie_word_embeddings', bool, True)
  cast = file.get('fp32_cast_query_key', (str, bool, type(None)), None)
  return dict(
    token_types=file.get('type_vocab_size', int, 0),
    position_offset=file.get('extra_pos_embeddings', int, 2),
    logits_bias=True,
    ties=_TIES[share, tie],
    norm='uncentred',
    norm_eps=file.get_float('layer_norm_eps', 1e-12),
    norm_float32=file.get('fp32_cast_layer_norm', bool, False),
    scores_float32=cast is not None,
  )


def _read_bart(file: _ConfigFile, kind: str) -> dict:
  family = BART_CLASSES[kind]
  file.check_fixed(is_encoder_decoder=True, **family.fixed)
  file.check_twins(_BART_TWINS)
  activation = file.get('activation_function', str)
  if activation not in (known := CONFIG_CHOICES['activation']):
    raise file.error(
      f'activation_function = {quote(activation)}: only '
      f'{" and ".join(map(repr, known))} are supported'
    )
  tie = file.get('tie_word_embeddings', bool, True)
  ties = file.get(TIES_FIELD, str, 'all' if tie else 'embeddings')
  if TIES_FIELD in file.fields and (tie or ties not in TIED_COPIES):
    known = f'one of {[*TIED_COPIES]}, and tie_word_embeddings false'
    raise file.error(f'{TIES_FIELD} = {quote(ties)}: expected {known}')
  return {
    'embed_scale': file.get('scale_embedding', bool, False),
    'ties': ties,
    'norm_eps': 1e-5,  # of torch.nn.LayerNorm; config.json has no such field
    'activation': activation,
    'logits_bias': True,
    **fixed_fields(kind, file.get('pad_token_id', int)),
  }


def config_from_hf(hf: dict, path: str = 'config.json') -> ModelConfig:
  """Returns the float32 Config of a config.json, or raises WeightsError."""
  kind = get_model_type(hf, path=path)
  if kind == 'alexatm':
    file = _ConfigFile(hf, path)
    fields = _read_alexatm(file)
  else:
    file = _ConfigFile({**BART_CLASSES[kind].defaults, **hf}, path)
    # mBART-25 starts with a language; without one, transformers with this id.
    if file.fields.get('decoder_start_token_id') is None:
      start = {'decoder_start_token_id': hf.get('bos_token_id')}
      file = file._replace(fields={**file.fields, **start})
    fields = _read_bart(file, kind)
  return file.make_config(
    **fields,
    **file.get_sizes(_SIZES),
    **{name: file.get_float(name, 0.0) for name in _DROPOUTS},
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


# --- Writing


def find_bart_class(config: ModelConfig) -> str:
  """Returns the model_type of the family's class that is nearest to a model."""
  if config.position_embedding == 'sinusoidal_fairseq':
    return 'm2m_100'
  if config.position_embedding == 'sinusoidal':
    return 'pegasus'
  return 'mbart' if config.embedding_norm else 'blenderbot'


def explain_no_format(config: ModelConfig) -> str | None:
  """Returns why no Hugging Face class computes what a model does, or None."""
  if not config.has_encoder:
    return (
      f'model.Config.architecture = {config.architecture!r}: the classes that '
      'are written here are encoder-decoders'
    )
  if config.norm == 'standard':
    kind = find_bart_class(config)
    fixed = {
      'norm_eps': 1e-5,
      'token_types': 0,
      **fixed_fields(kind, config.pad_id),
    }
    near = f"of norm 'standard' {BART_CLASSES[kind].name} is, which has"
  else:
    fixed = dict(UNCENTRED)
    near = "of norm 'uncentred' the released AlexaTM is, which has"
    if config.ties == 'encoder_head':
      fixed['ties'] = 'all'
  for name, value in fixed.items():
    if (found := getattr(config, name)) != value:
      return f'model.Config.{name} = {found!r}: {near} {value!r}'
  return None


def config_to_hf(config: ModelConfig) -> dict:
  """Returns the config.json of the class that computes what a model does.

  Raises ValueError where there is none, see `explain_no_format`.
  """
  if why := explain_no_format(config):
    raise ValueError(f'{why}. No Hugging Face class computes this model')
  standard = config.norm == 'standard'
  return (_write_bart if standard else _write_alexatm)(config)


def _write_bart(config: ModelConfig) -> dict:
  kind, tied = find_bart_class(config), config.ties == 'all'
  return {
    'model_type': kind,
    'architectures': [BART_CLASSES[kind].architecture],
    'is_encoder_decoder': True,
    **{key: getattr(config, name) for name, key in _SIZES.items()},
    'bos_token_id': config.start_id,
    'activation_function': config.activation,
    'scale_embedding': config.embed_scale,
    'tie_word_embeddings': tied,
    **({} if tied else {TIES_FIELD: config.ties}),
    **{name: getattr(config, name) for name in _DROPOUTS},
    # M2M-100 has others by default.
    'encoder_layerdrop': 0.0,
    'decoder_layerdrop': 0.0,
    # Else it would decode as a chat model or a summariser does.
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


def update_sizes(hf: dict, config: ModelConfig) -> dict:
  """Returns a config.json with as many table rows as a model has by now."""
  rows = {_SIZES[name]: getattr(config, name) for name in _RESIZED}
  return {**hf, **rows}


def choose_hf_config(config: ModelConfig, meta: Mapping) -> dict:
  """Returns the config.json that a model has, or that it is exported with.

  Raises ValueError where no Hugging Face class computes the model.
  """
  found = meta.get('hf_config') or config_to_hf(config)
  return update_sizes(found, config)
