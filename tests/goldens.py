"""Reference models and their outputs, made by PyTorch; see golden/README.md."""

import os
import shutil

import numpy as np
import safetensors.numpy

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'golden')
ALEXATM = ('untied', 'tied')
PUBLIC = ('mbart25', 'mbart50', 'm2m_100', 'nllb', 'pegasus')
BLENDERBOT = ('blenderbot_a', 'blenderbot_b', 'blenderbot_c')


def folder_of(name, root) -> str:
  """Returns a Hugging Face folder of a golden, made below `root` if need be."""
  if os.path.isdir(f'{HERE}/{name}'):
    return f'{HERE}/{name}'
  folder = root / name
  if not folder.exists():
    folder.mkdir(parents=True)
    shutil.copy(f'{HERE}/{name}.config.json', folder / 'config.json')
    weights = dict(np.load(f'{HERE}/{name}.weights.npz'))
    safetensors.numpy.save_file(weights, str(folder / 'model.safetensors'))
  return str(folder)


def golden(name) -> dict[str, np.ndarray]:
  """Returns a golden's inputs and outputs."""
  return dict(np.load(f'{HERE}/{name}.io.npz'))
