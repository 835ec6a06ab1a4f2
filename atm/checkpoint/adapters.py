"""Adapters that a LoRA run or PEFT trained, and what they were trained on.

A LoRA run's MODEL_DIR has adapter.json: the adapters' configuration, and what
tells the base model. Its checkpoints hold the adapters alone, as `params`.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import traverse_util

import atm
from atm import fileio, storage
from atm.checkpoint import checksums, peft_folder, reader
from atm.messages import quote
from atm.model import lora
from atm.model.config import ModelConfig
from atm.model.lora import LoraConfig

ADAPTER_FILE = 'adapter.json'
_FORM = {
  'lora': {
    'rank': int, 'alpha': float, 'dropout': float, 'targets': [str],
    'rslora': bool,
  },
  'base': {'path': str, 'step': int, 'fingerprint': (str, None)},
  'atm': str,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BaseModel:
  """The model that adapters were trained on.

  Attributes:
    path: as INIT_FROM named it.
    step: of its checkpoint; 0 of a Hugging Face folder.
    fingerprint: see `pretrained.PretrainedModel.fingerprint`; None: unknown.
  """

  path: str
  step: int = 0
  fingerprint: str | None = None


def write_description(
  model_dir: str, config: LoraConfig, base: BaseModel
) -> None:
  """Writes adapter.json of a LoRA run."""
  described = {
    'lora': dataclasses.asdict(config),
    'base': dataclasses.asdict(base),
    'atm': atm.__version__,
  }
  fileio.write_json(os.path.join(model_dir, ADAPTER_FILE), described)


def read_description(model_dir: str) -> tuple[LoraConfig, BaseModel] | None:
  """Returns what adapter.json says; None of a folder without one.

  Raises ValueError where it is damaged.
  """
  path = os.path.join(model_dir, ADAPTER_FILE)
  if not storage.exists(path):
    return None
  described = fileio.read_json(path)
  fileio.check_json(described, _FORM, path)
  base = described['base']
  try:
    given = described['lora']
    config = LoraConfig(**{**given, 'targets': tuple(given['targets'])})
    return config, BaseModel(base['path'], base['step'], base['fingerprint'])
  except (TypeError, ValueError) as e:
    raise ValueError(f'{path}: {e}') from e


@dataclasses.dataclass(frozen=True, eq=False)
class SavedAdapters:
  """Adapters that were read, to be merged into a model.

  Attributes:
    directory: a LoRA run's MODEL_DIR, or a PEFT folder.
    config: what their scale is of.
    arrays: path of a parameter -> {'a': A, 'b': B}, on the host.
    step: updates they were trained for; 0 of a PEFT folder.
    base: what they were trained on; None where nothing checks it.
    vocabulary: the SHA-256 of the run's; None where there is none.
    copies: path of a parameter -> reads what it has to be equal to.
  """

  directory: str
  config: LoraConfig
  arrays: Mapping[tuple[str, ...], Mapping[str, np.ndarray]]
  step: int = 0
  base: BaseModel | None = None
  vocabulary: str | None = None
  copies: Mapping[tuple[str, ...], Callable[[], np.ndarray]] = (
    dataclasses.field(default_factory=dict)
  )

  def fingerprint(self) -> str:
    """Returns what tells the adapters from others, a SHA-256 in hex."""
    named = {
      '/'.join((*path, name)): x
      for path, pair in self.arrays.items()
      for name, x in pair.items()
    }
    sums = checksums.compute_checksums(named)
    return fileio.hash_json([self.config.scale, sums])

  def merge(self, params: dict) -> dict:
    """Returns nested parameters with the adapters in, and deletes the old."""
    flat = traverse_util.flatten_dict(params)
    for path in self.copies.keys() & flat.keys():
      self._check_copy(path, flat[path])
    for path, pair in self.arrays.items():
      old = flat[path]
      add = functools.partial(lora.merge_matrix, path, scale=self.config.scale)
      # One at a time, so that there are never two models in memory.
      flat[path] = jax.block_until_ready(
        jax.jit(add, out_shardings=old.sharding)(old, pair)
      )
      old.delete()
    return traverse_util.unflatten_dict(flat)

  def merge_one(self, path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """Returns one parameter with its adapter in, if it has one."""
    if path in self.copies:
      self._check_copy(path, value)
    if path not in self.arrays:
      return value
    pair, scale = self.arrays[path], self.config.scale
    return np.asarray(lora.merge_matrix(path, value, pair, scale))

  def _check_copy(self, path: tuple[str, ...], value) -> None:
    """Raises ValueError where a table is not that beside the adapters."""
    ours, theirs = np.asarray(value), self.copies[path]()
    if theirs.shape != ours.shape or not np.array_equal(
      ours, theirs.astype(ours.dtype)
    ):
      raise ValueError(
        f'{self.directory} has a table of its own for {"/".join(path)}, which '
        'was resized or trained, or is of another base: take the model that '
        "it was trained on, or save what PEFT's merge_and_unload makes"
      )


def read_adapter(
  directory: str,
  config: ModelConfig,
  hf_config: Callable[[], dict],
  shapes: Mapping,
  at_step: int | None = None,
) -> SavedAdapters:
  """Reads the adapters in a LoRA run's MODEL_DIR or a PEFT folder.

  Args:
    directory: the folder.
    config: of the model that they are for.
    hf_config: returns its config.json.
    shapes: path of each parameter of it -> what has its shape.
    at_step: a LoRA run's checkpoint; None: the newest.

  Raises:
    FileNotFoundError: there are no adapters.
    ValueError: they are damaged, or of another model.
  """
  found = read_description(directory)
  if found is not None:
    return _read_run(directory, *found, shapes, at_step)
  if not peft_folder.is_peft_folder(directory):
    raise FileNotFoundError(
      f'ADAPTER = {quote(directory)}: expected the MODEL_DIR of a LoRA run, '
      f'which has {ADAPTER_FILE}, or a PEFT folder, which has '
      f'{peft_folder.CONFIG_FILE}'
    )
  local = storage.fetch(directory)  # safetensors open files by path
  read = peft_folder.read_peft_folder(local, config, hf_config(), shapes)
  return SavedAdapters(directory, read.config, read.arrays, copies=read.copies)


def _read_run(
  directory: str,
  config: LoraConfig,
  base: BaseModel,
  shapes: Mapping,
  at_step: int | None,
) -> SavedAdapters:
  """Reads the adapters of a LoRA run's checkpoint."""
  arrays: dict = {}
  with reader.open_step(directory, at_step) as (checkpoints, step):
    meta = checkpoints.meta(step)
    for path in checkpoints.dtypes(step):
      *matrix, name = path
      value = checkpoints.read_parameter(step, path)
      arrays.setdefault(tuple(matrix), {})[name] = value
  for path, pair in arrays.items():
    if not lora.is_adapter(pair):
      raise ValueError(
        f'{directory} has {ADAPTER_FILE}, but its step {step} is of a whole '
        f'model: {"/".join(path)} is no adapter. Remove that file where it is '
        'not of this run'
      )
    wanted = getattr(shapes.get(path), 'shape', None)
    there = [*pair['a'].shape[:-1], pair['b'].shape[-1]]
    if wanted is None or there != [*wanted]:
      raise ValueError(
        f'{directory} adapts {"/".join(path)} of {there}, which is '
        f'{"not there" if wanted is None else list(wanted)} in this model: '
        f'name the model that it was trained on, {quote(base.path)}'
      )
  return SavedAdapters(
    directory, config, arrays, step, base, meta.get('vocabulary')
  )
