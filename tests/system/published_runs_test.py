"""Published runs that plans are compared with: their counts and their model."""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

from atm.model import config
from atm.parallel.mesh import make_mesh

BENCHMARKS = pathlib.Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture(scope='module')
def runs():
  sys.path.insert(0, str(BENCHMARKS))
  try:
    import published_runs
  finally:
    sys.path.remove(str(BENCHMARKS))
  return published_runs


@pytest.mark.parametrize(
  'name, counted, share',
  [
    ('v4 22B', 0, 0.567),
    ('v4 52B', 0, 0.560),
    ('v5e 16B', 2, 0.611),
    ('v5e 32B', 2, 0.669),
    ('v5p 32B', 1, 0.715),
    ('v5p 128B', 1, 0.687),
    ('v6e Llama 2 70B', 2, 0.438),
    ('v6e Llama 3.1 70B', 2, 0.503),
    ('v6e Llama 3.1 8B', 2, 0.455),
  ],
)
def test_counts_are_those_of_the_published_share_of_peak(
  runs, name, counted, share
):
  """Fault seen: gated units in models of before them."""
  run = runs.RUNS[name]
  flops = run.count_flops(counted)
  found = flops / run.measured / run.pod.chip.peak
  assert found == pytest.approx(share, abs=0.0025)


def test_a_decoder_sees_no_later_token(runs):
  """Shared keys, gated units, heads that are not the width together."""
  run = dataclasses.replace(
    runs.RUNS['v6e Llama 3.1 8B'], width=8, depth=2, heads=4, kv_heads=4,
    head=4, ff=16, vocabulary=32, length=6, attention='einsum', remat='full',
  )  # fmt: skip
  sizes = config.ModelConfig(
    vocab_size=32, d_model=8, encoder_heads=1, decoder_heads=1, positions=6,
    dtype='float32', ties='embeddings', norm='uncentred',
    position_embedding='sinusoidal',
  )  # fmt: skip
  model = runs.Decoder(sizes, run)
  tokens = jnp.array([[3, 4, 5, 6, 7, 8], [3, 4, 5, 9, 9, 9]])
  params = model.init(jax.random.key(0), tokens, tokens)
  first, second = model.apply(params, tokens, tokens)
  assert jnp.allclose(first[:3], second[:3], atol=1e-6)
  assert not jnp.allclose(first[3], second[3], atol=1e-3)
  _, lower = model.apply(params, tokens, tokens[:, ::-1])
  assert not jnp.allclose(lower[-1], second[2], atol=1e-3)


def test_a_training_step_takes_the_decoders_loss(runs):
  """Fault seen: a step gave its loss one setting more than a decoder took."""
  run = dataclasses.replace(
    runs.RUNS['v4 22B'], width=8, depth=1, heads=1, head=8, ff=16,
    vocabulary=32, length=256, rows=1,
  )  # fmt: skip
  target = runs.hardware.find_target(None, lambda devices: make_mesh())
  assert runs.make_step(run, target).trace()
