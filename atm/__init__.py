"""atm: the open, runnable AlexaTM 20B in JAX.

import atm
model = atm.load('runs/tiny')
model.generate(['All human beings are born'], mode='clm')
"""

import os

# XLA and TensorFlow raise what goes wrong, and log more than that on standard
# error. JAX and TensorFlow read the variable when they are first imported.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

__version__ = '0.1.0'
DISTRIBUTION = 'atm-jax'  # for pip; PyPI's `atm` is another project


def load(directory: str, **options):
  """Loads a trained model from a MODEL_DIR, see `atm.inference.api.load`."""
  from atm.inference import api  # imports JAX

  return api.load(directory, **options)
