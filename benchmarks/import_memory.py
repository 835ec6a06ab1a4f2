"""Peak memory and rate of `atm import` on a synthetic checkpoint of GBs.

Writes a folder in the released format, or with m2m_100 one in that of M2M-100
and NLLB-200, in float16 with the copies of the tied table. Imports it in a
process of its own, and prints the peak resident memory beside the bound (twice
the largest stacked parameter plus 1 GiB), the bytes written, and the forecast
for the 20B.

  python benchmarks/import_memory.py [FOLDER [alexatm | m2m_100]]
"""

import functools
import glob
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
# NLLB-200 600M, with layers for two.
NLLB = dict(
  vocab_size=256206, d_model=1024, encoder_layers=24, encoder_ff=4096,
  decoder_layers=24, decoder_ff=4096, encoder_heads=16, decoder_heads=16,
  ties='all', embed_scale=True, activation='relu', pad_id=1, start_id=2,
  position_embedding='sinusoidal_fairseq', position_offset=2,
  encoder_position_offset=2,
)  # fmt: skip
KINDS = {
  'alexatm': (dict(**SIZES, **RELEASED), np.float32),
  'm2m_100': (NLLB, np.float16),
}
TIED_KEYS = (
  'model.encoder.embed_tokens.weight', 'model.decoder.embed_tokens.weight',
  'lm_head.weight',
)  # fmt: skip


def abstract(config: ModelConfig) -> dict:
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return traverse_util.flatten_dict(
    parameters.abstract_params(AlexaTM(config), mesh, sharding.Rules())
  )


def sizes_of(config: ModelConfig, bytes_each: int) -> dict:
  arrays = abstract(config).items()
  return {path: int(np.prod(x.shape)) * bytes_each for path, x in arrays}


def write(folder: str, config: ModelConfig, dtype) -> None:
  hf_config = config_json.config_to_hf(config)
  with open(f'{folder}/config.json', 'w') as f:
    json.dump(hf_config, f)
  layout = hf_keys.get_layout(hf_config)
  weights, random = {}, np.random.default_rng(0)
  draw = lambda shape: random.random(shape, np.float32).astype(dtype)
  for path, x in abstract(config).items():
    for key in layout.keys(path, x.shape):
      shape = hf_folder.to_hf_shape(path, x.shape)
      read = functools.partial(draw, shape)
      weights[key] = torch_reader.Tensor(shape, dtype, read)
  if config.ties == 'all':
    table = np.ones((config.vocab_size, config.d_model), dtype)
    copy = torch_reader.Tensor(table.shape, dtype, lambda: table)
    name = layout.tables['encoder_embedding']
    weights |= dict.fromkeys((name, *TIED_KEYS), copy)
  hf_folder.write_shards(folder, weights, 1 << 30)


def main(root: str, kind: str = 'alexatm') -> None:
  fields, dtype = KINDS[kind]
  config = ModelConfig(**fields, dtype='float32')
  folder, run = f'{root}/source', f'{root}/run'
  os.makedirs(folder)
  write(folder, config, dtype)
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
  sizes = sizes_of(config, np.dtype(dtype).itemsize)
  bound = 2 * max(sizes.values()) / 2**30 + 1
  print(done.stdout.splitlines()[0])
  print(f'{sum(sizes.values()) / 2**30:.2f} GiB in {seconds:.0f} s')
  print(
    f'peak {float(done.stdout.splitlines()[-1]):.2f} GiB, bound {bound:.2f}'
  )
  files = glob.glob(f'{run}/checkpoints/**', recursive=True)
  written = sum(os.path.getsize(f) for f in files if os.path.isfile(f))
  print(f'checkpoint of {written / 2**30:.2f} GiB')
  for dtype, n in (('float32', 4), ('bfloat16', 2)):
    twenty = sizes_of(ModelConfig(**RELEASED), n)
    print(f'20B, {dtype}: {convert.describe_import(twenty)}')


if __name__ == '__main__':
  if len(sys.argv) > 1:
    main(*sys.argv[1:])
  else:
    with tempfile.TemporaryDirectory() as made:
      main(made)
