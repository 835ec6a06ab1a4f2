"""How Hugging Face classes name our parameters and our configuration."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from atm.messages import did_you_mean
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
  return make_xlmr_layout(keys) if kind == XLMR else LAYOUTS[kind]


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


def _read_sizes(hf: dict, sizes: Mapping[str, str]) -> dict[str, int]:
  """Returns fields of Config; raises WeightsError where one is no integer."""
  for key in sizes.values():
    if not isinstance(hf.get(key), int):
      raise WeightsError(
        f'config.json: {key} is {hf.get(key, "missing")!r}, expected int'
      )
  return {name: hf[key] for name, key in sizes.items()}


def _check_fixed(hf: dict, **fixed: str) -> None:
  """Raises WeightsError where a field has a value that no Config stands for."""
  for key, value in fixed.items():
    if hf.get(key, value) != value:
      raise WeightsError(
        f'config.json: {key} = {hf[key]!r}: only {value!r} is supported'
      )


def _config_from_alexatm(hf: dict) -> dict:
  # transformers' 'gelu' is the exact one, by erf.
  _check_fixed(hf, hidden_act='gelu', position_embedding_type='absolute')
  for twin, key in _TWINS.items():
    if hf.get(twin, hf.get(key)) != hf.get(key):
      raise WeightsError(
        f'config.json: {twin} = {hf[twin]}, but {key} = {hf.get(key)}'
      )
  tied = hf.get('share_embeddings', False), hf.get('tie_word_embeddings', True)
  return dict(
    token_types=hf.get('type_vocab_size', 0),
    position_offset=hf.get('extra_pos_embeddings', 2),
    ties=_TIES[bool(tied[0]), bool(tied[1])],
    norm='uncentred',
    norm_eps=float(hf.get('layer_norm_eps', 1e-12)),
    norm_float32=bool(hf.get('fp32_cast_layer_norm', False)),
    scores_float32=hf.get('fp32_cast_query_key') is not None,
  )


def _config_from_blenderbot(hf: dict) -> dict:
  _check_fixed(hf, activation_function='gelu')
  return dict(
    embed_scale=bool(hf.get('scale_embedding', False)),
    ties='all' if hf.get('tie_word_embeddings', True) else 'embeddings',
    norm_eps=1e-5,  # of torch.nn.LayerNorm; config.json has no field for it
  )


def get_model_type(hf: dict, known: Collection[str] = tuple(LAYOUTS)) -> str:
  """Returns the model_type of a config.json; raises WeightsError if unknown."""
  name = str(hf.get('model_type'))
  if name not in known:
    raise WeightsError(
      f'config.json: model_type = {name!r}.' + did_you_mean(name, known)
    )
  return name


def config_from_hf(hf: dict) -> ModelConfig:
  """Returns the float32 Config of a config.json, or raises WeightsError."""
  is_alexatm = get_model_type(hf) == 'alexatm'
  return ModelConfig(
    **(_config_from_alexatm if is_alexatm else _config_from_blenderbot)(hf),
    **_read_sizes(hf, _SIZES),
    **{name: float(hf.get(name, 0.0)) for name in _DROPOUTS},
    logits_bias=True,
    dtype='float32',
  )


def config_from_xlmr(hf: dict) -> ModelConfig:
  """Returns the sizes of an XLM-R XL encoder; its decoder is a placeholder."""
  _check_fixed(hf, hidden_act='gelu', position_embedding_type='absolute')
  sizes = _read_sizes(hf, _XLMR_SIZES)
  # The table of positions begins with rows of padding, which are not counted.
  sizes['positions'] -= sizes['pad_id'] + 1
  norm_eps = float(hf.get('layer_norm_eps', 1e-5))
  return ModelConfig(
    **sizes, decoder_layers=1, norm_eps=norm_eps, dtype='float32'
  )


def config_to_hf(config: ModelConfig) -> dict:
  """Returns AlexaTM's config.json; raises ValueError for ties that it lacks."""
  tied = {ties: key for key, ties in _TIES.items()}.get(config.ties)
  if tied is None:
    raise ValueError(
      f'Config.ties = {config.ties!r} has no Hugging Face format'
    )
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
