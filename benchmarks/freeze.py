"""A step with the encoder frozen against a full step.

Both train the same small model on the same batch, in turn, a pair at a time;
prints the model FLOPs and the median time of each, and the ratios full / frozen
(of the times: the median over the pairs).

  python benchmarks/freeze.py
"""

import functools
import statistics
import time

import jax
import numpy as np

from atm.model import config, transformer
from atm.model import flops as flops_lib
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding, xla_options
from atm.train import optimizer, step

PAIRS, B, S, T = 24, 8, 128, 128
CONFIG = config.ModelConfig(
  vocab_size=2000,
  d_model=256,
  encoder_layers=4,
  decoder_layers=4,
  encoder_heads=4,
  decoder_heads=4,
  encoder_ff=1024,
  decoder_ff=1024,
  positions=128,
  dtype='float32',
)


def random_batch() -> dict:
  """Full rows of random ids."""
  rng = np.random.default_rng(0)
  ids = lambda n: rng.integers(3, CONFIG.vocab_size, (B, n), np.int32)
  return {
    'encoder_input_tokens': ids(S),
    'encoder_segment_ids': np.ones((B, S), np.int32),
    'decoder_input_tokens': ids(T),
    'decoder_target_tokens': ids(T),
    'decoder_segment_ids': np.ones((B, T), np.int32),
    'decoder_loss_weights': np.ones((B, T), np.float32),
    'objective': np.zeros(B, np.int32),
  }


class Steps:
  """One of the two programs, with a state of its own."""

  def __init__(self, mesh, frozen: bool):
    net = transformer.AlexaTM(CONFIG)
    tx = optimizer.make_optimizer(
      optimizer.OptimizerConfig(), encoder_apart=True
    )
    abstract = step.abstract_state(net, tx, mesh, sharding.Rules())
    self.state = step.init_state(net, tx, 0, abstract)
    self.batch = sharding.shard_batch(random_batch(), mesh, sharding.Rules())
    update = functools.partial(step.train_step, net, tx, frozen=frozen)
    update = jax.jit(update, donate_argnums=0)
    lowered = update.lower(self.state, self.batch)
    self.update = xla_options.compile_program(lowered, jax.devices()[0])

  def seconds(self) -> float:
    """Does a step; its time."""
    start = time.perf_counter()
    self.state, _ = self.update(self.state, self.batch)
    jax.block_until_ready(self.state)
    return time.perf_counter() - start


def main():
  xla_options.set_flags()
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  flops = [
    flops_lib.train_flops(CONFIG, B, S, T, frozen=frozen)
    for frozen in (True, False)
  ]
  with sharding.use_mesh(mesh, sharding.Rules()):
    frozen, full = Steps(mesh, True), Steps(mesh, False)
    pairs = [(frozen.seconds(), full.seconds()) for _ in range(PAIRS + 2)][2:]
  times = [statistics.median(column) for column in zip(*pairs, strict=True)]
  for name, work, seconds in zip(('frozen', 'full'), flops, times, strict=True):
    print(f'{name:8} {work / 1e9:8.2f} GFLOP {1e3 * seconds:9.1f} ms a step')
  ratio = statistics.median(b / a for a, b in pairs)
  print(f'ratio    {flops[1] / flops[0]:8.2f}       {ratio:9.2f}')


if __name__ == '__main__':
  main()
