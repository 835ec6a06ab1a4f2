"""How Hugging Face classes name our parameters and our configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from atm.messages import did_you_mean
from atm.model.config import Config


class WeightsError(ValueError):
  """Weights that are not what their config.json says; names the key."""


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a Hugging Face class keeps our parameters.

  Attributes:
    tables: our name -> theirs, of arrays that stand alone.
    norms: stack -> its final norm.
    layers: stack -> prefix of layer {}.
    parts: stack -> our name within a layer -> theirs.
    aliases: our name -> other keys that hold the same matrix where it is tied.
    ignored: keys that hold nothing to learn.
  """

  tables: Mapping[str, str]
  norms: Mapping[str, str]
  layers: Mapping[str, str]
  parts: Mapping[str, Mapping[str, str]]
  aliases: Mapping[str, tuple[str, ...]]
  ignored: tuple[str, ...] = ()

  def keys(self, path: tuple[str, ...], shape: tuple[int, ...]) -> list[str]:
    """The keys that hold a parameter: one, or one a layer."""
    suffix = '.bias' if path[-1] == 'bias' else '.weight'
    if len(path) == 1:
      return [self.tables[path[0]]]
    if path[1] == 'norm':
      return [self.norms[path[0]] + suffix]
    name = self.parts[path[0]]['/'.join(path[2:-1])] + suffix
    return [f'{self.layers[path[0]].format(i)}.{name}' for i in range(shape[0])]


def _attention(ours: str, theirs: str) -> dict[str, str]:
  names = {'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj'}
  names['out'] = 'out_proj'
  return {f'{ours}/{k}': f'{theirs}.{v}' for k, v in names.items()}


_BART_DECODER = {
  **_attention('self_attention', 'self_attn'),
  'self_attention_norm': 'self_attn_layer_norm',
  **_attention('cross_attention', 'encoder_attn'),
  'cross_attention_norm': 'encoder_attn_layer_norm',
  'feed_forward_norm': 'final_layer_norm',
  'feed_forward/up': 'fc1',
  'feed_forward/down': 'fc2',
}
ROBERTA_ENCODER = {
  'attention/query': 'attention.self.query',
  'attention/key': 'attention.self.key',
  'attention/value': 'attention.self.value',
  'attention/out': 'attention.output.dense',
  'feed_forward/up': 'intermediate.dense',
  'feed_forward/down': 'output.dense',
}

ALEXATM = Layout(
  tables={
    'encoder_embedding': 'model.encoder.token_embeddings.weight',
    'encoder_positions': 'model.encoder.position_embeddings.weight',
    'encoder_types': 'model.encoder.token_type_embeddings.weight',
    'decoder_embedding': 'model.decoder.embed_tokens.weight',
    'decoder_positions': 'model.decoder.embed_positions.weight',
    'lm_head': 'lm_head.weight',
    'logits_bias': 'final_logits_bias',
  },
  norms={
    'encoder': 'model.encoder.pre_ln_encoder.layer_norm',
    'decoder': 'model.decoder.layernorm_output',
  },
  layers={
    'encoder': 'model.encoder.pre_ln_encoder.layer.{}',
    'decoder': 'model.decoder.layers.{}',
  },
  parts={
    'encoder': {
      **ROBERTA_ENCODER,
      'attention_norm': 'layer_norm',
      'feed_forward_norm': 'intermediate.layer_norm',
    },
    'decoder': _BART_DECODER,
  },
  aliases={
    'encoder_embedding': (
      'model.decoder.embed_tokens.weight',
      'lm_head.weight',
    ),
    'decoder_embedding': ('lm_head.weight',),
  },
  # `shared` may have been repointed by a change of vocabulary.
  ignored=('model.shared.weight', 'model.encoder.position_ids'),
)

BLENDERBOT = Layout(
  tables={
    'encoder_embedding': 'model.shared.weight',
    'encoder_positions': 'model.encoder.embed_positions.weight',
    'decoder_positions': 'model.decoder.embed_positions.weight',
    'lm_head': 'lm_head.weight',
    'logits_bias': 'final_logits_bias',
  },
  norms={
    'encoder': 'model.encoder.layer_norm',
    'decoder': 'model.decoder.layer_norm',
  },
  layers={
    'encoder': 'model.encoder.layers.{}',
    'decoder': 'model.decoder.layers.{}',
  },
  parts={
    'encoder': {
      **_attention('attention', 'self_attn'),
      'attention_norm': 'self_attn_layer_norm',
      'feed_forward_norm': 'final_layer_norm',
      'feed_forward/up': 'fc1',
      'feed_forward/down': 'fc2',
    },
    'decoder': _BART_DECODER,
  },
  aliases={
    'encoder_embedding': (
      'model.encoder.embed_tokens.weight',
      'model.decoder.embed_tokens.weight',
      'lm_head.weight',
    ),
  },
)

LAYOUTS = {'alexatm': ALEXATM, 'blenderbot': BLENDERBOT}

XLMR = 'xlm-roberta-xl'  # XL and XXL; an encoder only, see `warm_start`


def make_xlmr_layout(keys: Iterable[str]) -> Layout:
  """The layout of XLM-R XL's encoder, among the keys of a folder.

  Heads and buffers are ignored; all but the bare model has a prefix.
  """
  keys = set(keys)
  prefix = 'roberta.' if any(k.startswith('roberta.') for k in keys) else ''
  inner = prefix + 'embeddings.'
  apart = ('lm_head.', f'{prefix}pooler.', f'{inner}position_ids')
  return Layout(
    tables={
      'encoder_embedding': inner + 'word_embeddings.weight',
      'encoder_positions': inner + 'position_embeddings.weight',
      'encoder_types': inner + 'token_type_embeddings.weight',
    },
    norms={'encoder': prefix + 'encoder.LayerNorm'},
    layers={'encoder': prefix + 'encoder.layer.{}'},
    parts={
      'encoder': {
        **ROBERTA_ENCODER,
        'attention_norm': 'attention.self_attn_layer_norm',
        'feed_forward_norm': 'LayerNorm',
      },
    },
    aliases={},
    ignored=tuple(k for k in keys if k.startswith(apart)),
  )


def _need(hf: dict, name: str, kind=int):
  if name not in hf or (kind and not isinstance(hf[name], kind)):
    raise WeightsError(
      f'config.json: {name} is {hf.get(name, "missing")!r}, expected '
      f'{kind.__name__}'
    )
  return hf[name]


def _activation(hf: dict, name: str) -> None:
  if hf.get(name, 'gelu') != 'gelu':
    raise WeightsError(
      f'config.json: {name} = {hf[name]!r}: only the exact gelu is supported'
    )


def _common(hf: dict) -> dict:
  need = lambda name: _need(hf, name)
  return dict(
    vocab_size=need('vocab_size'),
    d_model=need('d_model'),
    decoder_layers=need('decoder_layers'),
    decoder_heads=need('decoder_attention_heads'),
    decoder_ff=need('decoder_ffn_dim'),
    positions=need('max_position_embeddings'),
    dropout=float(hf.get('dropout', 0.0)),
    attention_dropout=float(hf.get('attention_dropout', 0.0)),
    activation_dropout=float(hf.get('activation_dropout', 0.0)),
    logits_bias=True,
    pad_id=need('pad_token_id'),
    start_id=need('decoder_start_token_id'),
    end_id=need('eos_token_id'),
  )


def _alexatm_config(hf: dict) -> dict:
  _activation(hf, 'hidden_act')
  for twin, name in (
    ('num_hidden_layers', 'encoder_layers'),
    ('intermediate_size', 'encoder_ffn_dim'),
  ):
    if hf.get(twin, hf.get(name)) != hf.get(name):
      raise WeightsError(
        f'config.json: {twin} = {hf[twin]}, but {name} = {hf.get(name)}'
      )
  if hf.get('position_embedding_type', 'absolute') != 'absolute':
    raise WeightsError('config.json: position_embedding_type must be absolute')
  ties = {
    (False, False): 'none',
    (True, False): 'embeddings',
    (False, True): 'decoder_head',
    (True, True): 'all',
  }
  tied = hf.get('share_embeddings', False), hf.get('tie_word_embeddings', True)
  return dict(
    _common(hf),
    encoder_layers=_need(hf, 'encoder_layers'),
    encoder_heads=_need(hf, 'encoder_attention_heads'),
    encoder_ff=_need(hf, 'encoder_ffn_dim'),
    token_types=hf.get('type_vocab_size', 0),
    position_offset=hf.get('extra_pos_embeddings', 2),
    ties=ties[bool(tied[0]), bool(tied[1])],
    norm='uncentred',
    norm_eps=float(hf.get('layer_norm_eps', 1e-12)),
    norm_float32=bool(hf.get('fp32_cast_layer_norm', False)),
    scores_float32=hf.get('fp32_cast_query_key') is not None,
  )


def config_to_hf(config: Config) -> dict:
  """The inverse of `_alexatm_config`, for a model trained here."""
  c = config
  if c.ties == 'encoder_head':
    raise ValueError("Config.ties = 'encoder_head' has no Hugging Face format")
  return {
    'model_type': 'alexatm',
    'architectures': ['AlexaTMSeq2SeqForConditionalGeneration'],
    'is_encoder_decoder': True,
    'vocab_size': c.vocab_size,
    'd_model': c.d_model,
    'hidden_act': 'gelu',
    'encoder_layers': c.encoder_layers,
    'num_hidden_layers': c.encoder_layers,
    'encoder_attention_heads': c.encoder_heads,
    'encoder_ffn_dim': c.encoder_ff,
    'intermediate_size': c.encoder_ff,
    'decoder_layers': c.decoder_layers,
    'decoder_attention_heads': c.decoder_heads,
    'decoder_ffn_dim': c.decoder_ff,
    'max_position_embeddings': c.positions,
    'extra_pos_embeddings': c.position_offset,
    'type_vocab_size': max(1, c.token_types),
    'layer_norm_eps': c.norm_eps,
    'fp32_cast_layer_norm': c.norm_float32,
    'fp32_cast_query_key': True if c.scores_float32 else None,
    'share_embeddings': c.ties in ('embeddings', 'all'),
    'tie_word_embeddings': c.ties in ('decoder_head', 'all'),
    'dropout': c.dropout,
    'hidden_dropout_prob': c.dropout,
    'attention_dropout': c.attention_dropout,
    'attention_probs_dropout_prob': c.attention_dropout,
    'activation_dropout': c.activation_dropout,
    'pad_token_id': c.pad_id,
    'bos_token_id': c.start_id,
    'decoder_start_token_id': c.start_id,
    'eos_token_id': c.end_id,
  }


def _blenderbot_config(hf: dict) -> dict:
  _activation(hf, 'activation_function')
  return dict(
    _common(hf),
    encoder_layers=_need(hf, 'encoder_layers'),
    encoder_heads=_need(hf, 'encoder_attention_heads'),
    encoder_ff=_need(hf, 'encoder_ffn_dim'),
    embed_scale=bool(hf.get('scale_embedding', False)),
    ties='all' if hf.get('tie_word_embeddings', True) else 'embeddings',
    norm_eps=1e-5,
  )


def model_type(hf: dict, known: Collection[str] = tuple(LAYOUTS)) -> str:
  """Returns the model_type of a config.json; raises WeightsError if unknown."""
  name = str(hf.get('model_type'))
  if name not in known:
    raise WeightsError(
      f'config.json: model_type = {name!r}.' + did_you_mean(name, known)
    )
  return name


def config_from_hf(hf: dict, dtype: str = 'float32') -> Config:
  """The Config of a config.json, whose every field that matters is honoured.

  Raises:
    WeightsError: a field is missing, or asks for what this model has not.
  """
  make = {'alexatm': _alexatm_config, 'blenderbot': _blenderbot_config}
  return Config(**make[model_type(hf)](hf), dtype=dtype)


def config_from_xlmr(hf: dict) -> Config:
  """The Config of an XLM-R XL encoder; what it says of a decoder is void.

  Its position table has `pad_token_id + 1` rows more than `positions`, in
  front.

  Raises:
    WeightsError: a field is missing, or asks for what this model has not.
  """
  need = lambda name: _need(hf, name)
  _activation(hf, 'hidden_act')
  if hf.get('position_embedding_type', 'absolute') != 'absolute':
    raise WeightsError('config.json: position_embedding_type must be absolute')
  return Config(
    vocab_size=need('vocab_size'),
    d_model=need('hidden_size'),
    encoder_layers=need('num_hidden_layers'),
    encoder_heads=need('num_attention_heads'),
    encoder_ff=need('intermediate_size'),
    decoder_layers=1,
    decoder_heads=need('num_attention_heads'),
    positions=need('max_position_embeddings') - need('pad_token_id') - 1,
    token_types=need('type_vocab_size'),
    norm_eps=float(hf.get('layer_norm_eps', 1e-5)),
    dtype='float32',
    pad_id=need('pad_token_id'),
    start_id=need('bos_token_id'),
    end_id=need('eos_token_id'),
  )
