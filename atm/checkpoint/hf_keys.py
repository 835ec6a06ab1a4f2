"""How Hugging Face classes name our parameters."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from atm.messages import did_you_mean, quote


class WeightsError(ValueError):
  """Weights that are not what their config.json says; names the key."""


class StackKeys(NamedTuple):
  """Where a Hugging Face class keeps an encoder or a decoder."""

  norm: str  # prefix of the final norm
  layer: str  # prefix of layer {}
  parts: Mapping[str, str]  # our name within a layer -> theirs
  embedding_norm: str = ''  # prefix of the norm behind the embeddings


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
  zeros: tuple[str, ...] = ()  # our names of what is zero where it is not there
  # Keys of position tables that are computed here -> whether by fairseq's
  # formula. A stored table must be equal.
  computed: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  prefix: str = ''  # of keys, which a folder of the bare model lacks

  @property
  def stored_sinusoids(self) -> tuple[str, ...]:
    """The keys of computed tables that transformers expects in a folder."""
    return tuple(key for key, fairseq in self.computed.items() if not fairseq)

  def rename(self, tensors: Mapping[str, object]) -> dict:
    """Returns tensors with the keys of the model that has an LM head."""
    bare = not any(key.startswith(self.prefix) for key in tensors)
    prefix = self.prefix if bare else ''
    return {prefix + key: value for key, value in tensors.items()}

  def keys(self, path: tuple[str, ...], shape: tuple[int, ...]) -> list[str]:
    """Returns the keys that hold a parameter: one, or one a layer."""
    if len(path) == 1:
      return [self.tables[path[0]]]
    suffix = '.bias' if path[-1] == 'bias' else '.weight'
    stack = self.stacks[path[0]]
    if path[1] != 'layers':
      prefixes = {'norm': stack.norm, 'embedding_norm': stack.embedding_norm}
      return [prefixes[path[1]] + suffix]
    name = stack.parts['/'.join(path[2:-1])] + suffix
    return [f'{stack.layer.format(i)}.{name}' for i in range(shape[0])]


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
      f'model.{name}.layer_norm',
      f'model.{name}.layers.{{}}',
      parts,
      f'model.{name}.layernorm_embedding',
    )
    for name, parts in (('encoder', _BART_ENCODER), ('decoder', _BART_DECODER))
  },
  aliases={
    'encoder_embedding': ('model.encoder.embed_tokens.weight', *_TIED),
  },
  zeros=('logits_bias',),
  prefix='model.',
  # fairseq's notes of its version, in folders of 2020 and 2021.
  ignored=('model.encoder.version', 'model.decoder.version'),
)

_POSITIONS = [f'model.{x}.embed_positions.weight' for x in BLENDERBOT.stacks]
PEGASUS = dataclasses.replace(
  BLENDERBOT, computed=dict.fromkeys(_POSITIONS, False)
)
# M2M-100's table is in early folders only, and its logits have no bias.
M2M_100 = dataclasses.replace(
  BLENDERBOT,
  computed={f'{key}s': True for key in _POSITIONS},
  zeros=(),
)

# The BART family with norms in front, by model_type.
BART_LAYOUTS = {
  'blenderbot': BLENDERBOT,
  'mbart': BLENDERBOT,
  'm2m_100': M2M_100,
  'pegasus': PEGASUS,
}
LAYOUTS = {'alexatm': ALEXATM, **BART_LAYOUTS}
# Where the matrices of this family are not all one, which of them are: a field
# that transformers keeps and does not read.
TIES_FIELD = 'atm_ties'
TIED_COPIES = {
  'none': {},
  'embeddings': {'encoder_embedding': _TIED[:1]},
  'decoder_head': {'decoder_embedding': _TIED[1:]},
  'encoder_head': {'encoder_embedding': _TIED[1:]},
}
UNTIED_TABLES = {
  'encoder_embedding': 'model.encoder.embed_tokens.weight',
  'decoder_embedding': 'model.decoder.embed_tokens.weight',
}


def _make_untied_layout(layout: Layout, ties: str) -> Layout:
  """Returns a layout of three matrices, by our ties.

  transformers 5 reads the three apart where `tie_word_embeddings` is false.
  """
  return dataclasses.replace(
    layout,
    tables={**layout.tables, **UNTIED_TABLES},
    aliases=TIED_COPIES[ties],
    ignored=(*layout.ignored, 'model.shared.weight'),
  )


def get_layout(hf: dict) -> Layout:
  """Returns the layout of a config.json of one of LAYOUTS."""
  kind, ties = get_model_type(hf), hf.get(TIES_FIELD)
  if kind in BART_LAYOUTS and ties in TIED_COPIES:
    return _make_untied_layout(LAYOUTS[kind], ties)
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


def get_model_type(
  hf: dict,
  known: Collection[str] = tuple(LAYOUTS),
  path: str = 'config.json',
) -> str:
  """Returns the model_type of a config.json; raises WeightsError if unknown."""
  name = hf.get('model_type')
  if name == 'nllb-moe':
    raise WeightsError(
      f"{path}: model_type = 'nllb-moe' is NLLB-200's mixture of experts, "
      'another architecture: take a dense NLLB-200 (600M, 1.3B or 3.3B; '
      "model_type 'm2m_100')"
    )
  if not isinstance(name, str) or name not in known:
    near = did_you_mean(name if isinstance(name, str) else '', known, True)
    raise WeightsError(
      f'{path}: model_type = {quote(name)} is none that is read here.{near}'
    )
  return name
