"""Hugging Face folders to parameters and back.

A folder holds config.json, weights (safetensors or .bin, whole or in shards
with an index.json) and perhaps a SentencePiece model. A `Layout` is the table
between the names of one Hugging Face class and ours. Reading checks every key,
shape and dtype first, and then makes one stacked parameter at a time, so host
memory stays near the largest of them.
"""

import collections
import contextlib
import functools
import hashlib
import math
import os
from collections.abc import Iterator, Mapping

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util

from atm import fileio, storage
from atm.checkpoint import hf_keys
from atm.checkpoint.hf_keys import Layout, WeightsError
from atm.checkpoint.torch_reader import (
  Tensor,
  TorchFileError,
  open_torch_file,
)
from atm.messages import check_path, did_you_mean, one_line, quote
from atm.model import embeddings

FLOATS = {
  np.dtype(np.float32): 'F32',
  np.dtype(np.float16): 'F16',
  np.dtype(ml_dtypes.bfloat16): 'BF16',
}
INDEXES = ('model.safetensors.index.json', 'pytorch_model.bin.index.json')
WHOLE = ('model.safetensors', 'pytorch_model.bin')
# The SentencePiece model of the released AlexaTM, and of what is exported here.
OWN_TOKENIZER = '20b_tokenizer.model'
PUBLIC_TOKENIZERS = {
  'tokenizer.json', 'vocab.json', 'spiece.model', 'sentencepiece.bpe.model'
}  # fmt: skip
# Tables of sinusoids are those of a class within the rounding of bfloat16.
TABLE_ERROR = 4e-3
MOST_TABLE_ROWS = 2**20
PIECES, PIECE_BYTES = 512, 4096  # of a file, see `fingerprint_weights`


# --- The files of a folder


def _open_safetensors(path: str) -> dict[str, Tensor]:
  """Returns the tensors of a .safetensors file."""
  import safetensors

  dtypes = {name: dtype for dtype, name in FLOATS.items()}

  def read(key: str) -> np.ndarray:
    # Opened anew each time: a file kept mapped would stay in memory as far as
    # it has been read.
    with safetensors.safe_open(path, 'numpy') as f:
      return f.get_tensor(key)

  def describe(key: str, x) -> Tensor:
    dtype = dtypes.get(x.get_dtype(), x.get_dtype())
    return Tensor(tuple(x.get_shape()), dtype, functools.partial(read, key))

  try:
    fileio.check_regular(path)
    with safetensors.safe_open(path, 'numpy') as f:
      return {key: describe(key, f.get_slice(key)) for key in f.keys()}
  except safetensors.SafetensorError as e:
    raise WeightsError(f'{path} is damaged: {one_line(e, 200)}') from e
  except ValueError as e:  # a pipe or a device
    raise WeightsError(str(e)) from e


def open_file(path: str) -> dict[str, Tensor]:
  """Returns the tensors of a .safetensors or .bin file; reads none of them."""
  is_torch = path.endswith('.bin')
  return (open_torch_file if is_torch else _open_safetensors)(path)


def open_weights(directory: str) -> dict[str, Tensor]:
  """Returns the tensors of all weight files of a folder; reads none of them.

  Raises:
    FileNotFoundError: no weights, or a shard is missing.
    WeightsError: a damaged file, a key in two files, an index that does not
      match its files.
  """
  tensors: dict[str, Tensor] = {}
  directory = check_path('directory', directory)
  for path, expected in _find_files(directory).items():
    if not os.path.exists(path):
      raise FileNotFoundError(f'{quote(path)} is missing: the index names it')
    found = open_file(path)
    for key in tensors.keys() & found.keys():
      raise WeightsError(f'{key!r} is in two files of {directory}')
    for key in expected - found.keys():
      raise WeightsError(f'{path} lacks {key!r}, which the index puts there')
    tensors |= found
  return tensors


def fingerprint_weights(directory: str) -> str:
  """Returns a SHA-256, in hex, of sizes and pieces of a folder's weights.

  Pieces are spread evenly over each file, so that training, which changes
  numbers everywhere, cannot miss all of them; a file is not read whole.
  """
  digest = hashlib.sha256()
  for path in sorted(_find_files(check_path('directory', directory))):
    fileio.check_regular(path)
    size = storage.get_size(path)
    digest.update(f'{os.path.basename(path)} {size}\n'.encode())
    with storage.open_binary(path) as f:
      for start in sorted({size * i // PIECES for i in range(PIECES)}):
        f.seek(start)
        digest.update(f.read(PIECE_BYTES))
  return digest.hexdigest()


def _find_files(directory: str) -> dict[str, set[str]]:
  """Returns path -> the keys that an index expects in it."""
  for index, whole in zip(INDEXES, WHOLE):
    if os.path.exists(path := os.path.join(directory, whole)):
      return {path: set()}
    if os.path.exists(path := os.path.join(directory, index)):
      files = collections.defaultdict(set)
      for key, file in _read_weight_map(path).items():
        files[os.path.join(directory, file)].add(key)
      return files
  raise FileNotFoundError(
    f'no weights in {directory!r}: expected {", ".join(WHOLE)}, or either in '
    'shards with an index.json'
  )


def _read_weight_map(path: str) -> dict[str, str]:
  """Returns key -> name of its file, of an index; none leaves the folder."""
  index = read_json_object(path)
  try:
    files = fileio.get_key(index, 'weight_map', dict, path)
  except ValueError as e:
    raise WeightsError(str(e)) from e
  for key, file in files.items():
    if not isinstance(file, str) or os.path.basename(file) in ('', '.', '..'):
      raise WeightsError(
        f"{path}: 'weight_map' has {quote(file)} for {quote(key)}: expected "
        'the name of a file'
      )
    if os.path.basename(file) != file:
      raise WeightsError(f'{path}: {quote(file)} is not a file of the folder')
  return files


def read_json_object(path: str) -> dict:
  """Returns a JSON object; raises WeightsError where it is none."""
  try:
    return fileio.read_json(path)
  except ValueError as e:
    raise WeightsError(str(e)) from e


def read_hf_config(directory: str) -> dict:
  """Returns config.json, with our name of how the matrices are tied, if apart.

  transformers 5 reads three matrices where `tie_word_embeddings` is false, and
  transformers 4 wrote two then.
  """
  hf_config = read_json_object(os.path.join(directory, 'config.json'))
  untied = hf_config.get('tie_word_embeddings') is False
  family = hf_config.get('model_type') in (*hf_keys.BART_LAYOUTS,)
  if untied and family and hf_keys.TIES_FIELD not in hf_config:
    if {*hf_keys.UNTIED_TABLES.values()} <= open_weights(directory).keys():
      hf_config[hf_keys.TIES_FIELD] = 'none'
  return hf_config


# --- Reading


def is_stacked(path: tuple[str, ...]) -> bool:
  """Tells whether a parameter stacks the tensors of all layers of a stack."""
  return len(path) > 2 and path[1] == 'layers'


def to_hf_shape(path: tuple[str, ...], shape: tuple) -> tuple[int, ...]:
  """Returns the shape of each tensor that a parameter is made of."""
  shape = shape[1:] if is_stacked(path) else shape
  if path == ('logits_bias',):
    return (1, *shape)
  return tuple(reversed(shape)) if path[-1] == 'kernel' else tuple(shape)


def is_sinusoids(tensor: Tensor, width: int, fairseq: bool) -> bool:
  """Tells whether a stored table [rows, width] is the one computed here."""
  shape, dtype, read = tensor
  rows = shape[0] if shape else 0
  alike = shape == (rows, width) and dtype in FLOATS
  if not alike or not 0 < rows <= MOST_TABLE_ROWS:
    return False
  table = embeddings.sinusoids(np.arange(rows), width, fairseq)
  error = np.abs(table - read().astype(np.float32)).max(axis=1)
  # fairseq's row of padding, which is not computed, is zeros.
  return (error > TABLE_ERROR).sum() <= fairseq


def has_own_positions(directory: str, hf_config: dict, width: int) -> bool:
  """Tells whether a folder of Pegasus stores other positions than sinusoids.

  Its class reads the stored table, whatever that holds. A folder that is not
  sound has none: who reads its weights tells why.
  """
  with contextlib.suppress(FileNotFoundError, WeightsError, TorchFileError):
    tensors = open_weights(directory)
    layout = hf_keys.find_layout(hf_config, tensors)
    tensors = layout.rename(tensors)
    keys = [key for key in layout.stored_sinusoids if key in tensors]
    return any(not is_sinusoids(tensors[key], width, False) for key in keys)
  return False


class WeightReader:
  """Checked access to a folder's weights, one of our parameters at a time.

  Attributes:
    abstract: path of a parameter -> its shape and sharding.
    dtypes: path -> dtype in the folder.
    sizes: path -> bytes in that dtype.
  """

  def __init__(self, directory: str, hf_config: dict, abstract: dict):
    """Checks every key, shape and dtype; reads nothing yet.

    Args:
      directory: the folder.
      hf_config: its config.json.
      abstract: our parameters, nested, with shapes.

    Raises:
      FileNotFoundError: see `open_weights`.
      WeightsError: a key is missing, left over or of the wrong shape or dtype.
    """
    self._directory, tensors = directory, open_weights(directory)
    layout = hf_keys.find_layout(hf_config, tensors)
    self._tensors = layout.rename(tensors)
    self.abstract = traverse_util.flatten_dict(abstract)
    self._keys = {k: layout.keys(k, x.shape) for k, x in self.abstract.items()}
    self._find_tables(layout)
    for path, keys in self._keys.items():
      for key in keys:
        self._check(key, to_hf_shape(path, self.abstract[path].shape), keys[0])
    self._check_left_over(layout)
    self.dtypes = {k: self._tensors[v[0]].dtype for k, v in self._keys.items()}
    self.sizes = {
      path: math.prod(self.abstract[path].shape) * dtype.itemsize
      for path, dtype in self.dtypes.items()
    }

  def _find_tables(self, layout: Layout) -> None:
    """Finds tied matrices under any of their keys; adds zeros left out."""
    copies = self._tensors.keys() - {k[0] for k in self._keys.values()}
    for name, aliases in layout.aliases.items():
      keys = self._keys.get((name,), [])
      if keys and keys[0] not in self._tensors:
        self._keys[name,] = [k for k in aliases if k in copies][:1] or keys
    for name in layout.zeros:
      key = layout.tables[name]
      if (name,) in self._keys and key not in self._tensors:
        shape = to_hf_shape((name,), self.abstract[name,].shape)
        make = functools.partial(np.zeros, shape, np.float32)
        self._tensors[key] = Tensor(shape, np.dtype(np.float32), make)

  def _check(self, key: str, shape: tuple[int, ...], first: str) -> None:
    """Raises WeightsError unless a key has this shape and `first`'s dtype."""
    if key not in self._tensors:
      raise WeightsError(
        f'{self._directory} lacks {key!r}.' + did_you_mean(key, self._tensors)
      )
    found, dtype, _ = self._tensors[key]
    where = f'{self._directory}: {key!r}'
    if found != shape:
      raise WeightsError(f'{where} has shape {found}, expected {shape}')
    if dtype not in FLOATS:
      raise WeightsError(
        f'{where} is {dtype}, expected float32, bfloat16 or float16'
      )
    if dtype != (other := self._tensors[first].dtype):
      raise WeightsError(f'{where} is {dtype}, but {first!r} is {other}')

  def _check_left_over(self, layout: Layout) -> None:
    """Raises WeightsError unless the keys left are equal copies or ignored."""
    left = self._tensors.keys() - {*layout.ignored}
    left = left.difference(*self._keys.values())
    for key in left & {*layout.computed}:
      self._check_sinusoids(key, layout.computed[key])
    left -= {*layout.computed}
    for name, aliases in layout.aliases.items():
      copies = left & {*aliases} if (name,) in self._keys else set()
      original = self._keys[name,][0] if copies else None
      value = self._tensors[original].read() if copies else None
      for key in copies:
        # Shape and dtype first: a copy may claim more than memory holds.
        shape, dtype, read = self._tensors[key]
        alike = shape == value.shape and dtype in FLOATS
        if not alike or not np.array_equal(value, read()):
          raise WeightsError(
            f'{self._directory}: {key!r} differs from {original!r}, but '
            'config.json says that they are tied'
          )
      left -= copies
    if left:
      raise WeightsError(
        f'{self._directory}: {len(left)} keys that this model has no place '
        f'for, such as {quote(min(left))}'
      )

  def _check_sinusoids(self, key: str, fairseq: bool) -> None:
    """Raises WeightsError unless a stored table is the one computed here."""
    width = self.abstract['encoder_embedding',].shape[1]
    if not is_sinusoids(self._tensors[key], width, fairseq):
      raise WeightsError(
        f'{self._directory}: {key!r} is not the table of sinusoids that '
        'transformers computes: other positions are not supported'
      )

  def read(self, path: tuple[str, ...]) -> np.ndarray:
    """Returns one parameter, in our shape and the folder's dtype."""
    shape, size, keys = self.abstract[path].shape, self.sizes[path], self._keys
    turn = np.transpose if path[-1] == 'kernel' else np.asarray
    if not is_stacked(path):
      return turn(self._tensors[keys[path][0]].read()).reshape(shape)
    # XLA's CPU need not copy what begins at a multiple of 64 bytes.
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + size].view(self.dtypes[path]).reshape(shape)
    for i, key in enumerate(keys[path]):
      out[i] = turn(self._tensors[key].read())
    return out

  def arrays(self) -> Iterator[tuple[tuple[str, ...], jax.Array]]:
    """Yields (path, sharded array), one after the other."""
    for path, like in self.abstract.items():
      # No local name holds an array while the next one is made.
      yield path, put_sharded(self.read(path), like.sharding)


def put_sharded(value: np.ndarray, sharding) -> jax.Array:
  """Returns a sharded array, on one CPU device without a copy."""
  if sharding.num_devices > 1:
    return jax.device_put(value, sharding)
  (device,) = sharding.device_set
  whole = jax.device_put(value, device, may_alias=True)
  return jax.make_array_from_single_device_arrays(
    value.shape, sharding, [whole]
  )


def find_tokenizer(directory: str, hf_config: dict) -> str | None:
  """Returns the path of a folder's tokenizer, or None.

  A public model's, which is in several files, is the folder; another is a
  SentencePiece model.
  """
  names = sorted(os.listdir(check_path('directory', directory)))
  if OWN_TOKENIZER in names:
    return os.path.join(directory, OWN_TOKENIZER)
  public = hf_config.get('model_type') in (*hf_keys.BART_LAYOUTS,)
  if public and PUBLIC_TOKENIZERS.intersection(names):
    return directory
  models = [name for name in names if name.endswith(('.model', '.spm'))]
  return os.path.join(directory, models[0]) if models else None


# --- Writing


def write_tensors(path: str, arrays: dict[str, np.ndarray]) -> None:
  """Writes one file of safetensors, that whoever may read others' may read."""
  import safetensors.numpy

  with open(path, 'wb') as f:
    mode = os.fstat(f.fileno()).st_mode
  safetensors.numpy.save_file(arrays, path, metadata={'format': 'pt'})
  os.chmod(path, mode)  # the library leaves it to its owner alone


def write_shards(
  directory: str, tensors: Mapping[str, Tensor], shard_bytes: int
) -> None:
  """Writes safetensors in shards, with an index where there are several."""
  sizes = {
    key: math.prod(shape) * np.dtype(dtype).itemsize
    for key, (shape, dtype, _) in tensors.items()
  }
  shards: list[list[str]] = [[]]
  for key, size in sizes.items():
    # A tensor larger than that has a shard of its own.
    if shards[-1] and size + sum(map(sizes.get, shards[-1])) > shard_bytes:
      shards.append([])
    shards[-1].append(key)
  where = {}
  for number, keys in enumerate(shards, 1):
    name = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    name = name if len(shards) > 1 else WHOLE[0]
    arrays = {key: np.ascontiguousarray(tensors[key].read()) for key in keys}
    path = os.path.join(directory, name)
    write_tensors(path, arrays)
    where.update(dict.fromkeys(keys, name))
  if len(shards) > 1:
    total = {'total_size': sum(sizes.values())}
    index = {'metadata': total, 'weight_map': where}
    fileio.write_json(os.path.join(directory, INDEXES[0]), index)
