"""Collectives: lines of a TPU's program, and small ones of the CPU."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from atm.parallel import mesh as mesh_lib
from atm.plan import collectives, hlo, program_costs

from hlo_texts import ASYNC, FUSED, PADDED, SIZES, SLICES, SPARSE, TPU


@pytest.fixture(scope='module')
def tpu():
  return hlo.parse(TPU)


def row(program, kind):
  (found,) = (
    r for r in collectives.list_collectives(program, SIZES) if r['kind'] == kind
  )
  return found


def test_a_sum_that_is_sliced_is_a_reduce_scatter(tpu):
  """Fault seen: taken for an all-reduce."""
  found = row(tpu, 'reduce-scatter')
  assert found['axes'] == ('fsdp',) and found['count'] == 46
  assert found['wire_bytes'] == 46 * 2 * 4096 * 4096 * 63 / 64
  assert not found['asynchronous']
  assert found['source'] == 'atm/layers.py:88'  # of the fusion


def test_a_gather_over_a_mesh_that_xla_made(tpu):
  found = row(tpu, 'all-gather')
  assert found['axes'] == ('fsdp',) and found['group'] == 64
  assert found['wire_bytes'] == 46 * 2 * 4096 * 4096 * 63 / 64
  assert found['source'] == 'atm/layers.py:88'


def test_a_sum_over_two_devices(tpu):
  found = row(tpu, 'all-reduce')
  assert found['axes'] == ('data',) and found['count'] == 1
  assert found['wire_bytes'] == 2 * 4 * 1000 / 2


def test_asynchronous_collectives():
  """Faults seen: what starts counted with what is given to it; what is called
  by async-start taken for synchronous."""
  sizes = {'slice': 1, 'data': 2, 'fsdp': 2, 'tensor': 2}
  found = {
    r['kind']: (r['axes'], r['wire_bytes'], r['asynchronous'])
    for r in collectives.list_collectives(hlo.parse(ASYNC), sizes)
  }
  assert found == {
    'all-gather': (('fsdp', 'tensor'), 128 * 3 / 4, True),
    'reduce-scatter': (('fsdp', 'tensor'), 32 * 3 / 4, True),
    'collective-permute': (('fsdp',), 128, False),
  }


def test_a_gather_by_sparse_cores():
  """Fault seen: a plan of TPU7x without a gather."""
  sizes = {'slice': 1, 'data': 2, 'fsdp': 4, 'tensor': 1}
  (found,) = collectives.list_collectives(hlo.parse(SPARSE), sizes)
  assert found['kind'] == 'all-gather' and found['axes'] == ('fsdp',)
  assert found['wire_bytes'] == 2 * 128 * 64 * 3 / 4
  assert found['asynchronous'] and found['count'] == 1


def test_a_gather_beside_a_product_is_one():
  """Faults seen: counted wherever it is written; taken for synchronous; the
  product's cycles for the gather's."""
  program = hlo.parse(FUSED)
  sizes = {'slice': 1, 'data': 2, 'fsdp': 4, 'tensor': 1}
  (found,) = collectives.list_collectives(program, sizes)
  assert found['count'] == 1 and found['asynchronous']
  assert found['wire_bytes'] == 2 * 128 * 64 * 3 / 4
  assert program_costs.sum_cycles(program) == {
    'matrix products': 70,
    'unknown': 0,
  }


@pytest.mark.parametrize(
  'text, first',
  [
    ('replica_groups={{0,2},{1,3}}', [0, 2]),
    ('replica_groups=[2,2]<=[4]', [0, 1]),
    ('replica_groups=[2,2]<=[2,2]T(1,0)', [0, 2]),
    ("replica_groups=mesh['x'=2,'y'=2] {'y'}", [0, 1]),
    ("replica_groups=mesh['x'=2,'y'=2], device_ids=(0,2,1,3) {'x'}", [0, 1]),
    (
      "replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'x'}",
      [0, 1],
    ),
    ("replica_groups=mesh['x'=4] {'x':(1)2}", [0, 2]),
    ("replica_groups=mesh['x'=4] {'x':(2)2}", [0, 1]),
    ('channel_id=1', [0, 1, 2, 3]),
  ],
)
def test_groups_in_every_notation(text, first):
  assert list(collectives.replica_groups(text, 4)[0]) == first


RING = [(i, (i + 1) % 4) for i in range(4)]


def mesh():
  return mesh_lib.make_mesh(data=2, fsdp=4)


def compiled(function, *args, out=P()):
  with jax.set_mesh(mesh()):
    shapes = [jnp.ones(shape) for shape in args]
    return hlo.parse(jax.jit(function).lower(*shapes).compile().as_text())


def test_loops_within_loops():
  """Fault seen: the outer loop's turns left out."""

  def inner(x, _):
    summed = jax.shard_map(
      lambda y: jax.lax.psum(y, 'fsdp') / 4, in_specs=P('data'),
      out_specs=P('data'), axis_names={'data', 'fsdp'}, check_vma=False,
    )  # fmt: skip
    return summed(x) * 1.5, None

  def outer(x, _):
    return jnp.sin(jax.lax.scan(inner, x, length=5)[0]), None

  program = compiled(lambda x: jax.lax.scan(outer, x, length=7)[0], (8, 16))
  (found,) = collectives.list_collectives(program, dict(mesh().shape))
  assert found['kind'] == 'all-reduce' and found['axes'] == ('fsdp',)
  assert found['count'] == 35 and not found['asynchronous']
  assert found['wire_bytes'] == 35 * 2 * (4 * 16 * 4) * 3 / 4


@pytest.mark.parametrize(
  'kind, move, sent',
  [
    ('all-gather', functools.partial(jax.lax.all_gather, tiled=True), 3 / 4),
    (
      'reduce-scatter',
      functools.partial(jax.lax.psum_scatter, tiled=True),
      3 / 4,
    ),
    ('all-reduce', jax.lax.psum, 2 * 3 / 4),
    (
      'all-to-all',
      lambda x, axis: jax.lax.all_to_all(x, axis, 0, 0, tiled=True),
      3 / 4,
    ),
    (
      'collective-permute',
      lambda x, axis: jax.lax.ppermute(x, axis, RING),
      1,
    ),
  ],
)  # fmt: skip
def test_bytes_of_every_kind(kind, move, sent):
  """Of 16 x 4 numbers: what a ring of four sends of them."""
  gathers = kind == 'all-gather'
  moved = jax.shard_map(
    lambda x: move(x, 'fsdp'),
    mesh=mesh(),
    in_specs=P('fsdp') if gathers else P(),
    out_specs=P() if gathers or kind == 'all-reduce' else P('fsdp'),
    check_vma=False,
  )
  program = compiled(moved, (16, 4))
  found = [
    r
    for r in collectives.list_collectives(program, dict(mesh().shape))
    if r['kind'] == kind
  ]
  assert len(found) == 1 and found[0]['axes'] == ('fsdp',)
  assert found[0]['wire_bytes'] == 4 * 16 * 4 * sent


def test_what_goes_to_other_slices_is_counted():
  """Fault seen: the number beside what is sent taken for it."""
  sizes = {'slice': 2, 'data': 2, 'fsdp': 64, 'tensor': 1}
  (row,) = collectives.list_collectives(hlo.parse(SLICES), sizes)
  assert row['kind'] == 'all-reduce' and row['axes'] == ('slice',)
  assert row['asynchronous'] and row['group'] == 2 and row['count'] == 1
  assert row['wire_bytes'] == 2 * 128 * 8 * 128


def test_sums_of_zeros_but_for_a_part_are_recognised():
  """Two of four operands; not a product, nor what is given."""
  sizes = {'slice': 1, 'data': 1, 'fsdp': 128, 'tensor': 1}
  (row,) = collectives.list_collectives(hlo.parse(PADDED), sizes)
  assert row['padded'] == row['wire_bytes'] / 2 > 1e8
