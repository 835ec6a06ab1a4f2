"""Low-rank adapters: which matrices, how they begin, what they change."""

import functools
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from atm.model import lora, parameters
from atm.model.lora import LoraConfig
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding, xla_options
from atm.parallel.sharding import Rules
from atm.train import optimizer, step

import conftest
from conftest import tiny

EVERY = LoraConfig(rank=4, targets=('kernel', 'embedding', 'lm_head'))


def init_boxed(config: LoraConfig):
  """Returns boxed parameters of a tiny model, and boxed adapters."""
  boxed = parameters.init_params(AlexaTM(tiny()), 0)
  return boxed, lora.init_adapters(boxed, config, jax.random.key(1))


def fill(adapters: dict, seed: int = 2) -> dict:
  """Returns adapters whose halves that are zeros have numbers, too."""
  leaves, tree = jax.tree.flatten(adapters)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return tree.unflatten(
    [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
  )


def test_adapters_begin_as_no_change_and_lie_as_their_matrices():
  """Faults: a product that is not 0, wrong axes, one key for all."""
  boxed, adapters = init_boxed(EVERY)
  query = adapters['encoder']['layers']['attention']['query']['kernel']
  assert query['a'].names == ('layers', 'embed', None)
  assert query['b'].names == ('layers', None, 'heads')
  assert query['a'].value.shape == (2, 32, 4)
  head = adapters['lm_head']
  assert [head['a'].names, head['b'].names] == [
    ('vocab', None),
    (None, 'embed'),
  ]
  params, adapters = nn.unbox(boxed), nn.unbox(adapters)
  merged = lora.merge(params, adapters, EVERY)
  jax.tree.map(np.testing.assert_array_equal, merged, params)
  drawn = [x for x in jax.tree.leaves(adapters) if x.any()]
  assert 2 * len(drawn) == len(jax.tree.leaves(adapters))
  assert len({float(x.ravel()[0]) for x in drawn}) == len(drawn)


def test_merging_adds_the_scaled_product_to_adapted_matrices_alone():
  """Faults: the other scale, the wrong order, other parameters changed."""
  for rslora, scale in (False, 32 / 4), (True, 32 / 2):
    config = LoraConfig(rank=4, targets=('decoder.*value',), rslora=rslora)
    params, adapters = map(nn.unbox, init_boxed(config))
    adapters = fill(adapters)
    paths = ['/'.join(path) for path in lora.flatten_adapters(adapters)]
    assert paths == [
      f'decoder/layers/{kind}_attention/value/kernel' for kind in
      ('cross', 'self')
    ]  # fmt: skip
    merged = lora.merge(params, adapters, config)
    of = lambda tree: tree['decoder']['layers']['self_attention']['value']
    a, b = (np.float64(of(adapters)['kernel'][name]) for name in 'ab')
    want = of(params)['kernel'] + scale * np.einsum('lir,lro->lio', a, b)
    np.testing.assert_allclose(of(merged)['kernel'], want, atol=1e-6)
    assert merged['lm_head'] is params['lm_head']


def test_patterns_and_adapters_that_fit_nothing_are_refused():
  """Fault: a misspelt pattern that adapts nothing in silence."""
  with pytest.raises(ValueError, match="'q_proj' is found in no path"):
    init_boxed(LoraConfig(rank=4, targets=('kernel', 'q_proj')))
  with pytest.raises(ValueError, match='no regular expression'):
    LoraConfig(rank=4, targets=('(',))
  params, adapters = map(nn.unbox, init_boxed(EVERY))
  other = {**params, 'lm_head': params['lm_head'][:64]}
  with pytest.raises(ValueError, match=r'lm_head is \[64, 32\]'):
    lora.merge(other, adapters, EVERY)
  del other['lm_head']
  with pytest.raises(ValueError, match='lm_head, which an adapter changes'):
    lora.merge(other, adapters, EVERY)


# --- In the layers


def split_mesh():
  """Returns eight devices that all axes are split over."""
  return mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)


def differentiate(net, mesh, params, adapters, config: LoraConfig):
  """Returns the loss of all rows and its gradient by the adapters."""
  made = conftest.batch(np.random.default_rng(0), 8, 7, 12)

  def loss(adapters, batch):
    return step.forward(net, adapters, batch, base=params, lora=config)[
      'loss'
    ].sum()

  with sharding.use_mesh(mesh, Rules()):
    placed = sharding.shard_batch(made, mesh, Rules())
    return jax.device_get(jax.jit(jax.value_and_grad(loss))(adapters, placed))


@pytest.mark.parametrize(
  'ties', ['none', pytest.param('all', marks=pytest.mark.slow)]
)
def test_adapted_layers_are_those_of_merged_weights(one_device, ties):
  """Faults: a matrix without its change, scale twice, A and B of another layer;
  a gradient that is not that of W = W0 + scale A B."""
  net = AlexaTM(tiny(ties=ties, embed_scale=True, loss_chunk=5, remat='dots'))
  boxed = parameters.init_params(net, 0)
  targets = ('kernel', 'embedding') + ('lm_head',) * (ties == 'none')
  config = LoraConfig(rank=3, alpha=1.5, targets=targets)
  adapters = lora.init_adapters(boxed, config, jax.random.key(1))
  params, adapters = nn.unbox(boxed), fill(nn.unbox(adapters))

  found = differentiate(net, one_device, params, adapters, config)
  merged = lora.merge(params, adapters, config)
  made = conftest.batch(np.random.default_rng(0), 8, 7, 12)
  loss = lambda w: step.forward(net, w, made)['loss'].sum()
  with sharding.use_mesh(one_device, Rules()):
    whole = jax.jit(jax.value_and_grad(loss))(merged)
  np.testing.assert_allclose(found[0], whole[0], rtol=1e-5)
  by_w = lora.flatten_adapters(whole[1])
  for path, adapter in lora.flatten_adapters(adapters).items():
    g = np.float64(by_w[path])
    a, b = (np.float64(adapter[name]) for name in 'ab')
    want = {'a': g @ b.swapaxes(-1, -2), 'b': a.swapaxes(-1, -2) @ g}
    mine = lora.flatten_adapters(found[1])[path]
    for name, x in want.items():
      x *= config.scale
      limit = 2e-5 * np.abs(x).max()
      np.testing.assert_allclose(mine[name], x, atol=limit, err_msg=f'{path}')

  if ties == 'none':
    split = differentiate(net, split_mesh(), params, adapters, config)
    np.testing.assert_allclose(split[0], found[0], rtol=1e-5)
    alike = lambda x, y: np.testing.assert_allclose(
      x, y, atol=2e-5 * np.abs(y).max()
    )
    jax.tree.map(alike, split[1], found[1])


def test_a_step_makes_no_gradient_of_a_base_matrix(one_device):
  """Fault: gradients of the base summed up, and moments for them."""
  net = AlexaTM(tiny(remat='full', loss_chunk=5, vocab_size=112))
  config = LoraConfig(rank=4)
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  state = step.abstract_state(net, tx, one_device, Rules(), config)
  base = parameters.abstract_params(net, one_device, Rules())
  made = conftest.batch(np.random.default_rng(0), 8, 7, 12)
  with sharding.use_mesh(one_device, Rules()):
    placed = sharding.shard_batch(made, one_device, Rules())
    update = functools.partial(step.train_step, net, tx, lora=config)
    program = xla_options.jit_update(update, state).lower(state, placed, base)
  text = program.compile().as_text()
  # Of all layers, and of the LM head: read, never made.
  for shape in '2,32,32', '3,32,32', '2,32,64', '3,48,32', '112,32':
    made_by = set(re.findall(rf'= f32\[{shape}\]\S* ([\w-]+)\(', text))
    assert made_by <= {'parameter', 'get-tuple-element'}, (shape, made_by)
  names = lambda tree: {x.shape for x in jax.tree.leaves(tree)}
  assert not names(base) & names(state.opt_state) - {()}


def test_dropout_is_of_the_change_alone_and_only_while_training(one_device):
  """Faults: dropout of x W, too; one mask for all layers; dropout in
  evaluations."""
  net = AlexaTM(tiny(loss_chunk=64))
  config = LoraConfig(rank=3, dropout=0.5, targets=('kernel', 'embedding'))
  boxed = parameters.init_params(net, 0)
  adapters = lora.init_adapters(boxed, config, jax.random.key(1))
  params, fresh = nn.unbox(boxed), nn.unbox(adapters)
  made = conftest.batch(np.random.default_rng(0), 8, 7, 12)

  def compute(adapters, key=None):
    return step.forward(net, adapters, made, key, base=params, lora=config)[
      'loss'
    ].sum()

  with sharding.use_mesh(one_device, Rules()):
    held_out, trained = jax.jit(compute), jax.jit(compute)
    first, second = jax.random.split(jax.random.key(0))
    # B is 0: what is dropped changes nothing.
    np.testing.assert_allclose(trained(fresh, first), held_out(fresh), 1e-6)
    filled = fill(fresh)
    losses = [trained(filled, key) for key in (first, first, second)]
    assert losses[0] == losses[1] != losses[2]
    assert held_out(filled) not in losses
