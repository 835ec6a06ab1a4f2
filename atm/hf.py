"""Hugging Face folders to parameters and back.

A folder holds config.json, weights (safetensors or .bin, whole or in shards
with an index.json) and perhaps a SentencePiece model. A `Layout` is the table
between the names of one Hugging Face class and ours. Reading checks every key,
shape and dtype first, and then makes one stacked parameter at a time, so host
memory stays near the largest of them.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from atm.model import Config
from atm.sharding import did_you_mean
from atm.torch_file import TorchFile

FLOATS = {
  np.dtype(np.float32): 'F32',
  np.dtype(np.float16): 'F16',
  np.dtype(ml_dtypes.bfloat16): 'BF16',
}
INDEXES = ('model.safetensors.index.json', 'pytorch_model.bin.index.json')
WHOLE = ('model.safetensors', 'pytorch_model.bin')


class WeightsError(ValueError):
  """Weights that are not what their config.json says; names the key."""


# --- The files of a folder


class _SafeTensors:
  """A .safetensors file, by the interface of TorchFile."""

  def __init__(self, path: str):
    self._path = path
    self._about: dict[str, tuple] = {}
    with self._open() as f:
      for key in f.keys():
        about = f.get_slice(key)
        self._about[key] = tuple(about.get_shape()), about.get_dtype()

  def _open(self):
    import safetensors

    try:
      return safetensors.safe_open(self._path, 'numpy')
    except safetensors.SafetensorError as e:
      raise WeightsError(f'{self._path} is damaged: {e}') from e

  def keys(self) -> list[str]:
    return list(self._about)

  def shape(self, key: str) -> tuple[int, ...]:
    return self._about[key][0]

  def dtype(self, key: str) -> Any:
    name = self._about[key][1]
    return next((d for d, n in FLOATS.items() if n == name), name)

  def read(self, key: str) -> np.ndarray:
    # Opened anew each time: a file kept mapped would stay in memory as far as
    # it has been read.
    with self._open() as f:
      return f.get_tensor(key)


class Folder:
  """The tensors of all weight files of a Hugging Face folder."""

  def __init__(self, directory: str):
    """Opens the files; reads no tensor.

    Raises:
      FileNotFoundError: no weights, or a shard is missing.
      WeightsError: a damaged file, a key in two files, an index that does not
        match its files.
    """
    self.directory = directory
    self._where: dict[str, Any] = {}
    for path, expected in self._files().items():
      if not os.path.exists(path):
        raise FileNotFoundError(f'{path} is missing: the index names it')
      opened = (TorchFile if path.endswith('.bin') else _SafeTensors)(path)
      for key in opened.keys():
        if key in self._where:
          raise WeightsError(f'{key!r} is in two files of {directory}')
        self._where[key] = opened
      for key in expected - set(opened.keys()):
        raise WeightsError(f'{path} lacks {key!r}, which the index puts there')

  def _files(self) -> dict[str, set[str]]:
    """Path -> the keys that an index expects in it."""
    for name, whole in zip(INDEXES, WHOLE, strict=True):
      path = os.path.join(self.directory, whole)
      if os.path.exists(path):
        return {path: set()}
      path = os.path.join(self.directory, name)
      if os.path.exists(path):
        files: dict[str, set[str]] = {}
        for key, file in read_json(path)['weight_map'].items():
          if os.path.basename(file) != file:
            raise WeightsError(f'{path}: {file!r} is not a file of the folder')
          files.setdefault(os.path.join(self.directory, file), set()).add(key)
        return files
    raise FileNotFoundError(
      f'no weights in {self.directory!r}: expected {", ".join(WHOLE)}, or '
      'either in shards with an index.json'
    )

  def keys(self) -> set[str]:
    return set(self._where)

  def shape(self, key: str) -> tuple[int, ...]:
    return self._where[key].shape(key)

  def dtype(self, key: str):
    return self._where[key].dtype(key)

  def read(self, key: str) -> np.ndarray:
    return self._where[key].read(key)


def read_json(path: str) -> dict:
  """A JSON object; raises WeightsError where it is none."""
  try:
    with open(path, encoding='utf-8') as f:
      value = json.load(f)
  except (UnicodeDecodeError, json.JSONDecodeError) as e:
    raise WeightsError(f'{path} is not JSON: {e}') from e
  if not isinstance(value, dict):
    raise WeightsError(f'{path}: expected a JSON object')
  return value


# --- The names of two Hugging Face classes


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


def xlmr_layout(keys: Iterable[str]) -> Layout:
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


def alexatm_json(config: Config) -> dict:
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


def model_type(hf: dict) -> str:
  """'alexatm' or 'blenderbot'; raises WeightsError for another."""
  name = str(hf.get('model_type'))
  if name not in LAYOUTS:
    raise WeightsError(
      f'config.json: model_type = {name!r}.' + did_you_mean(name, LAYOUTS)
    )
  return name


def config_of(hf: dict, dtype: str = 'float32') -> Config:
  """The Config of a config.json, whose every field that matters is honoured.

  Raises:
    WeightsError: a field is missing, or asks for what this model has not.
  """
  make = {'alexatm': _alexatm_config, 'blenderbot': _blenderbot_config}
  return Config(**make[model_type(hf)](hf), dtype=dtype)


def xlmr_config(hf: dict) -> Config:
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


# --- Reading


def flat(tree) -> dict[tuple[str, ...], Any]:
  """A nested dict of parameters by path."""
  return {
    tuple(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def nested(leaves: Mapping[tuple[str, ...], Any]) -> dict:
  """The inverse of `flat`."""
  tree: dict = {}
  for path, leaf in leaves.items():
    node = tree
    for name in path[:-1]:
      node = node.setdefault(name, {})
    node[path[-1]] = leaf
  return tree


def their_shape(path, shape: tuple[int, ...], count: int) -> tuple[int, ...]:
  """The shape of one of the `count` tensors of a parameter."""
  stacked = len(path) > 2 and path[1] == 'layers'
  shape = shape[1:] if stacked else shape
  if path == ('logits_bias',):
    return (1, *shape)
  return tuple(reversed(shape)) if path[-1] == 'kernel' else tuple(shape)


class Reader:
  """Checked access to a folder's weights, one of our parameters at a time."""

  def __init__(self, folder: Folder, layout: Layout, abstract: dict):
    """Checks every key, shape and dtype; reads nothing yet.

    Args:
      folder: the weights.
      layout: their names.
      abstract: our parameters, with shapes.

    Raises:
      WeightsError: a key is missing, left over or of the wrong shape or dtype.
    """
    self.folder, self.layout = folder, layout
    self.abstract = flat(abstract)
    left = folder.keys() - set(layout.ignored)
    for path, like in self.abstract.items():
      keys = layout.keys(path, like.shape)
      for key in keys:
        self._check(key, their_shape(path, like.shape, len(keys)), keys[0])
      left -= set(keys)
    for path in self.abstract:
      left -= self._aliases(path, left)
    if left:
      raise WeightsError(
        f'{folder.directory}: {len(left)} keys that this model has no place '
        f'for, such as {sorted(left)[0]!r}'
      )

  def _check(self, key: str, shape: tuple[int, ...], first: str) -> None:
    folder = self.folder
    if key not in folder.keys():
      raise WeightsError(
        f'{folder.directory} lacks {key!r}.' + did_you_mean(key, folder.keys())
      )
    if folder.shape(key) != shape:
      raise WeightsError(
        f'{key!r} has shape {folder.shape(key)}, expected {shape}'
      )
    dtype = folder.dtype(key)
    if dtype not in FLOATS:
      raise WeightsError(
        f'{key!r} is {dtype}, expected float32, bfloat16 or float16'
      )
    if dtype != folder.dtype(first):
      raise WeightsError(
        f'{key!r} is {dtype}, but {first!r} is {folder.dtype(first)}'
      )

  def _aliases(self, path, left: set[str]) -> set[str]:
    """Keys of tied copies; raises WeightsError where one differs."""
    if len(path) > 1:
      return set()
    found = left & set(self.layout.aliases.get(path[0], ()))
    if found:
      own = self.folder.read(self.layout.tables[path[0]])
      for key in found:
        if not np.array_equal(own, self.folder.read(key)):
          raise WeightsError(
            f'{key!r} differs from {self.layout.tables[path[0]]!r}, but '
            'config.json says that they are tied'
          )
    return found

  def dtype(self, path) -> np.dtype:
    like = self.abstract[path]
    return self.folder.dtype(self.layout.keys(path, like.shape)[0])

  def read(self, path) -> np.ndarray:
    """One parameter, in our shape and the folder's dtype."""
    like = self.abstract[path]
    keys = self.layout.keys(path, like.shape)
    turn = np.transpose if path[-1] == 'kernel' else np.asarray
    if len(path) == 1 or path[1] != 'layers':
      return turn(self.folder.read(keys[0])).reshape(like.shape)
    out = aligned(like.shape, self.dtype(path))
    for i, key in enumerate(keys):
      out[i] = turn(self.folder.read(key))
    return out

  def arrays(self) -> Iterator[tuple[tuple[str, ...], jax.Array]]:
    """(path, sharded array), one after the other."""
    for path, like in self.abstract.items():
      # No local name holds an array while the next one is made.
      yield path, put(self.read(path), like.sharding)

  def bytes(self) -> dict[tuple[str, ...], int]:
    return {
      path: int(np.prod(like.shape)) * np.dtype(self.dtype(path)).itemsize
      for path, like in self.abstract.items()
    }


def aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
  """An empty array at a multiple of 64 bytes, which JAX's CPU need not copy."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  raw = np.empty(size + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + size].view(dtype).reshape(shape)


def put(value: np.ndarray, sharding) -> jax.Array:
  """A sharded array, on one CPU device without a copy."""
  if sharding.num_devices > 1:
    return jax.device_put(value, sharding)
  (device,) = sharding.device_set
  whole = jax.device_put(value, device, may_alias=True)
  return jax.make_array_from_single_device_arrays(
    value.shape, sharding, [whole]
  )


def find_tokenizer(directory: str) -> str | None:
  """The SentencePiece model of a folder, if it has one."""
  found = sorted(
    glob.glob(os.path.join(directory, '*.model'))
    + glob.glob(os.path.join(directory, '*.spm'))
  )
  return found[0] if found else None


# --- Writing


def write_shards(
  directory: str, tensors: Mapping[str, tuple], read, shard_bytes: int
) -> None:
  """Writes safetensors in shards, with an index where there are several.

  Args:
    directory: the folder.
    tensors: key -> (shape, dtype), in the order to write.
    read: key -> array.
    shard_bytes: greatest size of a shard; a larger tensor has its own.
  """
  import safetensors.numpy

  shards: list[list[str]] = [[]]
  size = total = 0
  for key, (shape, dtype) in tensors.items():
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    total += n
    if size + n > shard_bytes and shards[-1]:
      shards.append([])
      size = 0
    shards[-1].append(key)
    size += n
  where = {}
  for number, keys in enumerate(shards, 1):
    name = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    name = name if len(shards) > 1 else WHOLE[0]
    arrays = {key: np.ascontiguousarray(read(key)) for key in keys}
    path = os.path.join(directory, name)
    safetensors.numpy.save_file(arrays, path, metadata={'format': 'pt'})
    where.update(dict.fromkeys(keys, name))
  if len(shards) > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': where}
    with open(os.path.join(directory, INDEXES[0]), 'w') as f:
      json.dump(index, f, indent=1)
