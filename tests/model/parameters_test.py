"""Parameters as shapes are those that are made; sizes that do not divide."""

import flax.linen as nn
import jax
import pytest

from atm.model import parameters
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

from conftest import tiny


def test_abstract_parameters_are_those_that_are_made():
  """Fault seen: an array taken whole that its axes split."""
  mesh, net = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2), AlexaTM(tiny())
  abstract = parameters.abstract_params(net, mesh, Rules())
  boxed = jax.eval_shape(lambda: parameters.init_params(net, 0))
  fresh = nn.unbox(boxed)
  same = lambda x, y: x.shape == y.shape and x.dtype == y.dtype
  assert all(jax.tree.leaves(jax.tree.map(same, abstract, fresh)))
  kernel = abstract['encoder']['layers']['feed_forward']['up']['kernel']
  assert kernel.sharding.spec == jax.P(None, 'fsdp', 'tensor')
  assert abstract['lm_head'].sharding.spec == jax.P('tensor', 'fsdp')


def test_a_size_that_does_not_divide_is_named():
  """Fault seen: sizes not checked before parameters are placed."""
  mesh = mesh_lib.make_mesh(data=1, fsdp=8)
  net = AlexaTM(tiny(d_model=36))
  with pytest.raises(ValueError, match='Config.d_model = 36'):
    parameters.abstract_params(net, mesh, Rules())
