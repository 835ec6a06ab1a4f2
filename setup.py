"""Packaging of atm; everything else about it is in README.md."""

import os
import re

from setuptools import find_packages, setup

HERE = os.path.dirname(os.path.abspath(__file__))


def read(name: str) -> str:
  with open(os.path.join(HERE, name), encoding='utf-8') as f:
    return f.read()


def gin_packages() -> dict[str, str]:
  """gin/ is installed as data, inside atm: `gin` stays gin-config's name."""
  folders = sorted(
    name
    for name in os.listdir(os.path.join(HERE, 'gin'))
    if os.path.isdir(os.path.join(HERE, 'gin', name))
  )
  return {f'atm.configs.{name}': f'gin/{name}' for name in folders}


def packages(name: str, folder: str) -> list[str]:
  """Returns a package and its subpackages."""
  found = find_packages(os.path.join(HERE, folder))
  return [name, *(f'{name}.{inner}' for inner in found)]


DEPENDENCIES = [
  'absl-py>=2.1,<3',
  'array_record>=0.8.6,<0.9',
  'clu>=0.0.12,<0.1',
  'etils[epath]>=1.9,<2',
  'flax>=0.12,<0.13',
  'gin-config>=0.5,<0.6',
  'jax>=0.10,<0.13',
  'jinja2>=3.1,<4',
  'matplotlib>=3.8,<4',
  'numpy>=2.0,<3',
  'optax>=0.2.5,<0.3',
  'orbax-checkpoint>=0.12,<0.13',
  'ml-dtypes>=0.5,<0.7',
  'protobuf>=5,<8',
  'rich>=13,<16',
  'safetensors>=0.6,<0.9',
  'sentencepiece>=0.2.3,<0.3',
  'seqio>=0.0.20,<0.1',
  'tensorboard>=2.18,<3',
]

EVAL = [
  'lm-eval>=0.4.10,<0.5',
  'pytablewriter>=1.2,<2',
  'rouge-score>=0.1.2,<0.2',
  'sacrebleu>=2.4,<3',
]

EXTRAS = {
  'tpu': ['jax[tpu]>=0.10,<0.13'],
  'cuda12': ['jax[cuda12]>=0.10,<0.13'],
  # Compiles for TPUs on a machine without one.
  'plan': ['jax[tpu]>=0.10,<0.13'],
  # Reads .txt.zst and .jsonl.zst.
  'zstd': ['zstandard>=0.22,<0.26'],
  # Only for parity scripts; never needed to run.
  'hf': ['torch>=2.4,<3', 'transformers>=5.0,<6'],
  'eval': EVAL,
  'dev': [
    *EVAL,
    'build>=1.2,<2',
    'hypothesis>=6.100,<7',
    'pytest>=8,<10',
    'pytest-xdist>=3.5,<4',
    'ruff>=0.9,<0.20',
    'setuptools>=77,<90',
    'zstandard>=0.22,<0.26',
  ],
}

setup(
  name='atm',
  version=re.search(r"__version__ = '(.+)'", read('atm/__init__.py')).group(1),
  description='The open, runnable AlexaTM 20B in JAX',
  long_description=read('README.md'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11,<3.14',
  packages=[
    *packages('atm', 'atm'),
    *packages('atm_tasks', 'tasks'),
    *gin_packages(),
  ],
  package_dir={'atm': 'atm', 'atm_tasks': 'tasks', **gin_packages()},
  package_data={
    'atm.pages': ['style.css', 'templates/*.jinja'],
    'atm_tasks': ['udhr/*.tsv', 'udhr/LICENSE'],
    **{name: ['*.gin'] for name in gin_packages()},
  },
  install_requires=DEPENDENCIES,
  extras_require=EXTRAS,
  entry_points={'console_scripts': ['atm = atm.cli.main:main']},
)
