"""Hugging Face folders to parameters and back.

A folder holds config.json, weights (safetensors or .bin, whole or in shards
with an index.json) and perhaps a SentencePiece model. A `Layout` is the table
between the names of one Hugging Face class and ours. Reading checks every key,
shape and dtype first, and then makes one stacked parameter at a time, so host
memory stays near the largest of them.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util

from atm import fileio
from atm.checkpoint.hf_keys import Layout, WeightsError
from atm.checkpoint.torch_reader import Tensor, open_torch_file
from atm.messages import did_you_mean

FLOATS = {
  np.dtype(np.float32): 'F32',
  np.dtype(np.float16): 'F16',
  np.dtype(ml_dtypes.bfloat16): 'BF16',
}
INDEXES = ('model.safetensors.index.json', 'pytorch_model.bin.index.json')
WHOLE = ('model.safetensors', 'pytorch_model.bin')


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
    with safetensors.safe_open(path, 'numpy') as f:
      return {key: describe(key, f.get_slice(key)) for key in f.keys()}
  except safetensors.SafetensorError as e:
    raise WeightsError(f'{path} is damaged: {e}') from e


class WeightFolder:
  """The tensors of all weight files of a Hugging Face folder.

  Attributes:
    directory: the folder.
    tensors: key -> shape, dtype and reader.
  """

  def __init__(self, directory: str):
    """Opens the files; reads no tensor.

    Raises:
      FileNotFoundError: no weights, or a shard is missing.
      WeightsError: a damaged file, a key in two files, an index that does not
        match its files.
    """
    self.directory = directory
    self.tensors: dict[str, Tensor] = {}
    for path, expected in self._find_files().items():
      if not os.path.exists(path):
        raise FileNotFoundError(f'{path} is missing: the index names it')
      is_torch = path.endswith('.bin')
      tensors = (open_torch_file if is_torch else _open_safetensors)(path)
      for key in self.tensors.keys() & tensors.keys():
        raise WeightsError(f'{key!r} is in two files of {directory}')
      self.tensors |= tensors
      for key in expected - tensors.keys():
        raise WeightsError(f'{path} lacks {key!r}, which the index puts there')

  def _find_files(self) -> dict[str, set[str]]:
    """Returns path -> the keys that an index expects in it."""
    for name, whole in zip(INDEXES, WHOLE, strict=True):
      path = os.path.join(self.directory, whole)
      if os.path.exists(path):
        return {path: set()}
      path = os.path.join(self.directory, name)
      if os.path.exists(path):
        files: dict[str, set[str]] = {}
        for key, file in read_json_object(path)['weight_map'].items():
          if os.path.basename(file) != file:
            raise WeightsError(f'{path}: {file!r} is not a file of the folder')
          files.setdefault(os.path.join(self.directory, file), set()).add(key)
        return files
    raise FileNotFoundError(
      f'no weights in {self.directory!r}: expected {", ".join(WHOLE)}, or '
      'either in shards with an index.json'
    )


def read_json_object(path: str) -> dict:
  """Returns a JSON object; raises WeightsError where it is none."""
  try:
    with open(path, encoding='utf-8') as f:
      value = json.load(f)
  except (UnicodeDecodeError, json.JSONDecodeError) as e:
    raise WeightsError(f'{path} is not JSON: {e}') from e
  if not isinstance(value, dict):
    raise WeightsError(f'{path}: expected a JSON object')
  return value


# --- Reading


def is_stacked(path: tuple[str, ...]) -> bool:
  """Tells whether a parameter stacks the tensors of all layers of a stack."""
  return len(path) > 2 and path[1] == 'layers'


def hf_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape of each tensor that a parameter is made of."""
  shape = shape[1:] if is_stacked(path) else shape
  if path == ('logits_bias',):
    return (1, *shape)
  return tuple(reversed(shape)) if path[-1] == 'kernel' else tuple(shape)


class WeightReader:
  """Checked access to a folder's weights, one of our parameters at a time."""

  def __init__(self, folder: WeightFolder, layout: Layout, abstract: dict):
    """Checks every key, shape and dtype; reads nothing yet.

    Args:
      folder: the weights.
      layout: their names.
      abstract: our parameters, with shapes.

    Raises:
      WeightsError: a key is missing, left over or of the wrong shape or dtype.
    """
    self.folder, self.layout = folder, layout
    self.abstract = traverse_util.flatten_dict(abstract)
    left = folder.tensors.keys() - set(layout.ignored)
    for path, like in self.abstract.items():
      keys = layout.keys(path, like.shape)
      for key in keys:
        self._check(key, hf_shape(path, like.shape), keys[0])
      left -= set(keys)
    for path in self.abstract:
      left -= self._aliases(path, left)
    if left:
      raise WeightsError(
        f'{folder.directory}: {len(left)} keys that this model has no place '
        f'for, such as {sorted(left)[0]!r}'
      )

  def _check(self, key: str, shape: tuple[int, ...], first: str) -> None:
    tensors = self.folder.tensors
    if key not in tensors:
      raise WeightsError(
        f'{self.folder.directory} lacks {key!r}.' + did_you_mean(key, tensors)
      )
    found, dtype, _ = tensors[key]
    if found != shape:
      raise WeightsError(f'{key!r} has shape {found}, expected {shape}')
    if dtype not in FLOATS:
      raise WeightsError(
        f'{key!r} is {dtype}, expected float32, bfloat16 or float16'
      )
    if dtype != (other := tensors[first].dtype):
      raise WeightsError(f'{key!r} is {dtype}, but {first!r} is {other}')

  def _aliases(self, path, left: set[str]) -> set[str]:
    """Returns keys of tied copies; raises WeightsError where one differs."""
    copies = left & set(self.layout.aliases.get('/'.join(path), ()))
    own = (
      self.folder.tensors[self.layout.tables[path[0]]].read()
      if copies
      else None
    )
    for key in copies:
      if not np.array_equal(own, self.folder.tensors[key].read()):
        raise WeightsError(
          f'{key!r} differs from {self.layout.tables[path[0]]!r}, but '
          'config.json says that they are tied'
        )
    return copies

  def dtype(self, path) -> np.dtype:
    """Returns the dtype of a parameter in the folder."""
    key = self.layout.keys(path, self.abstract[path].shape)[0]
    return self.folder.tensors[key].dtype

  def read(self, path) -> np.ndarray:
    """Returns one parameter, in our shape and the folder's dtype."""
    like, tensors = self.abstract[path], self.folder.tensors
    keys = self.layout.keys(path, like.shape)
    turn = np.transpose if path[-1] == 'kernel' else np.asarray
    if not is_stacked(path):
      return turn(tensors[keys[0]].read()).reshape(like.shape)
    out = empty_aligned(like.shape, self.dtype(path))
    for i, key in enumerate(keys):
      out[i] = turn(tensors[key].read())
    return out

  def arrays(self) -> Iterator[tuple[tuple[str, ...], jax.Array]]:
    """Yields (path, sharded array), one after the other."""
    for path, like in self.abstract.items():
      # No local name holds an array while the next one is made.
      yield path, put_sharded(self.read(path), like.sharding)

  def read_all(self) -> dict:
    """Returns all parameters, nested and sharded."""
    return traverse_util.unflatten_dict(dict(self.arrays()))

  def sizes(self) -> dict[tuple[str, ...], int]:
    """Returns path -> bytes of the parameter in the folder's dtype."""
    return {
      path: int(np.prod(like.shape)) * np.dtype(self.dtype(path)).itemsize
      for path, like in self.abstract.items()
    }


def empty_aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
  """Returns an empty array that JAX's CPU need not copy."""
  # XLA's CPU shares a buffer of NumPy's that begins at a multiple of 64 bytes.
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  raw = np.empty(size + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + size].view(dtype).reshape(shape)


def put_sharded(value: np.ndarray, sharding) -> jax.Array:
  """Returns a sharded array, on one CPU device without a copy."""
  if sharding.num_devices > 1:
    return jax.device_put(value, sharding)
  (device,) = sharding.device_set
  whole = jax.device_put(value, device, may_alias=True)
  return jax.make_array_from_single_device_arrays(
    value.shape, sharding, [whole]
  )


def find_tokenizer(directory: str) -> str | None:
  """Returns the path of a folder's SentencePiece model, or None."""
  names = sorted(os.listdir(directory))
  models = [name for name in names if name.endswith(('.model', '.spm'))]
  return os.path.join(directory, models[0]) if models else None


# --- Writing


def write_shards(
  directory: str, tensors: Mapping[str, Tensor], shard_bytes: int
) -> None:
  """Writes safetensors in shards, with an index where there are several.

  Args:
    directory: the folder.
    tensors: key -> tensor, in the order to write.
    shard_bytes: greatest size of a shard; a larger tensor has its own.
  """
  import safetensors.numpy

  shards: list[list[str]] = [[]]
  size = total = 0
  for key, (shape, dtype, _) in tensors.items():
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
    arrays = {key: np.ascontiguousarray(tensors[key].read()) for key in keys}
    path = os.path.join(directory, name)
    safetensors.numpy.save_file(arrays, path, metadata={'format': 'pt'})
    where.update(dict.fromkeys(keys, name))
  if len(shards) > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': where}
    fileio.write_json(os.path.join(directory, INDEXES[0]), index)
