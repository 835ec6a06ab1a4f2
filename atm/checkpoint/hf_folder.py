"""Hugging Face folders to parameters and back.

A folder holds config.json, weights (safetensors or .bin, whole or in shards
with an index.json) and perhaps a SentencePiece model. A `Layout` is the table
between the names of one Hugging Face class and ours. Reading checks every key,
shape and dtype first, and then makes one stacked parameter at a time, so host
memory stays near the largest of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util

from atm import fileio
from atm.checkpoint.hf_keys import Layout, WeightsError
from atm.checkpoint.torch_reader import TorchFile
from atm.messages import did_you_mean

FLOATS = {
  np.dtype(np.float32): 'F32',
  np.dtype(np.float16): 'F16',
  np.dtype(ml_dtypes.bfloat16): 'BF16',
}
INDEXES = ('model.safetensors.index.json', 'pytorch_model.bin.index.json')
WHOLE = ('model.safetensors', 'pytorch_model.bin')


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


class WeightFolder:
  """The tensors of all weight files of a Hugging Face folder.

  Attributes:
    directory: the folder.
    files: key -> the open file that holds its tensor.
  """

  def __init__(self, directory: str):
    """Opens the files; reads no tensor.

    Raises:
      FileNotFoundError: no weights, or a shard is missing.
      WeightsError: a damaged file, a key in two files, an index that does not
        match its files.
    """
    self.directory = directory
    self.files: dict[str, Any] = {}
    for path, expected in self._find_files().items():
      if not os.path.exists(path):
        raise FileNotFoundError(f'{path} is missing: the index names it')
      opened = (TorchFile if path.endswith('.bin') else _SafeTensors)(path)
      for key in opened.keys():
        if key in self.files:
          raise WeightsError(f'{key!r} is in two files of {directory}')
        self.files[key] = opened
      for key in expected - set(opened.keys()):
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
        for key, file in read_json(path)['weight_map'].items():
          if os.path.basename(file) != file:
            raise WeightsError(f'{path}: {file!r} is not a file of the folder')
          files.setdefault(os.path.join(self.directory, file), set()).add(key)
        return files
    raise FileNotFoundError(
      f'no weights in {self.directory!r}: expected {", ".join(WHOLE)}, or '
      'either in shards with an index.json'
    )


def read_json(path: str) -> dict:
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
    left = folder.files.keys() - set(layout.ignored)
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
    files = self.folder.files
    if key not in files:
      raise WeightsError(
        f'{self.folder.directory} lacks {key!r}.' + did_you_mean(key, files)
      )
    found, dtype = files[key].shape(key), files[key].dtype(key)
    if found != shape:
      raise WeightsError(f'{key!r} has shape {found}, expected {shape}')
    if dtype not in FLOATS:
      raise WeightsError(
        f'{key!r} is {dtype}, expected float32, bfloat16 or float16'
      )
    if dtype != (other := files[first].dtype(first)):
      raise WeightsError(f'{key!r} is {dtype}, but {first!r} is {other}')

  def _aliases(self, path, left: set[str]) -> set[str]:
    """Returns keys of tied copies; raises WeightsError where one differs."""
    copies = left & set(self.layout.aliases.get('/'.join(path), ()))
    own = self._read_key(self.layout.tables[path[0]]) if copies else None
    for key in copies:
      if not np.array_equal(own, self._read_key(key)):
        raise WeightsError(
          f'{key!r} differs from {self.layout.tables[path[0]]!r}, but '
          'config.json says that they are tied'
        )
    return copies

  def _read_key(self, key: str) -> np.ndarray:
    return self.folder.files[key].read(key)

  def dtype(self, path) -> np.dtype:
    """Returns the dtype of a parameter in the folder."""
    key = self.layout.keys(path, self.abstract[path].shape)[0]
    return self.folder.files[key].dtype(key)

  def read(self, path) -> np.ndarray:
    """Returns one parameter, in our shape and the folder's dtype."""
    like = self.abstract[path]
    keys = self.layout.keys(path, like.shape)
    turn = np.transpose if path[-1] == 'kernel' else np.asarray
    if not is_stacked(path):
      return turn(self._read_key(keys[0])).reshape(like.shape)
    out = empty_aligned(like.shape, self.dtype(path))
    for i, key in enumerate(keys):
      out[i] = turn(self._read_key(key))
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
    fileio.write_json(os.path.join(directory, INDEXES[0]), index)
