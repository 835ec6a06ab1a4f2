"""Loss and gradients of a tiny model on a mesh, for comparisons."""

import jax
import numpy as np

from atm.model import parameters
from atm.model.transformer import AlexaTM
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.train import step

from conftest import tiny

SMALL = dict(encoder_layers=2, decoder_layers=2)


def loss_and_gradients(mesh, rows, run=True, **changes):
  """Returns both of a fresh tiny model on a mesh; or the jaxpr of that."""
  net = AlexaTM(tiny(**changes))
  abstract = parameters.abstract_params(net, mesh, Rules())

  def mean(params, rows):
    sums = step.forward(net, params, rows)
    return sums['loss'].sum() / sums['weight'].sum()

  compute = jax.value_and_grad(mean)
  with sharding.use_mesh(mesh, Rules()):
    rows = sharding.shard_batch(rows, mesh, Rules())
    if not run:
      return jax.make_jaxpr(compute)(abstract, rows)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: jax.device_put(
        0.2 * draw.standard_normal(x.shape).astype(np.float32), x.sharding
      ),
      abstract,
    )
    return jax.device_get(jax.jit(compute)(params, rows))


def assert_close(got, want):
  """Compares two trees within the rounding of other kernels."""
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    got,
    want,
  )
