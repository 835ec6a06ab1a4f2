"""FLOPs by formula and by the jaxpr."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.model import config as config_lib
from atm.model import flops, transformer
from atm.parallel import sharding
from atm.train import optimizer
from atm.train import step as step_lib

from conftest import batch


def test_flops_are_those_of_the_steps_matrix_products(one_device):
  """The formula against a count over the traced step, backward included."""
  B, S, T = 2, 40, 28
  config = config_lib.ModelConfig(
    vocab_size=512, d_model=64, encoder_layers=2, decoder_layers=3,
    encoder_heads=4, decoder_heads=2, encoder_ff=512, decoder_ff=256,
    positions=64, dtype='float32', attention='einsum',  # makes nothing again
  )  # fmt: skip
  net = transformer.AlexaTM(config)
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  state = step_lib.abstract_state(net, tx, one_device, sharding.Rules())
  b = batch(np.random.default_rng(0), B, S, T)
  traced = jax.make_jaxpr(functools.partial(step_lib.train_step, net, tx))(
    state, b
  )
  counted = flops.jaxpr_flops(traced.jaxpr)
  assert counted == pytest.approx(flops.train_flops(config, B, S, T), rel=1e-9)


def test_loops_count_as_often_as_they_run():
  """A scan of three products, and the dearer branch of a `cond`.

  Faults seen: a loop's body counted once; both branches counted.
  """
  x = jnp.ones((4, 8))
  w = jnp.ones((8, 8))
  one = 2 * 4 * 8 * 8

  def looped(x):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=3)[0]

  def branched(x):
    return jax.lax.cond(x[0, 0] > 0, looped, lambda x: x @ w, x)

  count = lambda f: flops.jaxpr_flops(jax.make_jaxpr(f)(x).jaxpr)
  assert count(lambda x: x @ w) == one
  assert count(looped) == count(branched) == 3 * one
