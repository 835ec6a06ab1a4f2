"""AdamW and Adafactor: what they apply, what they store and where.

Faults seen: see each test.
"""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atm.checkpoint import manager, reader
from atm.model.transformer import AlexaTM
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.train import optimizer
from atm.train import step as step_lib

from conftest import batch, tiny
from tiny_runs import (
  EIGHT,
  ONE,
  parameters,
)

KINDS = {
  'adamw': {},
  'bfloat16': dict(moments_dtype='bfloat16'),
  'adafactor': dict(name='adafactor', factor_from=16),
}
MODEL = tiny(encoder_layers=1, decoder_layers=1, logits_bias=True)


def config(kind: str, **changes) -> optimizer.OptimizerConfig:
  settings = dict(learning_rate=1e-2, final_learning_rate=0.0, decay_steps=10)
  return optimizer.OptimizerConfig(**{**settings, **KINDS[kind], **changes})


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
    (
      dict(factor_from=1),
      'factor_from = 1: expected a whole number of at l',
    ),
  ],
)
def test_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    optimizer.OptimizerConfig(**changes)


@pytest.mark.parametrize('kind', KINDS)
def test_the_logged_rate_is_the_one_applied(kind):
  """A gradient that is always the same moves every parameter by the rate.

  Fault seen: Adafactor's steps times the parameters' size.
  """
  settings = dict(weight_decay=0.0, clip_norm=None, warmup_steps=4)
  tx = optimizer.make_optimizer(config(kind, **settings))
  params = {'x': jnp.full((32, 16), 3.0)}
  state = tx.init(params)
  for n in range(8):
    updates, state = tx.update({'x': jnp.ones((32, 16))}, state, params)
    rate = optimizer.get_learning_rate(state)
    want = optimizer.make_schedule(config(kind, **settings))(n)
    assert float(rate) == pytest.approx(float(want), rel=1e-6)
    # 1 - 0.999^n in float32; in bfloat16 a number has 8 bits.
    rtol = 2e-2 if kind == 'bfloat16' else 5e-5
    np.testing.assert_allclose(-updates['x'], rate, rtol=rtol)


@pytest.mark.parametrize('kind', KINDS)
def test_decay_is_times_the_rate_and_spares_biases_and_norms(kind):
  """Fault seen: decay behind the learning rate, as in optax.adafactor."""
  tx = optimizer.make_optimizer(config(kind, weight_decay=0.1))
  names = ('kernel', 'bias', 'scale', 'logits_bias')
  params = {name: jnp.full((16, 16), 2.0) for name in names}
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  for name in names:
    want = -1e-2 * 0.1 * 2.0 if name == 'kernel' else 0.0
    np.testing.assert_allclose(updates[name], want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize('final', [0.0, 2e-3])
def test_the_cosine_falls_by_half_a_wave_behind_the_warm_up(final):
  """Fault seen: the wave begun with the warm-up."""
  rate = optimizer.make_schedule(
    config('adamw', schedule='cosine', warmup_steps=4,
           final_learning_rate=final)
  )  # fmt: skip
  rise = [0, 0.25e-2, 0.5e-2, 0.75e-2]
  root = 3**0.5 / 2
  fall = np.array([1, root, 0.5, 0, -0.5, -root, -1, -1, -1])
  want = [*rise, *(final + (1e-2 - final) * (1 + fall) / 2)]
  found = [float(rate(n)) for n in range(13)]
  np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-9)
  with pytest.raises(ValueError, match="schedule = 'cosin'.*'cosine'"):
    config('adamw', schedule='cosin')


@pytest.mark.parametrize(
  'name, allowed, refused',
  [
    ('learning_rate', [0, 1.5], [-1e-9, None]),
    ('final_learning_rate', [0, 1.5], [-1e-9]),
    ('weight_decay', [0, 1.5], [-1e-9]),
    ('eps', [0, 1.5], [-1e-9]),
    ('b1', [0, 0.99], [-1e-9, 1]),
    ('b2', [0, 0.99], [-1e-9, 1]),
    ('decay_steps', [1, 2.0], [0]),
    ('warmup_steps', [0, 5], [-1]),
    ('clip_norm', [None, 1e-9], [0]),
    ('factor_from', [2], [1, 2.5]),
  ],
)
def test_the_bounds_of_settings(name, allowed, refused):
  for value in allowed:
    made = optimizer.OptimizerConfig(**{'decay_steps': 9, name: value})
    assert getattr(made, name) == value
  for value in refused:
    with pytest.raises(ValueError, match=f'optimizer.Config.{name} = '):
      optimizer.OptimizerConfig(**{'decay_steps': 9, name: value})


def test_the_defaults_are_the_papers_and_the_usual():
  """Where the paper is silent: Adam's of optax, and a norm of 1."""
  assert optimizer.OptimizerConfig() == optimizer.OptimizerConfig(
    learning_rate=1e-4, final_learning_rate=5e-6, decay_steps=500_000,
    warmup_steps=0, weight_decay=0.1, b1=0.9, b2=0.999, eps=1e-8,
    clip_norm=1.0, name='adamw', moments_dtype='float32', factor_from=128,
    schedule='linear',
  )  # fmt: skip


def test_the_warm_up_is_part_of_the_decay():
  rate = optimizer.make_schedule(config('adamw', warmup_steps=4))
  want = [0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0]
  np.testing.assert_allclose(
    [float(rate(n)) for n in range(12)], 1e-2 * np.array(want), atol=1e-8
  )
  with pytest.raises(ValueError, match='warmup_steps = 10: expected fewer'):
    config('adamw', warmup_steps=10)
  assert config('adamw', warmup_steps=9).warmup_steps == 9


def test_adamw_by_its_formula():
  """Three clipped updates, against numpy in float64."""
  chosen = config('adamw', b1=0.8, b2=0.9, eps=0.1, clip_norm=2.0)
  tx, rng = optimizer.make_optimizer(chosen), np.random.default_rng(0)
  x = {'kernel': jnp.full(5, 2.0), 'bias': jnp.full(3, 2.0)}
  state, m, v = tx.init(x), 0.0, 0.0
  for n in range(3):
    g = rng.standard_normal(8) * 10.0 ** (n - 1)
    whole = {'kernel': jnp.float32(g[:5]), 'bias': jnp.float32(g[5:])}
    updates, state = tx.update(whole, state, x)
    g = g * min(1, 2 / np.linalg.norm(g))
    m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
    step = m / (1 - 0.8 ** (n + 1)) / (np.sqrt(v / (1 - 0.9 ** (n + 1))) + 0.1)
    step[:5] += 0.1 * 2
    made = np.concatenate([updates['kernel'], updates['bias']])
    np.testing.assert_allclose(made, -1e-2 * (1 - n / 10) * step, rtol=1e-5)


def test_what_decides_the_state_is_described():
  assert optimizer.describe_state(config('bfloat16')) == {
    'name': 'adamw', 'moments_dtype': 'bfloat16'
  }  # fmt: skip
  assert optimizer.describe_state(config('adafactor')) == {
    'name': 'adafactor', 'moments_dtype': 'float32', 'factor_from': 16
  }  # fmt: skip
  params = {'encoder': {'kernel': jnp.ones((2, 2))}}
  for apart in (True, False):
    tx = optimizer.make_optimizer(config('adamw'), encoder_apart=apart)
    assert optimizer.is_split(tx.init(params)) == apart


def test_parameters_of_the_encoder_are_told_by_name():
  names = ('encoder', 'encoder_embedding', 'encoder_positions', 'decoder',
           'encoder_types', 'decoder_embedding', 'lm_head')  # fmt: skip
  encoder, rest = optimizer.split_encoder(dict.fromkeys(names, 1))
  assert set(encoder) == {x for x in names if x.startswith('encoder')}
  assert set(rest) == set(names) - set(encoder)


@pytest.mark.parametrize(
  'name, shape, left, axes',
  [
    ('v_row', (4, 8), (4,), (0,)),
    ('v_col', (4, 8), (8,), (1,)),
    ('v_row', (3, 8, 4), (3, 4), (0, 2)),
    ('v_col', (3, 8, 4), (3, 8), (0, 1)),
    ('v_row', (4, 4), (4,), (0,)),
    ('v_col', (4, 4), (4,), (1,)),
    ('v_row', (8,), (1,), ()),
    ('v', (4, 8), (1,), ()),
  ],
)
def test_axes_that_adafactors_means_have(name, shape, left, axes):
  path = (jax.tree_util.GetAttrKey(name), jax.tree_util.DictKey('kernel'))
  assert optimizer.factored_axes(path, shape, left) == axes


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
  """The second moment, rounded to the nearest, would stand still.

  Faults seen: it is; the first moment with 3 bits of fraction.
  """
  plain = optax.scale_by_adam()
  half = optimizer.store_in_bfloat16(plain)
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


# --- Adafactor


def test_adafactor_by_its_formula():
  """Two updates of a matrix and a vector, against numpy in float64.

  Faults seen: no clipping of the update's RMS; another exponent of beta.
  """
  rng = np.random.default_rng(0)
  tx = optimizer.make_optimizer(
    config('adafactor', clip_norm=None, weight_decay=0.0)
  )
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
def trained(make_mesh):
  """(losses, the last state, its abstract state) of Adafactor on one batch."""
  mesh, net = make_mesh(), AlexaTM(MODEL)
  tx = optimizer.make_optimizer(config('adafactor', final_learning_rate=1e-2))
  abstract = step_lib.abstract_state(net, tx, mesh, Rules())
  state = step_lib.init_state(net, tx, 0, abstract)
  placed = jax.tree.map(lambda x: x.sharding, abstract)
  update = jax.jit(
    functools.partial(step_lib.train_step, net, tx),
    out_shardings=(placed, None),
  )
  b, losses = batch(np.random.default_rng(0), 16, 12, 10), []
  with sharding.use_mesh(mesh, Rules()):
    placed = sharding.shard_batch(b, mesh, Rules())
    for _ in range(8):
      state, m = update(state, placed)
      losses.append(float(m['sum/loss'] / m['tokens/target']))
  return losses, state, abstract


def test_adafactor_trains_and_sharded_equals_unsharded():
  """Fault seen: the sign of a step."""
  one, eight = (trained(mesh)[0] for mesh in (ONE, EIGHT))
  assert one[-1] < 0.8 * one[0]
  np.testing.assert_allclose(one, eight, atol=1e-4)


def test_adafactors_state_on_a_mesh():
  """Faults seen: rows placed like columns; numbers for nothing split."""
  _, state, abstract = trained(EIGHT)
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


def rounded():
  """(a state after an update with moments in bfloat16, its abstract state)."""
  tx = optimizer.make_optimizer(config('bfloat16'))
  params = {'kernel': jax.random.normal(jax.random.key(0), (16, 8))}
  _, opt_state = tx.update(params, tx.init(params), params)
  state = step_lib.State(jnp.int32(1), params, opt_state)
  moments = opt_state[1]
  for x in jax.tree.leaves((moments.mu, moments.nu)):
    assert x.dtype == jnp.bfloat16 and x.any()
  place = sharding.NamedSharding(ONE(), Rules().spec())
  state = jax.device_put(state, place)
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  return state, jax.tree.map(shape, state)


@pytest.mark.parametrize('kind', ['bfloat16', 'adafactor'])
def test_checkpoints_keep_it_to_the_bit(kind, tmp_path):
  """Adafactor's on eight devices. Fault seen: moments kept in float32."""
  state, abstract = rounded() if kind == 'bfloat16' else trained(EIGHT)[1:]
  made = manager.CheckpointManager(str(tmp_path))
  made.save(8, state.to_trees(), {})
  made.close()
  again = reader.CheckpointReader(str(tmp_path))
  back = step_lib.State.from_trees(again.restore(8, abstract.to_trees()))
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
    assert x.dtype == y.dtype
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize('kind', ['bfloat16', 'adafactor'])
def test_a_frozen_encoder_keeps_its_state(kind):
  """Gradients without the encoder's leave its moments and its count.

  Fault seen: gradients of zeros in place of none.
  """
  tx = optimizer.make_optimizer(config(kind), encoder_apart=True)
  params = {k: {'kernel': jnp.ones((16, 16))} for k in ('encoder', 'decoder')}
  first = tx.init(params)
  assert optimizer.is_split(first)
  grads = jax.tree.map(lambda x: 0.5 * x, params)
  updates, state = tx.update({'decoder': grads['decoder']}, first, params)
  assert set(updates) == {'decoder'}
  jax.tree.map(
    np.testing.assert_array_equal, first[1].encoder, state[1].encoder
  )
  updates, state = tx.update(grads, state, params)
  assert set(updates) == {'encoder', 'decoder'}
  assert (state[1].encoder[0].count, state[1].rest[0].count) == (1, 2)
  rate = optimizer.get_learning_rate(state)
  step = -updates['encoder']['kernel'] / rate - 0.1  # without decay
  np.testing.assert_allclose(step, 1.0, rtol=5e-3)


def test_adafactor_resumed_equals_uninterrupted(train, tmp_path):
  """Fault seen: its state not restored."""
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  chosen = optimizer.OptimizerConfig(
    learning_rate=1e-3, decay_steps=20, name='adafactor'
  )
  go = functools.partial(train, optimizer_config=chosen)
  rows = [row for row in go(whole, 5).history if 'loss' in row]
  shutil.copytree(whole, parts)
  shutil.rmtree(parts / 'checkpoints' / '5')  # as a kill before it leaves it
  resumed = go(parts, 5)
  assert any(line.startswith('resumed from step 3') for line in resumed.lines)
  a, b = parameters(whole, 5), parameters(parts, 5)
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  for n, row in enumerate(rows):
    want = float(optimizer.make_schedule(chosen)(n))
    assert row['learning_rate'] == pytest.approx(want, rel=1e-6)
  with pytest.raises(ValueError, match='but this MODEL_DIR was trained with'):
    train(whole, 6)
