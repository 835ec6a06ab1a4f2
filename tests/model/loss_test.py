"""The loss in chunks: as the plain one, without [B, T, V]."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.model import loss, parameters
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.train import step as step_lib

from conftest import FUSED_AS_USERS, batch, tiny

B, T, D, V = 3, 10, 16, 37


def inputs(rng, dtype=jnp.float32):
  """(states, targets, weights, head, bias)."""
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  weights = np.where(rng.random((B, T)) < 0.7, rng.random((B, T)), 0)
  return (
    draw(B, T, D).astype(dtype),
    jnp.asarray(rng.integers(0, V, (B, T))),
    jnp.asarray(weights, jnp.float32),
    draw(V, D).astype(dtype),
    draw(V),
  )


def plain(states, targets, weights, head, bias):
  """The whole logits at once, differentiated by JAX, all in float32."""
  states, head = states.astype(jnp.float32), head.astype(jnp.float32)
  logits = jnp.einsum('btd,vd->btv', states, head)
  if bias is not None:
    logits += bias
  return loss.cross_entropy(logits, targets, weights, z_loss=0.1)


def in_chunks(chunk):
  return functools.partial(
    loss.cross_entropy_from_states, z_loss=0.1, chunk=chunk
  )


def value_and_slopes(compute, states, targets, weights, head, bias, by_row=3.0):
  """(sums, gradients by states, weights and head)."""

  def total(states, weights, head):
    sums = compute(states, targets, weights, head, bias)
    return ((sums['loss'] + sums['z_loss']) * by_row).sum(), sums

  slopes, sums = jax.jit(
    jax.grad(total, argnums=(0, 1, 2), has_aux=True)
  )(states, weights, head)  # fmt: skip
  return sums, slopes


@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize('chunk', [1, 5, 4, 64])
def test_chunks_change_neither_value_nor_gradient(rng, chunk, with_bias):
  """Chunks that divide T and that do not, one position, more than T.

  Faults seen: the target's part of the gradient left out; log Z's; the head's
  gradient of the last chunk only; the bias left out in the backward; chunks
  put together in the wrong order.
  """
  given = inputs(rng)
  given = given if with_bias else (*given[:-1], None)
  sums, slopes = value_and_slopes(in_chunks(chunk), *given)
  want_sums, want_slopes = value_and_slopes(plain, *given)
  for name, want in want_sums.items():
    np.testing.assert_allclose(sums[name], want, rtol=2e-6, err_msg=name)
  np.testing.assert_array_equal(sums['correct'], want_sums['correct'])
  for got, want in zip(slopes, want_slopes, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize('by_row', [(1.0, 2.0, 1.0), (0.0, 0.0, 1.0)])
def test_rows_that_count_differently_give_no_gradient(rng, by_row):
  """The head's is made before it is known how they count.

  Fault seen: the first row's factor taken for all.
  """
  given = inputs(rng)
  sums, slopes = value_and_slopes(in_chunks(4), *given, jnp.array(by_row))
  assert np.isfinite(sums['loss']).all()
  assert all(np.isnan(x).all() for x in slopes)
  # A part of the sums, too, is not what the gradient was made for.
  alone = jax.grad(lambda x: in_chunks(4)(x, *given[1:])['loss'].sum())
  assert np.isnan(alone(given[0])).all()


def test_the_gradient_is_that_of_differences(rng):
  """Against central differences in float64, which share no code with it."""
  states, targets, weights, head, bias = inputs(rng)
  direction = rng.standard_normal((V, D))

  def value(step):
    logits = np.einsum('btd,vd->btv', states, head + step * direction) + bias
    top = logits.max(-1)
    log_z = np.log(np.exp(logits - top[..., None]).sum(-1)) + top
    picked = np.take_along_axis(logits, np.array(targets)[..., None], -1)
    each = log_z - picked[..., 0] + 0.1 * log_z**2
    return 3 * (each * weights).sum()

  states, head, bias, weights = (
    np.array(x, np.float64) for x in (states, head, bias, weights)
  )
  want = (value(1e-5) - value(-1e-5)) / 2e-5
  half = lambda x: jnp.asarray(x, jnp.float32)
  _, slopes = value_and_slopes(
    in_chunks(4), half(states), targets, half(weights), half(head), half(bias)
  )
  assert np.sum(np.array(slopes[2], np.float64) * direction) == pytest.approx(
    want, rel=2e-5
  )


def test_bfloat16_rounds_only_what_it_reads_and_gives(rng):
  """Logits, their softmax and the sums over positions stay in float32.

  The gradient of the logits is rounded to bfloat16 (2^-9 of a value) before
  the two products that read it, and each gradient once more.

  Fault seen: the head's gradient summed over chunks in bfloat16.
  """
  given = inputs(rng, jnp.bfloat16)
  sums, slopes = value_and_slopes(in_chunks(4), *given)
  want_sums, want_slopes = value_and_slopes(plain, *given)
  for name, want in want_sums.items():
    np.testing.assert_allclose(sums[name], want, rtol=2e-6, err_msg=name)
  assert [x.dtype for x in slopes] == [jnp.bfloat16, jnp.float32, jnp.bfloat16]
  for got, want in zip(slopes, want_slopes, strict=True):
    got, want = np.array(got, np.float32), np.array(want, np.float32)
    np.testing.assert_allclose(got, want, rtol=2**-7, atol=2e-2)
    assert np.linalg.norm(got - want) < 2**-8 * np.linalg.norm(want)


def test_positions_without_weight_change_nothing(rng):
  states, targets, weights, head, bias = inputs(rng)
  empty = (weights == 0)[..., None]
  changed = (
    jnp.where(empty, 7.0, states),
    jnp.where(empty[..., 0], 5, targets),
    weights,
    head,
    bias,
  )
  sums, slopes = value_and_slopes(
    in_chunks(4), states, targets, weights, head, bias
  )
  other_sums, other_slopes = value_and_slopes(in_chunks(4), *changed)
  for name in sums:
    np.testing.assert_array_equal(sums[name], other_sums[name])
  np.testing.assert_array_equal(slopes[0], other_slopes[0])
  np.testing.assert_array_equal(slopes[2], other_slopes[2])
  assert (np.array(slopes[0])[np.array(empty)[..., 0]] == 0).all()


@pytest.mark.parametrize('chunk, one_cpu', [(64, 0), (4, 0), (4, 1), (5, 1)])
@pytest.mark.parametrize('z_loss', [0.0, 0.1])
def test_label_smoothing_is_that_of_szegedy(
  rng, chunk, one_cpu, z_loss, monkeypatch
):
  """Against float64 by its definition, and gradients by their formula.

  Whole logits, chunks, and the form of one CPU. The loss stays without it.
  Faults seen: spread over the V - 1 others; the target's own share left out of
  its gradient; of the weights' gradient left out.
  """
  monkeypatch.setattr(loss.matmul, 'on_one_cpu', lambda: bool(one_cpu))
  given = inputs(rng)
  compute = functools.partial(
    loss.cross_entropy_from_states, z_loss=z_loss, label_smoothing=0.3,
    chunk=chunk,
  )  # fmt: skip

  def total(states, weights, head):
    sums = compute(states, given[1], weights, head, given[4])
    return 3 * loss.total_loss(sums).sum(), sums

  slopes, sums = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(
    given[0], given[2], given[3]
  )
  states, targets, weights, head, bias = (np.asarray(x) for x in given)
  states, weights, head, bias = (
    x.astype(np.float64) for x in (states, weights, head, bias)
  )
  logits = np.einsum('btd,vd->btv', states, head) + bias
  top = logits.max(-1, keepdims=True)
  log_z = np.log(np.exp(logits - top).sum(-1, keepdims=True)) + top
  wanted = np.eye(V)[targets]
  smooth = 0.7 * wanted + 0.3 / V
  each = -(smooth * (logits - log_z)).sum(-1)
  plain = -(wanted * (logits - log_z)).sum(-1)
  square = z_loss * log_z[..., 0] ** 2
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
  by_row = lambda x: (x * weights).sum(1)
  close(sums['loss'], by_row(plain))
  close(sums['smoothing'], by_row(each - plain))
  close(loss.total_loss(sums), by_row(each + square))
  slope = np.exp(logits - log_z) * (1 + 2 * z_loss * log_z) - smooth
  slope *= 3 * weights[..., None]
  close(slopes[0], np.einsum('btv,vd->btd', slope, head))
  close(slopes[1], 3 * (each + square))
  close(slopes[2], np.einsum('btv,btd->vd', slope, states))


# --- In a model, and over devices


def slopes_of(net, label_smoothing=0.0):
  """params, batch -> (mean loss, gradients) as the training step has them."""

  def mean(params, batch):
    sums = step_lib.forward(
      net, params, batch, z_loss=1e-3, label_smoothing=label_smoothing
    )
    return loss.total_loss(sums).sum() / sums['weight'].sum()

  return jax.value_and_grad(mean)


def compiled(mesh, rows, length, **changes):
  """The program of the loss and its gradient, nothing of it run."""
  net = AlexaTM(tiny(**changes))
  params = parameters.abstract_params(net, mesh, Rules())
  split = jax.NamedSharding(mesh, Rules().spec('batch'))
  rows = batch(np.random.default_rng(0), rows, length, length)
  for side in ('encoder', 'decoder'):  # packed rows have positions
    rows[f'{side}_positions'] = rows[f'{side}_segment_ids']
  given = {
    k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)
    for k, x in rows.items()
  }
  with sharding.use_mesh(mesh, Rules()):
    lowered = jax.jit(slopes_of(net)).lower(params, given)
    return lowered.compile(FUSED_AS_USERS).as_text()


def arrays(program: str, size: int) -> set[tuple[int, ...]]:
  """Shapes in an HLO text of which an axis is `size` or a multiple."""
  shapes = re.findall(r'\b[a-z]+\d*\[(\d[\d,]*)\]', program)
  shapes = {tuple(map(int, x.split(','))) for x in shapes}
  return {x for x in shapes if any(n and n % size == 0 for n in x)}


LARGE = dict(
  vocab_size=150_000, encoder_layers=1, decoder_layers=1, loss_chunk=8
)  # fmt: skip


def test_no_logits_of_all_positions_are_in_memory(one_device):
  """4 x 40 positions, of which 4 x 8 have logits at a time; D is 32, too.

  Faults seen: JAX's own derivative, which keeps all logits; one chunk; one
  chunk in the backward.
  """
  program = compiled(one_device, 4, 40, **LARGE)
  found = arrays(program, 150_000)
  assert (150_000, 32) in found  # the embedding
  assert max(map(np.prod, found)) == 4 * 8 * 150_000
  whole = compiled(one_device, 4, 40, **{**LARGE, 'loss_chunk': 40})
  assert max(map(np.prod, arrays(whole, 150_000))) == 4 * 40 * 150_000


def test_each_device_has_logits_of_its_own_rows_and_ids():
  """Sums over devices of the head's gradient are not in the loop.

  Faults seen: the loop left to GSPMD, which sums the head's gradient in every
  turn; rows not split; ids not split; the head gathered over `tensor`, too.
  """
  mesh, part = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2), 75_000
  program = compiled(mesh, 16, 40, **LARGE)
  found = arrays(program, part)
  logits = {x for x in found if x[-1] % part == 0 and len(x) > 1}
  assert (4, 8, part) in logits  # 16 rows over 4
  assert max(map(np.prod, logits)) == 4 * 8 * part
  # Half of the columns of an embedding, or half of the head's rows: no table
  # is whole anywhere, nor is its gradient.
  assert max(map(np.prod, found)) == 150_000 * 16
  loops, entry = program.split('\nENTRY ')
  sums = rf'= .*\[{part},\d+\].* all-reduce'
  assert re.search(sums, entry) and not re.search(sums, loops)


def test_of_embeddings_tokens_alone_are_exchanged():
  """Of two tables, forward and backward; positions are added by rows.

  Fault seen: positions added to columns, which exchanged them as well.
  """
  program = compiled(mesh_lib.make_mesh(data=2, fsdp=4), 16, 40, **LARGE)
  lines = re.findall(r'.* all-to-all\(.*', program)
  assert len([line for line in lines if '_embed' in line]) == 4


def test_each_device_is_sent_its_part_of_the_heads_gradient():
  """By rows, each in one piece; once for all positions.

  Fault seen: the whole gradient summed to every device.
  """
  program = compiled(mesh_lib.make_mesh(data=2, fsdp=4), 16, 40, **LARGE)
  loops, entry = program.split('\nENTRY ')
  part = r'= \w+\[37500,32\].* reduce-scatter\('
  whole = r'= \w+\[150000,32\].* all-reduce\('
  assert re.search(part, entry) and not re.search(part, loops)
  assert not re.search(whole, program)


@pytest.mark.parametrize('sizes, vocabulary, smoothing', [
  (dict(data=2, fsdp=2, tensor=2), 96, 0.2),
  (dict(data=2, fsdp=4), 96, 0.0),
  (dict(data=2, fsdp=4), 98, 0.2),
])  # fmt: skip
def test_devices_change_neither_value_nor_gradient(
  rng, one_device, sizes, vocabulary, smoothing
):
  """Also where the rows of the head do not divide.

  Faults seen: half of the head's gradient; rows of two devices exchanged.
  """
  net = AlexaTM(
    tiny(
      loss_chunk=4, decoder_layers=1, encoder_layers=1, vocab_size=vocabulary
    )
  )
  ids = jnp.ones((1, 1), jnp.int32)
  rows, got = batch(rng, 8, 12, 10), []
  for mesh in (one_device, mesh_lib.make_mesh(**sizes)):
    abstract = parameters.abstract_params(net, mesh, Rules())
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    make = lambda: nn.unbox(
      net.init(jax.random.key(0), ids, ids, enable_dropout=False)['params']
    )
    params = jax.jit(make, out_shardings=shardings)()
    with sharding.use_mesh(mesh, Rules()):
      placed = sharding.shard_batch(rows, mesh, Rules())
      slopes = jax.jit(slopes_of(net, smoothing))
      got.append(jax.device_get(slopes(params, placed)))
  assert np.isfinite(got[0][0])
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), *got
  )


def test_a_target_is_right_where_nothing_is_likelier():
  """Ties are right. Fault seen: no target ever right."""
  logits = jnp.array([[[1.0, 2, 2], [1, 2, 2], [1, 2, 2], [3, 0, 0]]])
  sums = loss.cross_entropy(
    logits, jnp.array([[1, 2, 0, 0]]), jnp.array([[1.0, 2, 4, 8]]), 0.5
  )
  log_z = np.log(np.exp(np.asarray(logits[0], np.float64)).sum(-1))
  picked, weights = np.array([2, 2, 1, 3]), np.array([1, 2, 4, 8])
  assert sums['correct'].tolist() == [11] and sums['weight'].tolist() == [15]
  for name, each in (('loss', log_z - picked), ('z_loss', 0.5 * log_z**2)):
    np.testing.assert_allclose(sums[name], [(each * weights).sum()], rtol=1e-6)
