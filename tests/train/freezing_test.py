"""Parameters that stay as they are: no gradients, no state, bit for bit."""

import functools
import math

import jax
import numpy as np
import pytest

from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.train import freezing, optimizer, step

from conftest import batch, tiny
from tiny_runs import ONE, Stop, comparable, parameters

CONFIG = optimizer.OptimizerConfig(learning_rate=1e-2, weight_decay=0.5)
PATTERNS = 'encoder*', '*_embedding', 'decoder/layers/0', 'decoder/*/query/bias'


@pytest.mark.parametrize(
  'pattern, path, matches',
  [
    ('encoder', 'encoder/norm/bias', True),
    ('encoder', 'encoder_embedding', False),
    ('encoder*', 'encoder_embedding', True),
    ('*/bias', 'decoder/layers/cross_attention/key/bias', True),
    ('decoder/layers/*_attention', 'decoder/layers/self_attention/key', True),
    ('layers', 'decoder/layers/self_attention/key', False),
  ],
)
def test_a_pattern_is_of_a_path_or_of_what_it_is_below(pattern, path, matches):
  assert freezing.matches_path(pattern, path) == matches


def test_layers_are_read_of_a_pattern():
  parse = freezing.parse_layers
  assert parse('encoder/layers/0-5') == freezing.LayerRange(
    'encoder/layers', 0, 5
  )
  assert parse('*/layers/3/attention*') == freezing.LayerRange(
    '*/layers/attention*', 3, 3
  )
  assert parse('encoder/layers') is parse('encoder/layers/attention') is None


@functools.cache
def prepare(freeze=(), sizes=(), apart=False, **changes):
  """Returns (a fresh state, a jitted step, a mesh)."""
  mesh = mesh_lib.make_mesh(**dict(sizes)) if sizes else ONE()
  net = AlexaTM(tiny(decoder_layers=3))
  tx = optimizer.make_optimizer(CONFIG, apart, freeze)
  abstract = step.abstract_state(net, tx, mesh, Rules())
  update = jax.jit(
    functools.partial(step.train_step, net, tx, freeze=freeze, **changes)
  )
  return step.init_state(net, tx, 0, abstract), update, mesh


def run(state, update, mesh, steps=2):
  rng = np.random.default_rng(1)
  with sharding.use_mesh(mesh, Rules()):
    for _ in range(steps):
      placed = sharding.shard_batch(batch(rng, 8, 12, 10), mesh, Rules())
      state, metrics = update(state, placed)
  return state, metrics


def flat(tree) -> dict:
  return {k: np.asarray(x) for k, x in freezing._flatten(tree).items()}


@pytest.mark.parametrize(
  'sizes, apart, changes',
  [((), False, {}), ((), True, dict(frozen=True)),
   ((('data', 2), ('fsdp', 2), ('tensor', 2)), False,
    dict(micro_batches=2))],
)  # fmt: skip
def test_what_is_frozen_stays_bit_for_bit(sizes, apart, changes):
  """Weight decay included; all else moves. Faults seen: decay of layers."""
  state, *given = prepare(PATTERNS, sizes, apart, **changes)
  before, after = flat(state.params), flat(run(state, *given)[0].params)
  assert before.keys() == after.keys()
  for path, x in before.items():
    moved = x != after[path]
    if freezing.is_frozen(path, PATTERNS):
      assert not moved.any(), path
    elif path.startswith('decoder/layers/'):
      assert not moved[0].any(), path
      # Of a key's bias there is no gradient but rounding's.
      assert path.endswith('key/bias') or moved[1:].any(), path


def test_frozen_arrays_have_no_state_and_no_gradient():
  """What is left of the state is of the others; layers have theirs."""
  state, update, mesh = prepare(PATTERNS)
  whole = prepare()[0]
  sizes = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  gone = freezing.count_frozen(PATTERNS, state.params)
  assert gone > sizes(state.params) / 3
  assert sizes(whole.opt_state) - sizes(state.opt_state) == 2 * gone
  names = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
  text = ' '.join(jax.tree_util.keystr(path) for path, _ in names)
  assert "['encoder']" not in text and "['decoder']" in text
  with sharding.use_mesh(mesh, Rules()):
    placed = sharding.shard_batch(
      batch(np.random.default_rng(1), 8, 12, 10), mesh, Rules()
    )
    flops = lambda f, s: f.lower(s, placed).compile().cost_analysis()['flops']
    assert flops(update, state) < 0.85 * flops(prepare()[1], whole)


def test_the_norm_is_of_the_gradients_that_are_used():
  """As by the gradients of a step that trains all; so clipping is, too."""
  _, metrics = run(*prepare(PATTERNS), steps=1)
  state, _, mesh = prepare()
  net = AlexaTM(tiny(decoder_layers=3))
  rows = batch(np.random.default_rng(1), 8, 12, 10)

  def loss(params):
    sums = step.forward(net, params, rows, jax.random.key(0))
    return sums['loss'].sum() / sums['weight'].sum()

  with sharding.use_mesh(mesh, Rules()):
    grads = flat(jax.jit(jax.grad(loss))(state.params))
  squares = 0.0
  for path, x in grads.items():
    if not freezing.is_frozen(path, PATTERNS):
      x = x[1:] if path.startswith('decoder/layers/') else x
      squares += np.square(x.astype(np.float64)).sum()
  assert float(metrics['grad_norm']) == pytest.approx(
    math.sqrt(squares), rel=1e-4
  )


@pytest.mark.parametrize(
  'patterns, error',
  [
    (('encodr',), "'encodr' matches no parameter.*'encoder'"),
    (('encoder/layers/0-9',), 'expected layers from 0 to 1'),
    (('encoder/layers/1-0',), 'expected layers from 0 to 1'),
    (('*',), 'leaves nothing to train'),
  ],
)
def test_patterns_that_mean_nothing_are_refused(patterns, error):
  params = prepare()[0].params
  with pytest.raises(ValueError, match=error):
    freezing.check_frozen(patterns, params)


def test_a_run_freezes_and_resumes_bit_for_bit(train, tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  frozen = dict(freeze=('encoder', 'decoder/layers/0'))
  train(whole, 5, **frozen)
  with pytest.raises(Stop):
    train(parts, 5, stop_at=5, **frozen)
  with pytest.raises(ValueError, match=r'FREEZE = \(\), but this MODEL_DIR'):
    train(parts, 5)
  train(parts, 5, **frozen)
  assert comparable(parts) == comparable(whole)
  for item in ('params', 'optimizer'):
    a, b = parameters(whole, 5, item), parameters(parts, 5, item)
    assert a.keys() == b.keys() and all((a[x] == b[x]).all() for x in a)
  first = parameters(whole, 3)
  name = next(x for x in first if "['encoder']" in x)
  assert (first[name] == parameters(whole, 5)[name]).all()
