"""Decoder-only models and prefix LMs: what sees what, and what is learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.model import attention, flops, one_stack
from atm.model.attention import AttentionMask
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.train import optimizer
from atm.train import step as step_lib

from conftest import batch, tiny
from small_models import init

KINDS = 'decoder_only', 'prefix_lm'


def one_stack_config(kind, **changes):
  return tiny(**{'architecture': kind, 'encoder_layers': 0, **changes})


@pytest.fixture(params=KINDS)
def kind(request):
  return request.param


def apply(config, *args, method=None, **named):
  variables = {'params': init(config)}
  return AlexaTM(config).apply(variables, *args, method=method, **named)


def states(config, tokens, targets):
  """The states [B, S + T, D] of rows without padding."""
  net = AlexaTM(config).bind({'params': init(config)})
  source, target = jnp.ones_like(tokens), jnp.ones_like(targets)
  at = jnp.arange(targets.shape[1])[None] + tokens.shape[1]
  x = jnp.concatenate(
    [net.embed_source(tokens, None, None), net.embed_target(targets, at)], 1
  )
  return net.decoder(x, one_stack.join_masks(config, source, target), True)


def test_what_a_token_changes(kind, rng):
  """Nothing before it, but a prefix LM's prompt all of the prompt."""
  config = one_stack_config(kind)
  ids = rng.integers(3, 96, (1, 9))
  S, before = 5, states(config, ids[:, :5], ids[:, 5:])
  for at in range(9):
    other = ids.copy()
    other[0, at] = 3 + (other[0, at] - 2) % 90
    after = states(config, other[:, :S], other[:, S:])
    changed = np.abs(after - before).max(-1)[0] > 1e-6
    first = 0 if kind == 'prefix_lm' and at < S else at
    assert not changed[:first].any()
    assert changed[first:].all()


def test_packed_equals_unpacked(kind, rng):
  """Two segments of one row, with padding behind each side.

  Faults seen: positions counted over the row; a prompt's padding counted.
  """
  config = one_stack_config(kind)
  sizes = (4, 3), (6, 5)
  sources = [rng.integers(3, 96, n) for n, _ in sizes]
  targets = [rng.integers(3, 96, n) for _, n in sizes]

  def side(rows, length):
    ids, segments, positions = np.zeros((3, 1, length), np.int32)
    start = 0
    for number, row in enumerate(rows, 1):
      at = slice(start, start := start + len(row))
      ids[0, at], segments[0, at] = row, number
      positions[0, at] = np.arange(len(row))
    return ids, segments, positions

  ids, segments, positions = zip(side(sources, 12), side(targets, 10))
  packed = apply(
    config, *ids, None, *segments, *positions, enable_dropout=False
  )
  start = 0
  for source, target in zip(sources, targets):
    end = start + len(target)
    alone = apply(config, source[None], target[None], enable_dropout=False)
    np.testing.assert_allclose(packed[:, start:end], alone, atol=2e-5)
    start = end


@pytest.mark.parametrize('changes', [{}, {'ties': 'decoder_head'}])
def test_every_parameter_is_trained(kind, changes, rng):
  config = one_stack_config(kind, **changes)
  rows = batch(rng, 2, 7, 5)
  net = AlexaTM(config)
  loss = lambda params: net.apply(
    {'params': params}, rows, False, method=net.loss
  )['loss'].sum()  # fmt: skip
  grads = jax.grad(loss)(init(config))
  assert ('lm_head' in grads) == (not changes)
  assert not any('encoder' in name for name in grads)
  key_bias = grads['decoder']['layers']['self_attention'].pop('key')['bias']
  assert np.abs(key_bias).max() < 1e-4  # softmax does not see it
  assert all(np.abs(x).max() > 1e-6 for x in jax.tree.leaves(grads))


@pytest.mark.parametrize('implementation', ['rows', 'splash', 'cudnn'])
def test_attention_of_prefixes_is_the_same_everywhere(implementation, rng):
  B, N, H, K = 2, 11, 2, 8
  heads = [
    jnp.asarray(rng.standard_normal((B, N, H, K)), jnp.float32)
    for _ in range(3)
  ]
  segments = jnp.asarray([[1, 1, 2, 2, 2, 0, 1, 2, 2, 2, 0]] * B)
  mask = AttentionMask(segments, segments, causal=True, prefix=6)
  compute = {
    'rows': attention.rowwise_attention,
    'splash': functools.partial(attention.splash_attention, interpret=True),
    'cudnn': functools.partial(attention.cudnn_attention, kernel='xla'),
  }[implementation]
  want = attention.einsum_attention(*heads, mask)
  np.testing.assert_allclose(compute(*heads, mask), want, atol=2e-5)


@pytest.mark.parametrize('rows_each', [1, 3])
@pytest.mark.parametrize('by_kernel', [False, True])
def test_a_prompt_and_a_cache_share_one_softmax(
  rows_each, by_kernel, rng, monkeypatch
):
  """Faults seen: a softmax for each; rows of an input mixed up."""
  B, R, H, K, S, T, n = 2, 2 * rows_each, 2, 8, 5, 6, 3
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  query, keys, values = draw(R, n, H, K), draw(B, H, K, S), draw(B, H, S, K)
  own_keys, own_values = draw(R, H, K, T), draw(R, H, T, K)
  mask = jnp.arange(S) < jnp.asarray([[[3]], [[5]]])
  seen = jnp.broadcast_to(jnp.arange(T) <= jnp.arange(n)[:, None], (R, n, T))
  monkeypatch.setattr(attention, '_has_kernel', lambda query: by_kernel)
  if by_kernel and not attention.kernels.are_available():
    pytest.skip('no C compiler')
  got = attention.attend_to_prompt_and_cache(
    query, (keys, values, mask), (own_keys, own_values, seen)
  )
  repeat = lambda x: jnp.repeat(x, rows_each, axis=0)
  both = jnp.concatenate([jnp.broadcast_to(repeat(mask), (R, n, S)), seen], -1)
  every = jnp.concatenate([repeat(keys), own_keys], 3)
  scores = jnp.einsum('rnhk,rhks->rhns', query, every) * K**-0.5
  weights = jax.nn.softmax(jnp.where(both[:, None], scores, -1e9))
  every = jnp.concatenate([repeat(values), own_values], 2)
  want = jnp.einsum('rhns,rhsk->rnhk', weights, every)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_sharded_equals_unsharded(kind, one_device, rng):
  config = one_stack_config(kind, decoder_layers=2)
  net = AlexaTM(config)
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig(learning_rate=1e-2))
  rows, losses = batch(rng, 8, 16, 12), []
  for mesh in (one_device, mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)):
    rules = sharding.Rules()
    abstract = step_lib.abstract_state(net, tx, mesh, rules)
    state = step_lib.init_state(net, tx, 0, abstract)
    with sharding.use_mesh(mesh, rules):
      update = jax.jit(functools.partial(step_lib.train_step, net, tx))
      for _ in range(3):
        placed = sharding.shard_batch(rows, mesh, rules)
        state, metrics = update(state, placed)
    losses.append(float(metrics['sum/loss']))
  np.testing.assert_allclose(*losses, rtol=1e-4)


def test_flops_are_those_of_the_steps_matrix_products(kind, one_device, rng):
  config = one_stack_config(kind, attention='einsum')
  net = AlexaTM(config)
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  state = step_lib.abstract_state(net, tx, one_device, sharding.Rules())
  rows = batch(rng, 2, 20, 12)
  traced = jax.make_jaxpr(functools.partial(step_lib.train_step, net, tx))(
    state, rows
  )
  counted = flops.jaxpr_flops(traced.jaxpr)
  assert counted == pytest.approx(flops.train_flops(config, 2, 20, 12))


def test_remat_changes_neither_loss_nor_gradient(kind, rng):
  rows = batch(rng, 2, 7, 5)

  def gradient(**changes):
    net = AlexaTM(one_stack_config(kind, **changes))
    loss = lambda params: net.apply(
      {'params': params}, rows, False, method=net.loss
    )['loss'].sum()  # fmt: skip
    return jax.value_and_grad(loss)(init(one_stack_config(kind)))

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    gradient(),
    gradient(remat='full', unroll=3),
  )


def test_loss_of_prompts(one_device, rng):
  """Of CLM rows alone, each token by those before it; gradients, FLOPs too.

  Faults seen: padding predicted; the mean taken over targets alone.
  """
  config = one_stack_config('decoder_only', attention='einsum')
  net, rows = AlexaTM(config), batch(rng, 4, 7, 5)
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  abstract = step_lib.abstract_state(net, tx, one_device, sharding.Rules())
  state = step_lib.init_state(net, tx, 0, abstract)
  update = functools.partial(step_lib.train_step, net, tx, prompt_loss=True)
  whole = jax.jit(update)(state, rows)[1]
  parts = jax.jit(functools.partial(update, micro_batches=2))(state, rows)[1]
  for name, value in whole.items():
    np.testing.assert_allclose(value, parts[name], rtol=1e-4, err_msg=name)
  want, count = 0.0, 0
  apply = functools.partial(net.apply, {'params': state.params})
  for i, is_clm in enumerate(rows['objective']):
    n = rows['encoder_segment_ids'][i].sum()
    ids = rows['encoder_input_tokens'][i, :n]
    if is_clm:
      x = net.bind({'params': state.params})
      h = x.embed_source(ids[None], None, None)
      mask = one_stack.join_masks(config, jnp.ones((1, n), int))
      logs = jax.nn.log_softmax(x.logits(x.decoder(h, mask, True)))[0]
      want -= logs[np.arange(n - 1), ids[1:]].sum()
      count += n - 1
  targets = apply(rows, False, method=net.loss)['loss'].sum()
  np.testing.assert_allclose(whole['sum/loss'], want + targets, rtol=1e-5)
  assert whole['tokens/prompt_loss'] == count
  assert whole['tokens/target'] == rows['decoder_loss_weights'].sum()
  counted = flops.jaxpr_flops(jax.make_jaxpr(update)(state, rows).jaxpr)
  formula = flops.train_flops(config, 4, 7, 5, prompt_loss=True)
  assert counted == pytest.approx(formula)
