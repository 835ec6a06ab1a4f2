"""Micro-batches: memory and time of a step of gin/models/small.gin's sizes.

Steps with 1, 4 and 8 micro-batches train the same state on the same batch in
turn, a round at a time; prints, for each, XLA's memory beside the state and the
batch (activations, gradients), the median time of a step, and the median over
the rounds of its ratio to that of one micro-batch. Takes about 15 minutes and
10 GB on two cores; --batch=8 takes half of both.

  python benchmarks/accumulate.py [--batch=16] [--rounds=3]
"""

import argparse
import functools
import statistics
import time

import jax
import numpy as np

from atm.model import config, transformer
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding, xla_options
from atm.train import optimizer, step

NUMBERS, LENGTH = (1, 4, 8), 512
CONFIG = config.ModelConfig(
  vocab_size=32000,
  d_model=512,
  encoder_layers=6,
  decoder_layers=6,
  encoder_heads=8,
  decoder_heads=8,
  encoder_ff=2048,
  decoder_ff=2048,
  positions=LENGTH,
  dtype='float32',
)


def random_batch(rows: int) -> dict:
  """Full rows of random ids."""
  rng = np.random.default_rng(0)
  shape = rows, LENGTH
  ids = lambda: rng.integers(3, CONFIG.vocab_size, shape, np.int32)
  return {
    'encoder_input_tokens': ids(),
    'encoder_segment_ids': np.ones(shape, np.int32),
    'decoder_input_tokens': ids(),
    'decoder_target_tokens': ids(),
    'decoder_segment_ids': np.ones(shape, np.int32),
    'decoder_loss_weights': np.ones(shape, np.float32),
    'objective': np.zeros(rows, np.int32),
  }


def compiled(net, tx, state, batch, number: int):
  update = functools.partial(step.train_step, net, tx, micro_batches=number)
  lowered = jax.jit(update, donate_argnums=0).lower(state, batch)
  return xla_options.compile_program(lowered, jax.devices()[0])


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--rounds', type=int, default=3)
  given = parser.parse_args()
  xla_options.set_flags()
  mesh, rules = mesh_lib.make_mesh(devices=jax.devices()[:1]), sharding.Rules()
  net, tx = (
    transformer.AlexaTM(CONFIG),
    optimizer.make_optimizer(optimizer.OptimizerConfig()),
  )
  abstract = step.abstract_state(net, tx, mesh, rules)
  state = step.init_state(net, tx, 0, abstract)
  seconds = {number: [] for number in NUMBERS}
  with sharding.use_mesh(mesh, rules):
    batch = sharding.shard_batch(random_batch(given.batch), mesh, rules)
    updates = {n: compiled(net, tx, state, batch, n) for n in NUMBERS}
    for _ in range(given.rounds + 1):
      for number, update in updates.items():
        start = time.perf_counter()
        state, _ = update(state, batch)
        jax.block_until_ready(state)
        seconds[number].append(time.perf_counter() - start)
  print(f'{given.batch} rows of {LENGTH} + {LENGTH} tokens')
  print('micro-batches   memory, GiB   seconds a step   ratio')
  for number, update in updates.items():
    memory = update.memory_analysis().temp_size_in_bytes / 2**30
    mine, ones = seconds[number][1:], seconds[1][1:]  # the first warms up
    ratio = statistics.median(a / b for a, b in zip(mine, ones))
    print(
      f'{number:13} {memory:13.2f} {statistics.median(mine):16.1f} {ratio:7.2f}'
    )


if __name__ == '__main__':
  main()
