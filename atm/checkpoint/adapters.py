"""Adapters that a LoRA run trained, and the model that they were trained on.

A LoRA run's MODEL_DIR has adapter.json: the adapters' configuration, and what
tells the base model. Its checkpoints hold the adapters alone, as `params`.
"""

import dataclasses
import os

import atm
from atm import fileio, storage
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
