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
from small_models import PUBLIC


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
    (dict(b1=1.0), 'b1 = 1.0: expected .* below 1'),
    (dict(clip_norm=0.0), 'clip_norm = 0.0: .* above 0, or None'),
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


@pytest.mark.slow
@pytest.mark.parametrize('name', ['2x4', 'slices'])
@pytest.mark.parametrize('public', PUBLIC)
def test_public_models_are_the_same_sharded(one_device, public, name):
  alone, _ = run(one_device, 3, **PUBLIC[public])
  sharded, _ = run(mesh_lib.make_mesh(**MESHES[name]), 3, **PUBLIC[public])
  np.testing.assert_allclose(sharded, alone, atol=1e-5)


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


# --- A model of two numbers, whose steps are worked out by hand


class Line:
  """Loss (d x + e)^2 at each target; with dropout, x times a draw."""

  loss = 'loss'

  def apply(self, variables, batch, train, z_loss, smoothing, rngs, method):
    assert method == 'loss' and train == (rngs is not None)
    x, params = batch['x'], variables['params']
    if train and 'noise' in batch:
      x = x * jax.random.uniform(rngs['dropout'], x.shape)
    each = params['decoder']['d'] * x + params['encoder']['e']
    weights = batch['decoder_loss_weights']
    total = lambda x: (x * weights).sum(-1)
    return {
      **({'smoothing': smoothing * total(x * each)} if smoothing else {}),
      'loss': total(each**2), 'z_loss': z_loss * total(x**2 * each),
      'correct': total(each > 0), 'weight': weights.sum(-1),
    }  # fmt: skip


def line_batch() -> dict:
  weights = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], np.float32)
  x = np.arange(12, dtype=np.float32).reshape(4, 3) / 8 - 0.5
  segments = np.array([[1, 1, 0], [1, 2, 2], [1, 0, 0], [0, 0, 0]])
  return {
    'x': jnp.asarray(x), 'decoder_loss_weights': jnp.asarray(weights),
    'objective': jnp.array([0, 1, 2, 0]),
    'encoder_segment_ids': jnp.asarray(segments),
  }  # fmt: skip


def line_state(tx, d=0.5, e=0.25) -> step.State:
  params = {'decoder': {'d': jnp.array(d)}, 'encoder': {'e': jnp.array(e)}}
  return step.State(jnp.array(4, jnp.int32), params, tx.init(params))


@pytest.fixture(scope='module')
def line_step():
  rate = optax.inject_hyperparams(optax.scale_by_learning_rate)
  tx = optax.chain(optax.trace(0.9), rate(learning_rate=0.1))
  names = 'z_loss', 'label_smoothing', 'frozen', 'micro_batches'
  return tx, jax.jit(
    functools.partial(step.train_step, Line(), tx), static_argnames=names
  )


@pytest.mark.parametrize('micro_batches', [1, 2, 4])
def test_a_step_worked_out_by_hand(line_step, micro_batches):
  """The mean over the batch's targets, whatever micro-batch they are of."""
  tx, update = line_step
  b, state = line_batch(), line_state(tx)
  x, weights = np.asarray(b['x'], float), np.asarray(b['decoder_loss_weights'])
  each = 0.5 * x + 0.25
  slope = weights * (2 * each + 0.5 * x**2) / 8
  gradient = np.array([(slope * x).sum(), slope.sum()])
  new, m = update(state, b, z_loss=0.5, micro_batches=micro_batches)
  want = np.array([0.5, 0.25]) - 0.1 * gradient
  made = new.params['decoder']['d'], new.params['encoder']['e']
  np.testing.assert_allclose(made, want, rtol=1e-5)
  rows = (weights * each**2).sum(1)
  for name, value in {
    'sum/loss': rows.sum(), 'tokens/target': 8, 'tokens/input': 6,
    'sum/accuracy': (weights * (each > 0)).sum(),
    'sum/z_loss': 0.5 * (weights * x**2 * each).sum(),
    'sum/loss/denoise': rows[0] + rows[3], 'weight/loss/denoise': 4,
    'sum/loss/clm': rows[1], 'weight/loss/clm': 1,
    'sum/loss/pair': rows[2], 'weight/loss/pair': 3,
    'grad_norm': np.linalg.norm(gradient), 'param_norm': np.linalg.norm(want),
    'learning_rate': 0.1, 'skipped': 0,
  }.items():  # fmt: skip
    np.testing.assert_allclose(m.pop(name), value, rtol=1e-5, err_msg=name)
  assert not m and new.step == 5


def test_label_smoothing_is_trained_on_and_logged_apart(line_step):
  tx, update = line_step
  b, state = line_batch(), line_state(tx)
  x, weights = np.asarray(b['x'], float), np.asarray(b['decoder_loss_weights'])
  each = 0.5 * x + 0.25
  new, m = update(state, b, label_smoothing=0.5)
  slope = weights * (2 * each + 0.5 * x) / 8
  want = np.array([0.5, 0.25]) - 0.1 * np.array(
    [(slope * x).sum(), slope.sum()]
  )
  made = new.params['decoder']['d'], new.params['encoder']['e']
  np.testing.assert_allclose(made, want, rtol=1e-5)
  np.testing.assert_allclose(m['sum/loss'], (weights * each**2).sum(), 1e-5)
  smoothing = 0.5 * (weights * x * each).sum()
  np.testing.assert_allclose(m['sum/smoothing'], smoothing, 1e-5)


@pytest.mark.parametrize('what', ['loss', 'norm'])
def test_a_step_that_is_not_finite_changes_nothing(line_step, what):
  """Faults seen: a norm alone let through; moments of nan kept."""
  tx, update = line_step
  b, state = line_batch(), line_state(tx)
  if what == 'loss':
    b['x'] = b['x'].at[2, 1].set(np.nan)
  else:  # the loss is 1e20, its slope 1e34, whose square is no float32
    state = line_state(tx, d=1e-15, e=0.0)
    b['x'] = b['x'].at[2, 1].set(1e25)
  new, m = update(state, b)
  assert m['skipped'] == 1 and new.step == 5
  if what == 'norm':
    assert np.isfinite(m['sum/loss']) and not np.isfinite(m['grad_norm'])
  for a, c in zip(
    jax.tree.leaves((state.params, state.opt_state)),
    jax.tree.leaves((new.params, new.opt_state)),
    strict=True,
  ):
    assert a == c


def test_a_batch_without_targets_changes_nothing(line_step):
  tx, update = line_step
  b, state = line_batch(), line_state(tx)
  b['decoder_loss_weights'] = b['decoder_loss_weights'] * 0
  new, m = update(state, b)
  assert m['skipped'] == 0 and m['grad_norm'] == 0
  assert new.params == state.params


def test_micro_batches_draw_dropout_of_their_own(line_step):
  """Fault seen: one key for all, which drops the same of each."""
  tx, update = line_step
  b, state = line_batch(), line_state(tx)
  b = {**b, 'x': jnp.ones((4, 3)), 'noise': jnp.zeros(4)}
  b['decoder_loss_weights'] = jnp.ones((4, 3))
  b['objective'] = jnp.array([0, 1, 0, 1])  # of micro-batch 0 and 1
  m = update(state, b, micro_batches=2)[1]
  assert m['sum/loss/denoise'] != m['sum/loss/clm']
  with pytest.raises(ValueError, match='micro_batches = 3 does not divide 4'):
    update(state, b, micro_batches=3)


def test_a_frozen_encoder_stays(line_step):
  tx, update = line_step
  b = line_batch()
  with pytest.raises(ValueError, match='keeps the encoder apart'):
    update(line_state(tx), b, frozen=True)
  apart = optimizer.make_optimizer(
    optimizer.OptimizerConfig(learning_rate=0.1, clip_norm=None),
    encoder_apart=True,
  )
  state = line_state(apart)
  made = jax.jit(functools.partial(step.train_step, Line(), apart, frozen=True))
  new, m = made(state, b)
  assert new.params['encoder'] == state.params['encoder']
  assert new.params['decoder'] != state.params['decoder']
  x, weights = np.asarray(b['x']), np.asarray(b['decoder_loss_weights'])
  slope = (weights * 2 * (0.5 * x + 0.25) * x).sum() / 8
  np.testing.assert_allclose(m['grad_norm'], abs(slope), rtol=1e-5)


def test_evaluation_is_without_dropout_and_z_loss():
  b, params = line_batch(), line_state(optax.identity()).params
  sums = step.eval_step(Line(), params, {**b, 'noise': jnp.zeros(4)})
  each = np.asarray(b['decoder_loss_weights'] * (0.5 * b['x'] + 0.25) ** 2)
  np.testing.assert_allclose(sums['loss'], each.sum(1), rtol=1e-6)
  assert not sums['z_loss'].any()
