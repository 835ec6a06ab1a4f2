"""LoRA against full fine-tuning: memory and time of a step on this machine.

Trains gin/models/base.gin's sizes on one random batch, all parameters, or
adapters of rank 16 with a base in float32 or bfloat16, each in a process of its
own; prints the peak of its memory, CPU seconds and seconds a step (the median),
and what the compiler counts. `--sizes=large` has gin/models/large.gin's;
`--steps=0` only compiles.

  python benchmarks/lora.py
  python benchmarks/lora.py --sizes=large --kinds=lora,lora-bfloat16
"""

import argparse
import functools
import resource
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from atm.model import config, transformer
from atm.model.lora import LoraConfig
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding, xla_options
from atm.train import lora_base, optimizer, step

RANK, B, S, T = 16, 4, 128, 128
COMMON = dict(positions=128, remat='full', dtype='float32')
SIZES = {
  'base': dict(
    vocab_size=64_000, d_model=768, encoder_layers=12, decoder_layers=12,
    encoder_heads=12, decoder_heads=12, encoder_ff=3072, decoder_ff=3072,
  ),
  'large': dict(
    vocab_size=153_600, d_model=1024, encoder_layers=24, decoder_layers=16,
    encoder_heads=16, decoder_heads=16, encoder_ff=4096, decoder_ff=4096,
  ),
}  # fmt: skip
KINDS = {'full': None, 'lora': 'float32', 'lora-bfloat16': 'bfloat16'}


def random_batch(vocab_size: int) -> dict:
  """Returns full rows of random ids."""
  rng = np.random.default_rng(0)
  ids = lambda n: rng.integers(3, vocab_size, (B, n), np.int32)
  return {
    'encoder_input_tokens': ids(S),
    'encoder_segment_ids': np.ones((B, S), np.int32),
    'decoder_input_tokens': ids(T),
    'decoder_target_tokens': ids(T),
    'decoder_segment_ids': np.ones((B, T), np.int32),
    'decoder_loss_weights': np.ones((B, T), np.float32),
    'objective': np.zeros(B, np.int32),
  }


def make_zeros(abstract):
  """Returns arrays of zeros, one at a time: random ones would peak higher."""
  zeros = lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
  return jax.tree.map(zeros, abstract)


def measure(sizes: str, kind: str, steps: int) -> str:
  """Runs steps of a kind in this process; returns a line about them."""
  xla_options.set_flags()
  mesh, rules = mesh_lib.make_mesh(devices=jax.devices()[:1]), sharding.Rules()
  net = transformer.AlexaTM(config.ModelConfig(**SIZES[sizes], **COMMON))
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  lora = KINDS[kind] and LoraConfig(rank=RANK)
  abstract = step.abstract_state(net, tx, mesh, rules, lora)
  base = ()
  if lora:
    base = (lora_base.abstract_base(net, mesh, rules, KINDS[kind]),)
  batch = random_batch(net.config.vocab_size)
  with sharding.use_mesh(mesh, rules):
    batch = sharding.shard_batch(batch, mesh, rules)
    update = functools.partial(step.train_step, net, tx, lora=lora)
    lowered = xla_options.jit_update(update, abstract).lower(
      abstract, batch, *base
    )
    update = xla_options.compile_program(lowered, jax.devices()[0])
    # A CPU's `peak_memory_in_bytes` leaves out temporaries.
    memory = update.memory_analysis()
    held, made = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    line = (
      f'{sizes:6} {kind:14} {held / 2**30:6.2f} GiB held, '
      f'{made / 2**30:6.2f} made in a step by the compiler'
    )
    if not steps:
      return line
    state, base = make_zeros(abstract), make_zeros(base)
    spent = []
    for _ in range(steps + 1):  # the first one warms up
      begun = time.process_time(), time.perf_counter()
      state, _ = update(state, batch, *base)
      jax.block_until_ready(state)
      ended = time.process_time(), time.perf_counter()
      spent.append([b - a for a, b in zip(begun, ended)])
  cpu, wall = (statistics.median(column) for column in zip(*spent[1:]))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  return f'{line}, {peak:6.2f} used; {cpu:7.2f} CPU s, {wall:7.2f} s a step'


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--sizes', choices=SIZES, default='base')
  parser.add_argument('--kinds', default=','.join(KINDS))
  parser.add_argument('--steps', type=int, default=3)
  parser.add_argument('--here', action='store_true')
  given = parser.parse_args()
  for kind in given.kinds.split(','):
    if given.here:
      print(measure(given.sizes, kind, given.steps), flush=True)
      continue
    command = [sys.executable, __file__, '--here', f'--kinds={kind}']
    command += [f'--sizes={given.sizes}', f'--steps={given.steps}']
    subprocess.run(command, check=True)


if __name__ == '__main__':
  main()
