"""Starts the encoder of a fresh model from a trained one.

The paper starts its encoder from a trained encoder, and the decoder's embedding
and the LM head from that one's embedding. The source is a MODEL_DIR, a Hugging
Face folder that can be imported (mBART, M2M-100, NLLB-200 and others), or one
of XLM-R XL or XXL, whose layers are the same but whose tokenizer, positions and
token types are not.

Letters: V vocabulary, D d_model, P positions, T token types.
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from atm.checkpoint import config_json, hf_folder, hf_keys, pretrained
from atm.data.vocabulary import SPECIAL_TOKENS, convert_xlmr
from atm.data.vocabulary_base import BaseVocabulary
from atm.model import embeddings
from atm.model.config import ModelConfig

# What must be the same for the layers to compute the same.
SHARED_FIELDS = (
  'encoder_layers', 'd_model', 'encoder_heads', 'encoder_ff', 'norm',
  'norm_eps', 'embed_scale', 'activation', 'embedding_norm',
  'position_embedding',
)  # fmt: skip
EMBEDDINGS = ('encoder_embedding', 'decoder_embedding', 'lm_head')
OTHER_TOKENIZERS = ('tokenizer.json', 'vocab.json', 'vocab.txt')


@dataclasses.dataclass(frozen=True)
class EncoderSource:
  """A trained encoder, read a parameter at a time.

  Attributes:
    directory: the folder.
    config: sizes and numerics; the decoder's do not matter.
    read: path of a parameter -> array in the shape that `config` gives it.
    pieces: piece -> row of the embedding; None: there is no tokenizer.
    sha256: of the vocabulary's file, where its rows are all of the embedding.
  """

  directory: str
  config: ModelConfig
  read: Callable[[tuple[str, ...]], np.ndarray]
  pieces: dict[str, int] | None
  sha256: str | None = None


# --- Sources


def open_source(directory: str) -> EncoderSource:
  """Opens a folder; reads its descriptions, and no tensors.

  Raises:
    FileNotFoundError: there is no model.
    ValueError: the folder is not sound, or of a kind that is not known.
  """
  path = os.path.join(directory, 'config.json')
  if os.path.exists(path):
    hf_config = hf_folder.read_json_object(path)
    known = (*hf_keys.LAYOUTS, hf_keys.XLMR)
    if hf_keys.get_model_type(hf_config, known, path) == hf_keys.XLMR:
      return _open_xlmr(directory, hf_config)
  try:
    model = pretrained.open_pretrained(directory)
  except FileNotFoundError as e:
    raise FileNotFoundError(f'INIT_ENCODER = {directory!r}: {e}') from e
  pretrained.check_float(model.meta, f'INIT_ENCODER = {directory!r}')
  config, vocabulary = model.config, model.vocabulary
  read = model.parameter_reader()
  if vocabulary is None:
    return EncoderSource(directory, config, read, None)
  pieces = index_pieces(vocabulary, config.vocab_size)
  return EncoderSource(directory, config, read, pieces, vocabulary.sha256)


def _open_xlmr(directory: str, hf_config: dict) -> EncoderSource:
  """Opens a Hugging Face folder of XLM-R XL or XXL, bare or with a head."""
  path = os.path.join(directory, 'config.json')
  config = config_json.config_from_xlmr(hf_config, path)
  offset = config.pad_id + 1
  names = ('encoder', 'encoder_embedding', 'encoder_types')
  tree = pretrained.shapes_on_one_device(config)
  tree = {name: tree[name] for name in names if name in tree}
  rows = (config.positions + offset, config.d_model)
  tree['encoder_positions'] = jax.ShapeDtypeStruct(rows, np.float32)
  reader = hf_folder.WeightReader(directory, hf_config, tree)

  def read(path):
    whole = reader.read(path)
    # Rows of padding stand in front: position n is row n + offset.
    return whole[offset:] if path == ('encoder_positions',) else whole

  pieces = _read_xlmr_pieces(directory, config)
  return EncoderSource(directory, config, read, pieces)


def _read_xlmr_pieces(
  directory: str, config: ModelConfig
) -> dict[str, int] | None:
  """Returns piece -> row of XLM-R's embedding, or None without a tokenizer."""
  path = _find_sentencepiece(directory)
  if path is None:
    return None
  with tempfile.TemporaryDirectory() as scratch:
    vocabulary = convert_xlmr(path, scratch)
  count = vocabulary.size - 2  # without our [CLM] and [DOC]
  if count > config.vocab_size:
    raise hf_keys.WeightsError(
      f'{path} has {count} pieces with <pad> and <mask>, more than vocab_size '
      f'= {config.vocab_size} in config.json'
    )
  # The embedding may have more rows, but they are nobody's.
  return index_pieces(vocabulary, count)


def _find_sentencepiece(directory: str) -> str | None:
  """Returns XLM-R's SentencePiece file, or None where there is none."""
  path = hf_folder.find_tokenizer(directory, {})
  # The rows of another tokenizer would pass for ours.
  for name in OTHER_TOKENIZERS if path is None else ():
    if os.path.exists(os.path.join(directory, name)):
      raise hf_keys.WeightsError(
        f'{directory!r} has {name}, but no SentencePiece model, by which alone '
        'rows of the embedding can be matched: add it'
      )
  return path


def check_encoder(config: ModelConfig, source: EncoderSource) -> None:
  """Raises ValueError where a source does not fit; reads no tensors."""
  names = {*SHARED_FIELDS}
  if source.config.position_embedding != 'learned':
    if config.position_embedding == 'learned':
      names -= {'position_embedding'}  # a table can begin as sinusoids
    else:
      names |= {'encoder_position_offset'}
  theirs = {
    name: getattr(source.config, name)
    for name in (*SHARED_FIELDS, 'encoder_position_offset')
    if name in names
  }
  wrong = {k: v for k, v in theirs.items() if getattr(config, k) != v}
  if wrong:
    here = ', '.join(f'Config.{k} = {getattr(config, k)!r}' for k in wrong)
    there = ', '.join(map(repr, wrong.values()))
    bindings = ', '.join(f'model.Config.{k} = {v!r}' for k, v in wrong.items())
    raise ValueError(
      f'{here}, but {there} in INIT_ENCODER = {source.directory!r}: set '
      f'{bindings}, or take another encoder'
    )
  rows = source.config.vocab_size
  if source.pieces is None and rows != config.vocab_size:
    raise ValueError(
      f'Config.vocab_size = {config.vocab_size}, but the embedding in '
      f'INIT_ENCODER = {source.directory!r} has {rows} rows and no tokenizer '
      f'to match them by: put its tokenizer there, or set '
      f'model.Config.vocab_size = {rows}'
    )


# --- Rows of the embedding


def index_pieces(vocabulary: BaseVocabulary, rows: int) -> dict[str, int]:
  """Returns piece -> id below `rows`; special pieces by SPECIAL_TOKENS."""
  pieces = vocabulary.pieces(range(vocabulary.size))
  ids = {piece: i for i, piece in enumerate(pieces)}
  for name, i in vocabulary.special_ids().items():
    del ids[pieces[i]]
    ids[name] = i
  return {piece: i for piece, i in ids.items() if i < rows}


def match_rows(
  source: EncoderSource,
  config: ModelConfig,
  vocabulary: BaseVocabulary,
  log=print,
) -> np.ndarray:
  """Returns [V] int64: the source's row for each of ours, -1 for none."""
  V = config.vocab_size
  same = vocabulary.sha256 == source.sha256
  if source.pieces is None or (same and source.config.vocab_size == V):
    why = 'it has the same vocabulary' if same else 'it has no tokenizer'
    log(f'embedding: {why}, all {V:,} rows copied as they stand')
    return np.arange(V)
  rows = np.full(V, -1)
  special = 0
  for piece, i in index_pieces(vocabulary, V).items():
    rows[i] = source.pieces.get(piece, -1)
    special += piece in SPECIAL_TOKENS and rows[i] >= 0
  matched = (rows >= 0).sum()
  log(
    f'embedding: {matched:,} of {V:,} rows matched by piece, {special} of '
    f'them special pieces by role; the other {V - matched:,} stay fresh'
  )
  return rows


def _merge_rows(fresh: jax.Array, table: np.ndarray, rows: np.ndarray):
  """Returns `table[rows]`, sharded as `fresh`; `fresh` where rows are -1."""
  at = np.maximum(rows, 0)
  cut = lambda i: np.array(table[:, i[1]][at[i[0]]], fresh.dtype)
  taken = jax.make_array_from_callback(fresh.shape, fresh.sharding, cut)
  merge = jax.jit(jnp.where, out_shardings=fresh.sharding)
  return merge(rows[:, None] >= 0, taken, fresh)


# --- Positions and token types


def _read_positions(source: EncoderSource, config: ModelConfig) -> np.ndarray:
  """Returns what a source adds at its positions, [P, D] float32."""
  kind, offset = (
    source.config.position_embedding,
    source.config.encoder_position_offset,
  )
  if kind == 'learned':
    return source.read(('encoder_positions',))[offset:].astype(np.float32)
  rows = np.arange(config.positions) + offset  # sinusoids have no end
  fairseq = kind == 'sinusoidal_fairseq'
  return np.array(embeddings.sinusoids(rows, config.d_model, fairseq))


def _read_positions_and_types(
  source: EncoderSource, config: ModelConfig
) -> dict[str, np.ndarray]:
  """Returns the encoder's table of positions and its token types [T, D]."""
  positions = _read_positions(source, config)
  types = np.zeros((1, config.d_model), np.float32)
  if source.config.token_types:
    types = source.read(('encoder_types',)).astype(np.float32)
  if not config.token_types:  # the source adds its type 0 everywhere, too
    positions += types[0]
  # Repeated or cut: row n + k P is row n. Positions that the source knows stay
  # exactly what they were, and beyond them neighbours still differ as its
  # layers have learned, where interpolation would change every position.
  # Training then tells the tiles apart, as Longformer (arXiv:2004.05150,
  # section 5) found when it extended RoBERTa this way.
  tiled = positions[np.arange(config.positions) % len(positions)]
  # The rows in front are no positions.
  front = np.zeros((config.encoder_position_offset, config.d_model), np.float32)
  tiled = np.concatenate([front, tiled])
  # Types that the source lacks start as its type 0, or as zeros if it has none.
  at = np.arange(config.token_types)
  types = types[np.where(at < len(types), at, 0)]
  return {'encoder_positions': tiled, 'encoder_types': types}


# --- All of it


def _put_like(value: np.ndarray, like: jax.Array) -> jax.Array:
  """Returns a host array with the dtype and sharding of `like`."""
  assert value.shape == like.shape, (value.shape, like.shape)
  cut = lambda index: np.array(value[index], like.dtype)
  return jax.make_array_from_callback(like.shape, like.sharding, cut)


def init_encoder(
  params: dict,
  config: ModelConfig,
  source: EncoderSource,
  vocabulary: BaseVocabulary,
  log: Callable[[str], None] = print,
) -> dict:
  """Returns fresh parameters with the encoder of `source` in them.

  The layers, the final norm, positions and token types of the encoder are
  copied; its embedding piece by piece, see `match_rows`. The decoder's
  embedding and the LM head start equal to it, tied or not. All else stays.

  Args:
    params: the fresh parameters, nested; the shapes, dtypes and shardings stay.
    config, vocabulary: of the fresh model.
    source: what `open_source` returned.
    log: called with each line of what is copied.

  Raises:
    ValueError: the source does not fit; names the binding to set.
  """
  check_encoder(config, source)
  log(f'encoder from {source.directory}: {config.encoder_layers} layers')
  out = traverse_util.flatten_dict(params)
  rows = match_rows(source, config, vocabulary, log)
  table = source.read(('encoder_embedding',))
  embedding = _merge_rows(out['encoder_embedding',], table, rows)
  del table
  for name in EMBEDDINGS:
    if (name,) in out:  # a tied matrix is there once
      # Equal, but not one buffer: an update donates each.
      out[name,] = jnp.copy(embedding)
  for name, value in _read_positions_and_types(source, config).items():
    if (name,) in out:  # there may be no types
      out[name,] = _put_like(value, out[name,])
  known, wanted = source.config.positions, config.positions
  if wanted > known and source.config.position_embedding == 'learned':
    log(f'positions: {known:,} known, repeated to fill {wanted:,}')
  for path, like in out.items():
    if path[0] == 'encoder':
      out[path] = _put_like(source.read(path), like)
  return traverse_util.unflatten_dict(out)
