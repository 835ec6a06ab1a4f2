"""Copies of the tiny folders of public models, to change them."""

import json
import os
import shutil

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'golden')
PUBLIC = os.path.join(GOLDEN, 'public')
NAMES = ('mbart25', 'mbart50', 'm2m_100', 'nllb', 'pegasus', 'blenderbot')
MODEL_TYPES = {
  **dict(zip(NAMES, NAMES)), 'mbart25': 'mbart', 'mbart50': 'mbart',
  'nllb': 'm2m_100',
}  # fmt: skip


def copy_folder(name: str, place, **settings) -> str:
  """Returns a copy of a folder's tokenizer, with other settings."""
  folder = os.path.join(place, name)
  weights = shutil.ignore_patterns('*.safetensors', 'generation_config.json')
  shutil.copytree(os.path.join(PUBLIC, name), folder, ignore=weights)
  config = {'model_type': MODEL_TYPES[name]}
  with open(os.path.join(folder, 'config.json'), 'w') as f:
    json.dump(config, f)
  change(os.path.join(folder, 'tokenizer_config.json'), **settings)
  return folder


def change(path: str, **values) -> None:
  """Changes entries of a JSON file; None removes one."""
  with open(path, encoding='utf-8') as f:
    data = {**json.load(f), **values}
  with open(path, 'w', encoding='utf-8') as f:
    json.dump({k: v for k, v in data.items() if v is not None}, f)
