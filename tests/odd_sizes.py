"""What models and products of odd sizes compute, to compare two compilers.

Run as `odd_sizes.py FILE MODELS`, with the XLA_FLAGS of either: writes arrays.
"""

import functools
import math
import sys

import jax
import numpy as np

from atm.inference import api, sampling
from atm.model import compiler_check
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel import mesh, xla_options
from atm.parallel.sharding import Rules

EDGE = 2**15  # rows of which a broken release computed the last ones wrongly


def draw_config(draws: np.random.Generator, number: int) -> ModelConfig:
  """Draws sizes that divide nothing; heads are three, five or seven wide."""
  pick = lambda *values: draws.choice(np.array(values, object))
  heads, width = pick(1, 3, 5), pick(3, 5, 7)
  return ModelConfig(
    vocab_size=pick(11, 97, 251), d_model=heads * width, encoder_layers=1,
    decoder_layers=pick(1, 2), encoder_heads=heads,
    decoder_heads=pick(1, heads), encoder_ff=pick(1, 7, 33),
    decoder_ff=pick(3, 5, 129), positions=33, loss_chunk=pick(1, 5, 64),
    dtype=('float32', 'bfloat16')[number % 2], remat=pick('none', 'full'),
    ties=pick('none', 'decoder_head', 'all'),
    norm=pick('standard', 'uncentred'), attention=pick('einsum', 'rows'),
  )  # fmt: skip


def train_and_decode(draws, config: ModelConfig, name: str) -> dict:
  """Returns losses and gradients near EDGE positions, and generations."""
  S, T = draws.integers(1, 17, 2) * 2 + 1
  B = math.ceil(EDGE / min(S, T)) + int(draws.integers(-1, 3))
  params = compiler_check.draw_params(config, draws)
  batch = compiler_check.make_batch(draws, B, S, T, config.vocab_size)
  rows = functools.partial(compiler_check.row_losses, AlexaTM(config))
  losses, gradients = jax.jit(compiler_check.differentiate(rows, True))(
    params, batch
  )
  out = {f'{name}/rows': losses}
  for number, x in enumerate(jax.tree.leaves(gradients)):
    out[f'{name}/gradient/{number}'] = x
  one = mesh.make_mesh(devices=jax.devices()[:1])
  model = api.Model(config, jax.device_put(params), None, one, Rules(), 0)
  prompts = [
    draws.integers(3, config.vocab_size, n).tolist()
    for n in draws.integers(1, 33, 13)
  ]
  for beams in (1, 3):
    made = model.complete(
      prompts, config=sampling.Config(max_tokens=7, beams=beams), batch_size=5
    )
    out[f'{name}/beams {beams}'] = np.array(
      [sum(best.log_probabilities) for best, *_ in made]
    )
  return out


def sum_powers(matrix, power: int, row):
  """Returns the sum over a product with one row, to a power."""
  return ((matrix @ row) ** power).sum()


def multiply(draws) -> dict:
  """Returns rows of products with small matrices, and what numpy computes."""
  out = {}
  for width in (1, 2, 3, 5):
    for number in (EDGE // 2 + 1, EDGE - 1, EDGE + 1, 40_000, 2 * EDGE + 1):
      matrix = draws.standard_normal((width, width), np.float32)
      rows = draws.standard_normal((number, width), np.float32)
      for power in (1, 2):
        name = f'product/{width} {number} {power}'
        out[name] = jax.jit(
          jax.vmap(functools.partial(sum_powers, matrix, power))
        )(rows)
        exact = rows.astype(np.float64) @ matrix.T.astype(np.float64)
        out[f'exact {name}'] = (exact**power).sum(-1)
  return out


def main(path: str, models: str) -> None:
  xla_options.set_flags()
  draws = np.random.default_rng(0)
  arrays = multiply(draws)
  for number in range(int(models)):
    config = draw_config(draws, number)
    name = f'{config.dtype} {number}'
    arrays |= train_and_decode(draws, config, name)
  np.savez(path, **jax.device_get(arrays))


if __name__ == '__main__':
  main(*sys.argv[1:])
