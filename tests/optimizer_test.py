"""AdamW and Adafactor: what they apply, what they store and where.

Faults seen: see each test.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atm import checkpoint, optimizer, sharding, step
from atm.model import AlexaTM
from atm.sharding import Rules

from conftest import batch, tiny
from trainer_test import EIGHT, ONE

KINDS = {
  'adamw': {},
  'bfloat16': dict(moments_dtype='bfloat16'),
  'adafactor': dict(name='adafactor', factor_from=16),
}
MODEL = tiny(encoder_layers=1, decoder_layers=1, logits_bias=True)


def config(kind: str, **changes) -> optimizer.Config:
  settings = dict(learning_rate=1e-2, final_learning_rate=0.0, decay_steps=10)
  return optimizer.Config(**{**settings, **KINDS[kind], **changes})


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(name='adafacter'), "name = 'adafacter'.*Did you mean 'adafactor'"),
    (dict(name='sgd'), "name = 'sgd'. Known: adafactor, adamw"),
    (dict(name=None), 'name = None. Known'),
    (dict(moments_dtype='bf16'), "'bf16'. .*'bfloat16'|Known: bfloat16"),
    (
      dict(name='adafactor', moments_dtype='bfloat16'),
      "moments_dtype = 'bfloat16': Adafactor has no first .* use 'float32'",
    ),
    (dict(factor_from=1), 'factor_from = 1: expected a whole number from 2'),
  ],
)
def test_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    optimizer.Config(**changes)


@pytest.mark.parametrize('kind', KINDS)
def test_the_logged_rate_is_the_one_applied(kind):
  """A gradient that is always the same moves every parameter by the rate.

  Fault seen: Adafactor's steps times the parameters' size.
  """
  settings = dict(weight_decay=0.0, clip_norm=None, warmup_steps=4)
  tx = optimizer.make(config(kind, **settings))
  params = {'x': jnp.full((32, 16), 3.0)}
  state = tx.init(params)
  for n in range(8):
    updates, state = tx.update({'x': jnp.ones((32, 16))}, state, params)
    rate = optimizer.applied_rate(state)
    want = optimizer.schedule(config(kind, **settings))(n)
    assert float(rate) == pytest.approx(float(want), rel=1e-6)
    # 1 - 0.999^n in float32; in bfloat16 a number has 8 bits.
    rtol = 2e-2 if kind == 'bfloat16' else 5e-5
    np.testing.assert_allclose(-updates['x'], rate, rtol=rtol)


@pytest.mark.parametrize('kind', KINDS)
def test_decay_is_times_the_rate_and_spares_biases_and_norms(kind):
  """Fault seen: decay behind the learning rate, as in optax.adafactor."""
  tx = optimizer.make(config(kind, weight_decay=0.1))
  names = ('kernel', 'bias', 'scale', 'logits_bias')
  params = {name: jnp.full((16, 16), 2.0) for name in names}
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  for name in names:
    want = -1e-2 * 0.1 * 2.0 if name == 'kernel' else 0.0
    np.testing.assert_allclose(updates[name], want, rtol=1e-5, atol=1e-9)


# --- bfloat16 moments


def test_rounding_at_random_is_right_in_the_mean():
  """Faults seen: bits cut off; 15 of the 16 bits drawn."""
  x = jnp.full(1 << 16, 1.0 + 2**-7 * 0.3)  # between 1 and 1 + 2^-7
  made = optimizer.round_randomly(x, jax.random.key(0)).astype(jnp.float32)
  assert set(np.unique(made)) == {1.0, 1.0 + 2**-7}
  assert float(made.mean() - 1) == pytest.approx(0.3 * 2**-7, rel=0.02)
  exact = jnp.array([0.0, 1.5, -2.0, jnp.inf, 2.0**-100])
  for seed in range(20):
    made = optimizer.round_randomly(exact, jax.random.key(seed))
    np.testing.assert_array_equal(made.astype(jnp.float32), exact)


def test_bfloat16_moments_follow_those_in_float32():
  """Fault seen: the second moment rounded to the nearest, which stays where
  it is when the gradients get ten times as great."""
  plain = optax.scale_by_adam()
  half = optimizer.halved(plain)
  params = {'x': jnp.zeros(512)}

  @functools.partial(jax.jit, static_argnums=0)
  def run(each):
    def one(state, n):
      g = jax.random.normal(jax.random.fold_in(jax.random.key(1), n), (512,))
      g = jnp.where(n < 500, 1.0, 0.5) * g
      updates, state = (plain, half)[each].update({'x': g}, state, params)
      return state, updates['x']

    return jax.lax.scan(one, (plain, half)[each].init(params), jnp.arange(1500))

  (whole, steps), (stored, halves) = run(0), run(1)
  assert stored.mu['x'].dtype == stored.nu['x'].dtype == jnp.bfloat16
  ratio = stored.nu['x'].astype(jnp.float32) / whole.nu['x']
  assert float(ratio.mean()) == pytest.approx(1.0, abs=0.01)
  assert float(ratio.std()) < 0.06
  off = float(jnp.abs(halves - steps)[-100:].mean() / jnp.abs(steps).mean())
  assert off < 0.03

  nearest = whole.nu['x'] * 0 + 1.0
  for _ in range(50):  # a 20th of the way is to be gone: nothing is
    moved = 0.999 * nearest.astype(jnp.bfloat16).astype(jnp.float32) + 0.00025
    nearest = moved.astype(jnp.bfloat16)
  assert float(nearest.astype(jnp.float32).min()) == 1.0


# --- Adafactor


def test_adafactor_by_its_formula():
  """Two updates of a matrix and a vector, against numpy in float64.

  Faults seen: rows and columns swapped; no clipping of the update's RMS.
  """
  rng = np.random.default_rng(0)
  tx = optimizer.make(config('adafactor', clip_norm=None, weight_decay=0.0))
  params = {'m': jnp.zeros((16, 24)), 'v': jnp.zeros(24)}
  state, R, C, v = tx.init(params), 0.0, 0.0, 0.0
  for n, scale in enumerate((1.0, 30.0)):
    g = {k: scale * rng.standard_normal(x.shape) for k, x in params.items()}
    updates, state = tx.update(jax.tree.map(jnp.float32, g), state, params)
    beta = 1 - (n + 1.0) ** -0.8
    R = beta * R + (1 - beta) * (g['m'] ** 2).mean(1)
    C = beta * C + (1 - beta) * (g['m'] ** 2).mean(0)
    v = beta * v + (1 - beta) * g['v'] ** 2
    want = {'m': g['m'] / np.sqrt(np.outer(R, C) / R.mean())}
    want['v'] = g['v'] / np.sqrt(v)
    for name, u in want.items():
      u = u / max(1.0, np.sqrt((u**2).mean()))
      rate = 1e-2 * (1 - n / 10)
      np.testing.assert_allclose(updates[name], -rate * u, rtol=1e-4)


def test_blocks_are_clipped_layer_by_layer():
  """A stack of layers is clipped as the layers are alone.

  Fault seen: the RMS over all layers of a stack.
  """
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 4, 5)) * np.array([0.1, 2.0, 9.0])[:, None, None]
  clip = optimizer.clip_blocks(1.0)
  stacked, _ = clip.update({'layers': {'kernel': x}}, optax.EmptyState())
  for layer, made in zip(x, stacked['layers']['kernel'], strict=True):
    alone, _ = clip.update({'kernel': layer}, optax.EmptyState())
    np.testing.assert_allclose(made, alone['kernel'], rtol=1e-6)
  rms = np.sqrt((np.asarray(stacked['layers']['kernel']) ** 2).mean((1, 2)))
  assert rms[0] < 0.2 and rms[1:] == pytest.approx([1.0, 1.0], rel=1e-5)


# --- On a mesh, in a step, in a checkpoint


@functools.cache
def trained(kind: str, make_mesh):
  """(losses, the last state, its abstract state) on the same batch again."""
  mesh, net = make_mesh(), AlexaTM(MODEL)
  constant = dict(final_learning_rate=1e-2)
  tx = optimizer.make(config(kind, **constant))
  abstract = step.abstract_state(net, tx, mesh, Rules())
  state = step.init_state(net, tx, 0, abstract)
  placed = jax.tree.map(lambda x: x.sharding, abstract)
  update = jax.jit(
    functools.partial(step.train_step, net, tx), out_shardings=(placed, None)
  )
  b, losses = batch(np.random.default_rng(0), 16, 12, 10), []
  with sharding.use(mesh, Rules()):
    placed = sharding.place(b, mesh, Rules())
    for _ in range(8):
      state, m = update(state, placed)
      losses.append(float(m['sum/loss'] / m['tokens/target']))
  return losses, state, abstract


@pytest.mark.parametrize('kind', ['bfloat16', 'adafactor'])
def test_it_trains(kind):
  """Fault seen: the sign of a step."""
  losses, _, _ = trained(kind, ONE)
  assert losses[-1] < 0.8 * losses[0]


def test_adafactor_sharded_equals_unsharded():
  """Fault seen: each device clips by the RMS of its own part."""
  one, eight = (trained('adafactor', mesh)[0] for mesh in (ONE, EIGHT))
  np.testing.assert_allclose(one, eight, atol=1e-4)


def test_moments_are_rounded_alike_on_any_mesh():
  """Fault seen: draws of each device."""
  x = np.random.default_rng(0).random((16, 64), np.float32)
  place = sharding.NamedSharding(EIGHT(), Rules().spec('embed', 'mlp'))
  make = jax.jit(lambda x: optimizer.round_randomly(x, jax.random.key(3)))
  np.testing.assert_array_equal(make(x), make(jax.device_put(x, place)))


def test_adafactors_state_on_a_mesh():
  """Faults seen: rows placed like columns; numbers for nothing split."""
  _, state, abstract = trained('adafactor', EIGHT)
  rms, params = abstract.opt_state[1], abstract.params
  get = lambda tree: tree['encoder']['layers']['feed_forward']['up']['kernel']
  placed = lambda x: (x.shape, tuple(x.sharding.spec))
  assert placed(get(params)) == ((1, 32, 64), (None, 'fsdp', 'tensor'))
  assert placed(get(rms.v_row)) == ((1, 32), (None, 'fsdp'))
  assert placed(get(rms.v_col)) == ((1, 64), (None, 'tensor'))
  assert placed(get(rms.v)) == ((1,), ())
  square = params['decoder']['layers']['self_attention']['query']['kernel']
  assert square.shape == (1, 32, 32)
  for tree, want in ((rms.v_row, 'fsdp'), (rms.v_col, 'tensor')):
    x = tree['decoder']['layers']['self_attention']['query']['kernel']
    assert placed(x) == ((1, 32), (None, want))
  assert placed(rms.v_row['logits_bias']) == ((1,), ())
  assert placed(rms.v['logits_bias']) == ((96,), ('tensor',))

  def same(x, want):
    assert (x.shape, x.dtype) == (want.shape, want.dtype)
    assert x.sharding.is_equivalent_to(want.sharding, x.ndim)

  jax.tree.map(same, state, abstract)


@pytest.mark.parametrize('kind', ['bfloat16', 'adafactor'])
def test_checkpoints_keep_it_to_the_bit(kind, tmp_path):
  """Fault seen: moments restored in float32."""
  _, state, abstract = trained(kind, EIGHT if kind == 'adafactor' else ONE)
  made = checkpoint.Checkpoints(str(tmp_path))
  made.save(8, state, {})
  made.close()
  back = checkpoint.Checkpoints(str(tmp_path)).restore(8, abstract)
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
    assert x.dtype == y.dtype
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
  if kind == 'bfloat16':
    moments = back.opt_state[1]
    for x in jax.tree.leaves((moments.mu, moments.nu)):
      assert x.dtype == jnp.bfloat16


@pytest.mark.parametrize('kind', ['bfloat16', 'adafactor'])
def test_a_frozen_encoder_keeps_its_state(kind):
  """Gradients without the encoder's leave its moments and its count."""
  tx = optimizer.make(config(kind), encoder_apart=True)
  params = {k: {'kernel': jnp.ones((16, 16))} for k in ('encoder', 'decoder')}
  first = tx.init(params)
  assert optimizer.is_apart(first)
  grads = jax.tree.map(lambda x: 0.5 * x, params)
  updates, state = tx.update({'decoder': grads['decoder']}, first, params)
  assert set(updates) == {'decoder'}
  jax.tree.map(
    np.testing.assert_array_equal, first[1].encoder, state[1].encoder
  )
  updates, state = tx.update(grads, state, params)
  assert set(updates) == {'encoder', 'decoder'}
  assert (state[1].encoder[0].count, state[1].rest[0].count) == (1, 2)
  rate = optimizer.applied_rate(state)
  step = -updates['encoder']['kernel'] / rate - 0.1  # without decay
  np.testing.assert_allclose(step, 1.0, rtol=5e-3)
