"""Equivalences that hold for the architecture, not copies of its output."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.model.transformer import AlexaTM

from conftest import FUSED_AS_USERS, batch, tiny
from small_models import EVERY, PUBLIC, init

CALL = (
  'encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens',
)  # fmt: skip


# The paper's, and public ones. Of those `make test` has one, of every option,
# where positions and norms are read in ways that differ.
MODELS = {'paper': {}, 'every': EVERY, **PUBLIC}
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
of_all = pytest.mark.parametrize(
  'net', ['paper', 'every', *map(slow, PUBLIC)], indirect=True
)


@pytest.fixture(
  scope='module', params=[n if n == 'paper' else slow(n) for n in MODELS]
)
def net(request):
  # The ids of `batch`, and tables that a test can change alone.
  same = dict(ties='none', pad_id=0, start_id=1)
  config = tiny(**{**MODELS[request.param], **same})
  return AlexaTM(config), init(config)


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=('method', 'enable_dropout')
)
def apply(module, params, *args, **named):
  """module.apply, compiled: op by op it takes seconds."""
  return module.apply({'params': params}, *args, **named)


def logits(net, b):
  module, params = net
  named = {
    k: b[k]
    for k in ('encoder_segment_ids', 'decoder_segment_ids',
              'encoder_positions', 'decoder_positions')
    if k in b
  }  # fmt: skip
  given = (b[name] for name in CALL)
  return apply(module, params, *given, **named, enable_dropout=False)


@of_all
def test_packed_equals_unpacked(net, rng):
  """Faults seen: no segments in cross-attention; positions not restarted."""
  lengths = [(7, 5), (4, 6), (9, 3)]
  pieces = [batch(rng, 1, s, t, full=True) for s, t in lengths]
  packed = {}
  for key in pieces[0]:
    if key.endswith('tokens'):
      packed[key] = np.concatenate([p[key] for p in pieces], axis=1)
  for side, k in (('encoder', 0), ('decoder', 1)):
    n = [pair[k] for pair in lengths]
    packed[f'{side}_segment_ids'] = np.repeat([1, 2, 3], n)[None]
    packed[f'{side}_positions'] = np.concatenate([np.arange(m) for m in n])[
      None
    ]
  together = logits(net, packed)[0]
  alone = np.concatenate([logits(net, p)[0] for p in pieces])
  np.testing.assert_allclose(together, alone, atol=2e-5)


def test_no_logit_depends_on_later_decoder_tokens(net, rng):
  """Causality by gradient, with respect to the decoder's embeddings."""
  module, params = net
  b = batch(rng, 1, 6, 8, full=True)
  b['decoder_input_tokens'] = np.arange(20, 28)[None]  # all different

  def at(table):
    changed = {**params, 'decoder_embedding': table}
    return logits((module, changed), b)[0].sum(-1)

  slopes = jax.jacobian(at)(params['decoder_embedding'])  # [T, V, D]
  reach = np.abs(slopes).sum(-1)[:, 20:28] > 0
  np.testing.assert_array_equal(reach, np.tril(np.ones((8, 8), bool)))


def test_every_logit_depends_on_every_encoder_token(net, rng):
  module, params = net
  b = batch(rng, 1, 6, 4, full=True)
  b['encoder_input_tokens'] = np.arange(30, 36)[None]

  def at(table):
    changed = {**params, 'encoder_embedding': table}
    return logits((module, changed), b)[0].sum(-1)

  slopes = jax.jacobian(at)(params['encoder_embedding'])
  assert (np.abs(slopes).sum(-1)[:, 30:36] > 0).all()


def test_padding_changes_nothing(net, rng):
  b = batch(rng, 2, 6, 5, full=True)
  wide = {k: np.pad(v, ((0, 0), (0, 7))) for k, v in b.items() if v.ndim == 2}
  np.testing.assert_allclose(
    logits(net, wide)[:, :5], logits(net, b), atol=2e-5
  )
  # Nor does what stands in the padding.
  wide['encoder_input_tokens'][:, 6:] = 50
  wide['decoder_input_tokens'][:, 5:] = 51
  np.testing.assert_allclose(
    logits(net, wide)[:, :5], logits(net, b), atol=2e-5
  )


def test_segment_ids_default_to_where_ids_are_not_padding(rng):
  config = tiny(pad_id=7)
  net = AlexaTM(config), init(config)
  b = batch(rng, 2, 6, 5, full=True)
  b['encoder_input_tokens'][0, 4:] = 7
  b['encoder_segment_ids'][0, 4:] = 0
  explicit = logits(net, b)
  del b['encoder_segment_ids'], b['decoder_segment_ids']
  np.testing.assert_allclose(logits(net, b), explicit, atol=2e-5)


@pytest.mark.parametrize(
  'changes', [dict(remat='full'), dict(unroll=3), dict(remat='full', unroll=3)]
)
def test_remat_and_unrolling_change_neither_loss_nor_gradient(
  net, rng, changes
):
  module, params = net
  b = batch(rng, 2, 6, 5)

  def value(config):
    return jax.value_and_grad(lambda p: logits((AlexaTM(config), p), b).std())(
      params
    )

  plain = value(module.config)
  other = value(dataclasses.replace(module.config, **changes))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), plain, other
  )


def test_remat_holds_where_layers_are_unrolled(net, rng):
  """Fault seen: XLA finds what is made again in the forward pass, and keeps
  that instead."""
  module, params = net
  b = batch(rng, 2, 6, 5)

  def flops(remat):
    config = dataclasses.replace(module.config, remat=remat, unroll=3)
    loss = lambda p: logits((AlexaTM(config), p), b).std()
    lowered = jax.jit(jax.grad(loss)).lower(params)
    return lowered.compile(FUSED_AS_USERS).cost_analysis()['flops']

  assert flops('full') > 1.1 * flops('none')  # 1.0003 with the fault


@of_all
def test_cached_equals_uncached(net, rng):
  """Faults seen: cache written one place off; cross keys of another layer."""
  module, params = net
  b = batch(rng, 3, 6, 7)
  del b['decoder_segment_ids']
  whole = logits(net, b)
  source = b['encoder_segment_ids']
  encoded = apply(
    module, params, b['encoder_input_tokens'], source,
    enable_dropout=False, method=AlexaTM.encode,
  )  # fmt: skip
  caches = module.apply(
    {'params': params}, encoded, 7, method=AlexaTM.empty_cache
  )
  for t in range(7):
    out, caches = apply(
      module, params, b['decoder_input_tokens'][:, t : t + 1],
      jnp.full((3, 1), t), caches, source, method=AlexaTM.decode_cached,
    )  # fmt: skip
    np.testing.assert_allclose(out[:, 0], whole[:, t], atol=2e-5)


def test_a_prefix_may_be_read_at_once(net, rng):
  module, params = net
  b = batch(rng, 2, 6, 7, full=True)
  source = b['encoder_segment_ids']
  encoded = apply(
    module, params, b['encoder_input_tokens'], source,
    enable_dropout=False, method=AlexaTM.encode,
  )  # fmt: skip
  caches = module.apply(
    {'params': params}, encoded, 7, method=AlexaTM.empty_cache
  )
  positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
  out, _ = apply(
    module, params, b['decoder_input_tokens'], positions, caches, source,
    method=AlexaTM.decode_cached,
  )  # fmt: skip
  np.testing.assert_allclose(out, logits(net, b), atol=2e-5)


def test_dropout_follows_its_key(rng):
  config = tiny(dropout=0.2, attention_dropout=0.2, activation_dropout=0.2)
  module, params = AlexaTM(config), init(config)
  b = batch(rng, 2, 6, 5)

  def draw(seed):
    given = (b[name] for name in CALL)
    return apply(module, params, *given, rngs={'dropout': jax.random.key(seed)})

  np.testing.assert_array_equal(draw(1), draw(1))
  assert (draw(1) != draw(2)).any()


@pytest.mark.parametrize(
  'name', ['dropout', 'attention_dropout', 'activation_dropout']
)
def test_each_dropout_rate_is_used(rng, name):
  config = tiny(**{name: 0.5})
  module, params = AlexaTM(config), init(config)
  b = batch(rng, 2, 6, 5)
  args = [b[k] for k in CALL]
  key = {'dropout': jax.random.key(0)}
  with_ = apply(module, params, *args, rngs=key)
  without = apply(module, params, *args, enable_dropout=False)
  assert (with_ != without).any()


def test_bfloat16_is_near_float32(net, rng):
  module, params = net
  b = batch(rng, 2, 6, 5)
  half = AlexaTM(dataclasses.replace(module.config, dtype='bfloat16'))
  out, exact = logits((half, params), b), logits(net, b)
  assert out.dtype == exact.dtype == jnp.float32
  assert np.abs(out.astype(np.float32) - exact).max() < 3e-2 * exact.max()


def test_t5x_calls(net, rng):
  """The calls of t5x's EncoderDecoderModel, argument for argument."""
  module, params = net
  b = batch(rng, 2, 6, 5)
  shapes = {k: b[k].shape for k in CALL}
  given = dict(
    encoder_positions=None, decoder_positions=None, decoder_segment_ids=None,
    decode=False, enable_dropout=False,
  )  # fmt: skip
  # Compiled: op by op each of these calls takes seconds.
  init_model = jax.jit(
    functools.partial(module.init, encoder_segment_ids=None, **given)
  )
  made = init_model(
    jax.random.key(0), *(jnp.ones(shapes[k], jnp.int32) for k in CALL)
  )
  assert set(made) == {'params'}
  score = jax.jit(
    functools.partial(module.apply, rngs=None, mutable=False, **given)
  )
  whole = score(
    {'params': params},
    *(b[k] for k in CALL),
    encoder_segment_ids=b.get('encoder_segment_ids'),
  )
  # As its predict_batch does: encode, make a cache, decode token by token.
  source = b['encoder_input_tokens']
  encode = jax.jit(
    functools.partial(module.apply, enable_dropout=False, method=module.encode)
  )
  encoded = encode({'params': params}, source)
  ones = jnp.ones_like(b['decoder_input_tokens'])
  make_cache = jax.jit(
    functools.partial(
      module.apply, mutable=['cache'], decode=True, enable_dropout=False
    )
  )
  _, variables = make_cache(
    {'params': params},
    encoder_input_tokens=jnp.ones_like(source),
    decoder_input_tokens=ones,
    decoder_target_tokens=ones,
  )
  cache = variables['cache']
  decode = jax.jit(
    functools.partial(
      module.apply, enable_dropout=False, decode=True, max_decode_length=5,
      mutable=['cache'], method=module.decode,
    )
  )  # fmt: skip
  for t in range(5):
    token = b['decoder_input_tokens'][:, t : t + 1]
    out, changed = decode(
      {'params': params, 'cache': cache}, encoded, source, token, token
    )
    cache = changed['cache']
    np.testing.assert_allclose(out[:, 0], whole[:, t], atol=2e-5)


def test_too_long_a_sequence_is_refused(net, rng):
  with pytest.raises(ValueError, match='49 tokens is longer than .* = 48'):
    logits(net, batch(rng, 1, 49, 5))


def test_three_matrices_start_equal_and_are_not_tied():
  ids = jnp.ones((1, 1), jnp.int32)
  module = AlexaTM(tiny())
  make = functools.partial(module.init, enable_dropout=False)
  params = nn.unbox(jax.jit(make)(jax.random.key(0), ids, ids))['params']
  first = params['encoder_embedding']
  for name in ('decoder_embedding', 'lm_head'):
    np.testing.assert_array_equal(params[name], first)
  grads = jax.grad(
    lambda p: apply(module, p, ids, ids, enable_dropout=False)[0, 0, 5]
  )(params)
  names = ('encoder_embedding', 'decoder_embedding', 'lm_head')
  a, b, c = (np.asarray(grads[name]) for name in names)
  assert (a != b).any() and (b != c).any() and (a != c).any()
