"""A frozen encoder: what stays, what it costs, and how it starts to train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters import partial_eval

from atm.checkpoint import manager
from atm.model import config as config_lib
from atm.model import flops as flops_lib
from atm.model.transformer import AlexaTM
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.train import optimizer, step

from conftest import batch, tiny
from tiny_runs import (
  EIGHT,
  ONE,
  Stop,
  comparable,
  parameters,
)

pytestmark = pytest.mark.processes

RATE = 1e-2
TIES = config_lib.CONFIG_CHOICES['ties']


def setup(mesh=None, apart=True, model_changes=None, **changes):
  """(a fresh state, a jitted step that takes `frozen`)."""
  mesh = mesh or ONE()
  net = AlexaTM(tiny(**(model_changes or {})))
  settings = dict(learning_rate=RATE, final_learning_rate=RATE)
  config = optimizer.OptimizerConfig(**{**settings, **changes})
  tx = optimizer.make_optimizer(config, encoder_apart=apart)
  abstract = step.abstract_state(net, tx, mesh, Rules())
  update = jax.jit(
    functools.partial(step.train_step, net, tx), static_argnames='frozen'
  )
  return step.init_state(net, tx, 0, abstract), update


def run(state, update, steps: int, until: int, mesh=None):
  """The state after each of `steps` updates, frozen up to `until`."""
  mesh = mesh or ONE()
  states, rng = [], np.random.default_rng(1)
  with sharding.use_mesh(mesh, Rules()):
    for n in range(steps):
      placed = sharding.shard_batch(batch(rng, 8, 12, 10), mesh, Rules())
      state, _ = update(state, placed, frozen=n < until)
      states.append(state)
  return states


def adam(state) -> optimizer.EncoderSplit:
  """Adam's state of the encoder and of the rest."""
  parts = next(
    s for s in state.opt_state if isinstance(s, optimizer.EncoderSplit)
  )
  return optimizer.EncoderSplit(*(chain[0] for chain in parts))


def greatest_change(before, after) -> float:
  changes = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), before, after)
  return float(max(jax.tree.leaves(changes)))


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, **tolerance):
  close = functools.partial(np.testing.assert_allclose, **tolerance)
  jax.tree.map(close, a, b)


@pytest.mark.parametrize('ties', ['none', 'embeddings', 'all'])
def test_frozen_parameters_stay_to_the_bit(ties):
  """Fault seen: a gradient of zeros in place of none: decay moves them."""
  changes = dict(ties=ties, token_types=2, dropout=0.1)
  start, update = setup(model_changes=changes)
  frozen = run(start, update, 4, until=4)[-1]
  before, after = (
    optimizer.split_encoder(start.params),
    optimizer.split_encoder(frozen.params),
  )
  assert set(before.encoder) == set(optimizer.ENCODER_PARAMETERS)
  assert_same(before.encoder, after.encoder)
  assert_same(adam(start).encoder, adam(frozen).encoder)
  assert adam(frozen).encoder.count == 0
  assert adam(frozen).rest.count == frozen.step == 4
  for name, x in after.rest.items():
    assert greatest_change(before.rest[name], x) > 0, name


def test_the_rest_trains_as_in_a_full_step():
  """Without clipping, which sees fewer gradients in a frozen step."""
  start, update = setup(clip_norm=None, model_changes=dict(dropout=0.1))
  frozen = run(start, update, 1, until=1)[0]
  full = run(start, update, 1, until=0)[0]
  assert_close(adam(frozen).rest.mu, adam(full).rest.mu, rtol=1e-4, atol=1e-8)
  assert greatest_change(start.params['encoder'], full.params['encoder']) > 0


def test_clipping_is_by_the_norm_of_the_gradients_there_are():
  start, update = setup(clip_norm=1e-3)
  b1 = optimizer.OptimizerConfig().b1
  norm = lambda *trees: float(optax.global_norm(trees)) / (1 - b1)
  frozen = adam(run(start, update, 1, until=1)[0])
  assert norm(frozen.rest.mu) == pytest.approx(1e-3, rel=1e-4)
  full = adam(run(start, update, 1, until=0)[0])
  assert norm(*(part.mu for part in full)) == pytest.approx(1e-3, rel=1e-4)
  assert norm(full.rest.mu) < 0.999e-3


def test_keeping_the_encoder_apart_changes_no_update():
  """Never frozen, two states are one."""
  states = [run(*setup(apart=apart), 3, until=0)[-1] for apart in (True, False)]
  assert_same(*(s.params for s in states))
  whole = optax.tree_utils.tree_get(states[1].opt_state, 'nu')
  assert_same(optimizer.EncoderSplit(*(p.nu for p in adam(states[0]))),
              optimizer.split_encoder(whole))  # fmt: skip


def test_the_states_structure_and_placement_never_change():
  mesh = EIGHT()
  start, update = setup(mesh)
  for state in run(start, update, 4, until=2, mesh=mesh):
    assert jax.tree.structure(state) == jax.tree.structure(start)
    for x, y in zip(
      jax.tree.leaves(state), jax.tree.leaves(start), strict=True
    ):
      assert (x.shape, x.dtype) == (y.shape, y.dtype)
      assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_the_encoder_starts_without_a_kick():
  """Its first updates are no longer than the learning rate allows; with one
  count for all the same gradients move it 3 to 6 times as far."""
  steps, until = 6, 1000
  start, update = setup(weight_decay=0.0, clip_norm=None)
  # As after `until` frozen steps, without doing them.
  aged = jax.tree.map(lambda x: x, start.opt_state)
  parts = next(s for s in aged if isinstance(s, optimizer.EncoderSplit))
  old = parts.rest[0]._replace(count=jnp.int32(until))
  rest = (old, *parts.rest[1:])
  state = start.replace(
    step=jnp.int32(until),
    opt_state=tuple(
      parts._replace(rest=rest) if s is parts else s for s in aged
    ),
  )
  states = [state, *run(state, update, steps, until=0)]
  ours = [
    greatest_change(a.params['encoder'], b.params['encoder'])
    for a, b in zip(states, states[1:])
  ]
  assert ours[0] == pytest.approx(RATE, rel=1e-3)
  assert max(ours) <= 1.05 * RATE
  assert [int(adam(s).encoder.count) for s in states] == list(range(steps + 1))

  shared = optax.scale_by_adam()
  state = shared.init(jnp.zeros(3))._replace(count=jnp.int32(until))
  theirs = []
  for _ in range(steps):
    moved, state = shared.update(jnp.ones(3), state)
    theirs.append(float(moved.max()))
  assert theirs[0] > 2.5 and 4 < max(theirs) < 6
  alone, theirs = shared.init(jnp.zeros(3)), []
  for _ in range(steps):
    moved, alone = shared.update(jnp.ones(3), alone)
    theirs.append(float(moved.max()))
  np.testing.assert_allclose(theirs, 1.0, rtol=1e-4)


def test_both_steps_share_the_schedule():
  start, update = setup(final_learning_rate=0.0, decay_steps=10)
  for n, state in enumerate(run(start, update, 5, until=3)):
    rate = optimizer.get_learning_rate(state.opt_state)
    assert rate == pytest.approx(RATE * (1 - n / 10), rel=1e-5)


def test_a_frozen_step_needs_the_encoder_apart():
  start, update = setup(apart=False)
  with pytest.raises(ValueError, match='encoder_apart=True'):
    run(start, update, 1, until=1)


# --- Cost


def traced(config, B, S, T, frozen):
  net = AlexaTM(config)
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig(), encoder_apart=True)
  state = step.abstract_state(net, tx, ONE(), Rules())
  update = functools.partial(step.train_step, net, tx, frozen=frozen)
  b = batch(np.random.default_rng(0), B, S, T)
  jaxpr = jax.make_jaxpr(update)(state, b).jaxpr
  # Without what nothing reads, as XLA compiles it.
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def count(jaxpr, name: str) -> int:
  """Equations of a kind in a jaxpr and all it holds."""
  return sum(
    (eqn.primitive.name == name)
    + sum(count(j, name) for j in jax.core.jaxprs_in_params(eqn.params))
    for eqn in jaxpr.eqns
  )


@pytest.mark.parametrize('ties', TIES)
def test_flops_are_those_of_the_frozen_steps_matrix_products(ties):
  """Faults seen: no weights' gradient of the cross-attention's keys; a tied LM
  head counted as trained."""
  B, S, T = 2, 40, 28
  config = tiny(
    encoder_ff=512, decoder_ff=256, decoder_heads=2, dropout=0.1, ties=ties,
    attention='einsum',  # makes nothing again
  )  # fmt: skip
  for frozen in (True, False):
    counted = flops_lib.jaxpr_flops(traced(config, B, S, T, frozen))
    formula = flops_lib.train_flops(config, B, S, T, frozen=frozen)
    assert counted == formula, frozen
  assert formula > 1.3 * flops_lib.train_flops(config, B, S, T, frozen=True)


def test_a_frozen_step_has_no_gradient_of_the_encoders_embedding():
  """Only the look-ups' gradients are scattered."""
  config = tiny()
  scatters = [
    count(traced(config, 2, 12, 10, frozen), 'scatter-add')
    for frozen in (True, False)
  ]
  lookups = 1
  assert scatters[1] - scatters[0] == lookups


# --- The loop


@pytest.mark.parametrize(
  'freeze, make_mesh',
  [
    (5, ONE),
    (3, ONE),
    (2, ONE),
    pytest.param(5, EIGHT, marks=pytest.mark.slow),
  ],
  ids=['before', 'at', 'after', 'before-8'],
)
def test_resumed_equals_uninterrupted(train, tmp_path, freeze, make_mesh):
  """Stopped at step 5, resumed from 3: before, at and after the boundary.

  Faults seen: the program of the first step kept; the switch one step late.
  """
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  go = functools.partial(
    train, make_mesh=make_mesh, freeze_encoder_steps=freeze
  )
  lines = go(whole, 6).lines
  switch = f'step {freeze}: from here on the encoder trains too'
  assert lines.count(switch) == 1
  compiled = [line for line in lines if line.startswith('compiled')]
  assert len(compiled) == 2
  assert f'with the encoder frozen to step {freeze}' in compiled[0]
  with pytest.raises(Stop):
    go(parts, 6, stop_at=5)
  resumed = go(parts, 6)
  assert any(line.startswith('resumed from step 3') for line in resumed.lines)
  assert resumed.lines.count(switch) == (freeze > 3)
  assert comparable(parts) == comparable(whole)
  a, b = parameters(whole, 6), parameters(parts, 6)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def encoder_changes(directory, first: int, last: int) -> set[bool]:
  """Whether the encoder's parameters changed between two checkpoints."""
  a, b = parameters(directory, first), parameters(directory, last)
  mine = {
    name for name in a if name.split("'")[1] in optimizer.ENCODER_PARAMETERS
  }
  assert len(mine) > 10 and len(a) - len(mine) > 10
  assert any((a[name] != b[name]).any() for name in a.keys() - mine)
  return {bool((a[name] != b[name]).any()) for name in mine}


def test_the_trainer_freezes_exactly_so_long(train, tmp_path):
  train(tmp_path, 6, save_every=1, freeze_encoder_steps=3)
  assert encoder_changes(tmp_path, 1, 3) == {False}
  assert encoder_changes(tmp_path, 3, 4) == {True}


def test_the_number_may_change_between_runs(train, tmp_path):
  """Shorter, longer (frozen once more) and 0, in one MODEL_DIR."""
  go = functools.partial(train, tmp_path, save_every=1)
  go(2, freeze_encoder_steps=9)
  go(4, freeze_encoder_steps=3)
  assert encoder_changes(tmp_path, 1, 3) == {False}
  assert encoder_changes(tmp_path, 3, 4) == {True}
  go(6, freeze_encoder_steps=6)
  assert encoder_changes(tmp_path, 4, 6) == {False}
  go(7)
  assert encoder_changes(tmp_path, 6, 7) == {True}
  assert manager.CheckpointManager(str(tmp_path)).meta(7)['encoder_apart']


def test_the_boundary_is_saved_before_it_compiles(train, tmp_path):
  """A signal may then end a compilation of any length."""
  train(tmp_path, 6, save_every=6, freeze_encoder_steps=2)
  assert manager.CheckpointManager(str(tmp_path)).all_steps() == [2, 6]


def test_a_run_that_began_unfrozen_does_not_freeze(train, tmp_path):
  train(tmp_path, 2)
  message = 'FREEZE_ENCODER_STEPS = 3, but this MODEL_DIR began with 0.* use 0'
  with pytest.raises(ValueError, match=message):
    train(tmp_path, 4, freeze_encoder_steps=3)
  train(tmp_path, 3, freeze_encoder_steps=2)  # over already
