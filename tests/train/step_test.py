"""The step: the loss, the update, and that shards change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atm.model.loss import cross_entropy
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.train import optimizer, step

from conftest import batch, tiny


def test_cross_entropy_is_optaxs(rng):
  """Fault seen: weights ignored."""
  logits = rng.standard_normal((3, 5, 11)).astype(np.float32)
  targets = rng.integers(0, 11, (3, 5))
  weights = (rng.random((3, 5)) < 0.6).astype(np.float32)
  sums = cross_entropy(logits, targets, weights, z_loss=0.1)
  each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  np.testing.assert_allclose(sums['loss'], (each * weights).sum(1), rtol=1e-5)
  right = (logits.argmax(-1) == targets) * weights
  np.testing.assert_allclose(sums['correct'], right.sum(1))
  np.testing.assert_allclose(sums['weight'], weights.sum(1))
  z = jax.nn.logsumexp(logits, -1) ** 2
  np.testing.assert_allclose(
    sums['z_loss'], 0.1 * (z * weights).sum(1), rtol=1e-5
  )


def test_the_papers_schedule():
  rate = optimizer.make_schedule(optimizer.OptimizerConfig())
  assert rate(0) == pytest.approx(1e-4)
  assert rate(250_000) == pytest.approx((1e-4 + 5e-6) / 2)
  assert rate(500_000) == rate(600_000) == pytest.approx(5e-6)
  warm = optimizer.make_schedule(optimizer.OptimizerConfig(warmup_steps=100))
  assert warm(0) == 0 and warm(50) == pytest.approx(5e-5)
  assert warm(100) == pytest.approx(1e-4)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(b1=1.0), r'b1 = 1.0: expected less than 1'),
    (dict(clip_norm=0.0), 'clip_norm = 0.0: expected > 0 or None'),
    (dict(warmup_steps=9, decay_steps=9), 'warmup_steps = 9'),
    (
      dict(weight_decay=-1.0),
      'weight_decay = -1.0: expected a number of at',
    ),
  ],
)
def test_optimizer_config_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    optimizer.OptimizerConfig(**changes)


def setup(mesh, **changes):
  """(model, tx, fresh state, jitted step) on a mesh."""
  net = AlexaTM(tiny(**changes))
  tx = optimizer.make_optimizer(
    optimizer.OptimizerConfig(learning_rate=1e-2, decay_steps=20)
  )
  abstract = step.abstract_state(net, tx, mesh, Rules())
  state = step.init_state(net, tx, 0, abstract)
  update = jax.jit(
    functools.partial(step.train_step, net, tx), donate_argnums=0
  )
  return net, tx, state, update


def run(mesh, steps, **changes):
  rng = np.random.default_rng(1)
  _, _, state, update = setup(mesh, **changes)
  losses = []
  with sharding.use_mesh(mesh, Rules()):
    for _ in range(steps):
      placed = sharding.shard_batch(batch(rng, 16, 12, 10), mesh, Rules())
      state, m = update(state, placed)
      losses.append(float(m['sum/loss'] / m['tokens/target']))
  return losses, state


def test_decay_spares_biases_and_norms(one_device):
  _, tx, state, _ = setup(one_device)
  zero = jax.tree.map(jnp.zeros_like, state.params)
  updates, _ = jax.jit(tx.update)(zero, tx.init(state.params), state.params)
  for path, x in jax.tree_util.tree_flatten_with_path(updates)[0]:
    kind = path[-1].key
    assert (np.abs(x).max() == 0) == (kind in ('bias', 'scale')), path


def test_the_logged_rate_is_the_one_applied(one_device):
  """Without averaging, Adam moves every parameter by the rate."""
  config = optimizer.OptimizerConfig(
    weight_decay=0.0,
    clip_norm=None,
    warmup_steps=4,
    decay_steps=10,
    b1=0.0,
    b2=0.0,
  )
  tx = optimizer.make_optimizer(config)
  params = {'x': jnp.zeros(3)}
  state = tx.init(params)
  for _ in range(8):
    updates, state = tx.update({'x': jnp.ones(3)}, state, params)
    np.testing.assert_allclose(
      -updates['x'], optimizer.get_learning_rate(state), rtol=1e-5
    )


def test_clipping_bounds_the_gradient():
  tx = optimizer.make_optimizer(
    optimizer.OptimizerConfig(clip_norm=1.0, weight_decay=0.0)
  )
  params = {'x': jnp.zeros(4)}
  _, big = tx.update({'x': 100 * jnp.ones(4)}, tx.init(params), params)
  _, unit = tx.update({'x': 0.5 * jnp.ones(4)}, tx.init(params), params)
  get = functools.partial(optax.tree_utils.tree_get, key='mu')
  np.testing.assert_allclose(get(big)['x'], get(unit)['x'], rtol=1e-6)


def test_loss_is_by_token_and_by_objective(one_device, rng):
  net, _, state, update = setup(one_device)
  b = batch(rng, 6, 12, 10)
  sums = jax.jit(functools.partial(step.forward, net))(state.params, b)
  with sharding.use_mesh(one_device, Rules()):
    _, m = update(state, sharding.shard_batch(b, one_device, Rules()))
  for i, name in enumerate(('denoise', 'clm')):
    mine = b['objective'] == i
    np.testing.assert_allclose(
      m[f'sum/loss/{name}'], np.asarray(sums['loss'])[mine].sum(), rtol=1e-5
    )
    assert m[f'weight/loss/{name}'] == b['decoder_loss_weights'][mine].sum()
  assert m['tokens/input'] == b['encoder_segment_ids'].sum()


MESHES = {
  '8x1': dict(data=8),
  '4x2': dict(data=2, fsdp=2, tensor=2),
  '2x4': dict(data=1, fsdp=2, tensor=4),
  'fsdp8': dict(data=1, fsdp=8),
  'slices': dict(slice=2, data=2, fsdp=2),
}


@pytest.fixture(scope='module')
def single():
  return run(mesh_lib.make_mesh(devices=jax.devices()[:1]), 10)


@pytest.mark.parametrize('name', MESHES)
def test_sharded_equals_unsharded(single, name):
  """Fault seen: parameters replicated where fsdp should split them."""
  mesh = mesh_lib.make_mesh(**MESHES[name])
  losses, state = run(mesh, 10)
  np.testing.assert_allclose(losses, single[0], atol=1e-5)
  shard = state.params['encoder']['layers']['feed_forward']['up']['kernel']
  fsdp, tensor = mesh.shape['fsdp'], mesh.shape['tensor']
  want = (2, 32 // fsdp, 64 // tensor)
  assert {s.data.shape for s in shard.addressable_shards} == {want}
  for table in ('encoder_embedding', 'lm_head'):
    shapes = {s.data.shape for s in state.params[table].addressable_shards}
    assert shapes == {(96 // tensor, 32 // fsdp)}
  moments = optax.tree_utils.tree_get(state.opt_state, 'nu')
  jax.tree.map(
    lambda p, m: (
      p.sharding.is_equivalent_to(m.sharding, p.ndim)
      or pytest.fail('moments are sharded unlike their parameters')
    ),
    state.params,
    moments,
  )


def test_what_waits_in_the_hosts_memory_comes_back_on_any_mesh(single):
  losses, _ = run(
    mesh_lib.make_mesh(**MESHES['4x2']), 10, remat='offload_widened'
  )
  np.testing.assert_allclose(losses, single[0], atol=1e-5)


def test_dropout_changes_with_the_step_and_the_seed(one_device, rng):
  net, tx, state, _ = setup(one_device, dropout=0.3)
  b = batch(rng, 4, 12, 10)
  update = jax.jit(functools.partial(step.train_step, net, tx))
  loss = lambda s, seed: float(update(s, b, seed=seed)[1]['sum/loss'])
  later = state.replace(step=state.step + 1)
  assert loss(state, 0) == loss(state, 0)
  assert loss(state, 0) != loss(later, 0)
  assert loss(state, 0) != loss(state, 1)


def test_init_is_the_same_on_every_mesh(one_device):
  _, _, a, _ = setup(one_device)
  _, _, b, _ = setup(mesh_lib.make_mesh(data=2, fsdp=2, tensor=2))
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)),
    a.params,
    b.params,
  )


def test_a_state_is_the_trees_of_its_checkpoint():
  """Faults seen: the step left out; parameters and optimizer swapped."""
  state = step.State(3, {'w': 1}, ({'mu': 2},))
  trees = state.to_trees()
  assert trees == {
    'params': {'w': 1}, 'optimizer': {'step': 3, 'state': ({'mu': 2},)}
  }  # fmt: skip
  assert step.State.from_trees(trees) == state
