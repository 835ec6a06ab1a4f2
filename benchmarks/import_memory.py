"""Peak memory and rate of `atm import` on a synthetic 4 GB checkpoint.

Writes a folder in the released format, imports it in a process of its own,
and prints the peak resident memory beside the bound (twice the largest stacked
parameter plus 1 GiB), and the forecast for the 20B.

  python benchmarks/import_memory.py [FOLDER]
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
from flax import traverse_util

from atm.checkpoint import (
  config_json,
  convert,
  hf_folder,
  hf_keys,
  torch_reader,
)
from atm.model import parameters
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding

SIZES = dict(
  vocab_size=64000, d_model=1024, encoder_layers=36, encoder_ff=4096,
  decoder_layers=24, decoder_ff=4096, encoder_heads=16, decoder_heads=16,
)  # fmt: skip
RELEASED = dict(
  norm='uncentred', token_types=2, position_offset=2, logits_bias=True
)


def abstract(config: ModelConfig) -> dict:
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return traverse_util.flatten_dict(
    parameters.abstract_params(AlexaTM(config), mesh, sharding.Rules())
  )


def sizes_of(config: ModelConfig, bytes_each: int) -> dict:
  arrays = abstract(config).items()
  return {path: int(np.prod(x.shape)) * bytes_each for path, x in arrays}


def write(folder: str, config: ModelConfig) -> None:
  with open(f'{folder}/config.json', 'w') as f:
    json.dump(config_json.config_to_hf(config), f)
  weights, random = {}, np.random.default_rng(0)
  for path, x in abstract(config).items():
    keys = hf_keys.ALEXATM.keys(path, x.shape)
    for key in keys:
      shape = hf_folder.to_hf_shape(path, x.shape)
      read = functools.partial(random.random, shape, np.float32)
      weights[key] = torch_reader.Tensor(shape, np.float32, read)
  hf_folder.write_shards(folder, weights, 1 << 30)


def main(root: str) -> None:
  config = ModelConfig(**SIZES, **RELEASED, dtype='float32')
  folder, run = f'{root}/source', f'{root}/run'
  os.makedirs(folder)
  write(folder, config)
  code = (
    'from atm.checkpoint import convert; '
    f'convert.import_weights({folder!r}, {run!r}); '
    # Not ru_maxrss: a child's begins with its parent's.
    'print([int(line.split()[1]) / 2**20 for line in open("/proc/self/status") '
    'if line.startswith("VmHWM")][0])'
  )
  start = time.perf_counter()
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  seconds = time.perf_counter() - start
  sizes = sizes_of(config, 4)
  bound = 2 * max(sizes.values()) / 2**30 + 1
  print(done.stdout.splitlines()[0])
  print(f'{sum(sizes.values()) / 2**30:.2f} GiB in {seconds:.0f} s')
  print(
    f'peak {float(done.stdout.splitlines()[-1]):.2f} GiB, bound {bound:.2f}'
  )
  for dtype, n in (('float32', 4), ('bfloat16', 2)):
    twenty = sizes_of(ModelConfig(**RELEASED), n)
    print(f'20B, {dtype}: {convert.describe_import(twenty)}')


if __name__ == '__main__':
  if len(sys.argv) > 1:
    main(sys.argv[1])
  else:
    with tempfile.TemporaryDirectory() as made:
      main(made)
