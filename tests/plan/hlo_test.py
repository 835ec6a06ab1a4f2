"""Compiled HLO as text: small programs of the CPU, and lines of a TPU's."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from atm.parallel import mesh as mesh_lib
from atm.plan import collectives, hardware, hlo, step_time

SIZES = {'slice': 1, 'data': 2, 'fsdp': 64, 'tensor': 1}

# What libtpu 0.0.42 writes for a step of 20b on v5p:4x4x8, most of it left out:
# a loop without a trip count of its own, a kernel whose attributes take several
# lines, one of which begins like the end of a computation, and a sum of
# gradients that each device keeps a part of.
TPU = r"""HloModule jit_train_step, is_scheduled=true

FileNames
1 "/home/me/atm/layers.py"
2 "/usr/lib/flax/linen/module.py"

FunctionNames
1 "<module>"

FileLocations
1 {file_name_id=1 function_name_id=1 line=88 end_line=88 column=4 end_column=4}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=4 end_column=4}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y), backend_config={"estimated_cycles":"9"}
}

%all-reduce-scatter.6 (input: bf16[4096,4096]) -> bf16[64,4096] {
  %input = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[4096,4096]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=1, replica_groups=mesh['axis_0'=64,'axis_1'=1,'axis_2'=2], device_ids=([2,64]T(1,0)) {'axis_0'}, use_global_device_ids=true, to_apply=%add
  ROOT %slice.1 = bf16[64,4096]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %c, %c), dynamic_slice_sizes={64,4096}
}

%fused (a: bf16[16,4096], b: bf16[4096,4096]) -> bf16[16,4096] {
  %a = bf16[16,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[16,4096]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf
}

%body (p: (s32[], bf16[16,4096])) -> (s32[], bf16[16,4096]) {
  %p = (s32[]{:T(128)}, bf16[16,4096]{1,0:T(8,128)(2,1)}) parameter(0)
  %kernel = (f32[16,512,128]{2,1,0:T(8,128)}, /*index=1*/bf16[16,4096]{1,0:T(8,128)(2,1)}) custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
 "xprof_metadata":"{\"block_q\": 512}"
}}, metadata={op_name="jit(train_step)/pallas_call" stack_frame_id=2}
  %all-gather.1 = bf16[4096,4096]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=2, replica_groups=mesh['axis_0'=64,'axis_1'=1,'axis_2'=2], device_ids=([2,64]T(1,0)) {'axis_0'}, dimensions={0}, metadata={op_name="jit(train_step)/dot_general" stack_frame_id=1}
  %product = bf16[16,4096]{1,0:T(8,128)(2,1)} fusion(%p, %all-gather.1), kind=kOutput, calls=%fused, metadata={stack_frame_id=1}, backend_config={"estimated_cycles":"1000"}
  %copy.1 = bf16[16,4096]{0,1:T(8,128)(2,1)} copy(%product), backend_config={"estimated_cycles":"10"}
  %unknown = bf16[16,4096]{0,1:T(8,128)(2,1)} negate(%copy.1), backend_config={"estimated_cycles":"9223372036854775807"}
  %fusion.2 = bf16[64,4096]{1,0:T(8,128)(2,1)} fusion(%all-gather.1), kind=kCustom, calls=%all-reduce-scatter.6, metadata={stack_frame_id=1}
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[16,4096]{1,0:T(8,128)(2,1)}) tuple(%p, %product)
}

%condition (p.1: (s32[], bf16[16,4096])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(46)
  %p.1 = (s32[]{:T(128)}, bf16[16,4096]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %lt = pred[]{:T(512)} compare(%p.1, %constant.1), direction=LT
}

ENTRY %main (arg: bf16[16,4096]) -> bf16[16,4096] {
  %arg = bf16[16,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[16,4096]{1,0:T(8,128)(2,1)}) while(%arg), condition=%condition, body=%body
  %all-reduce.2 = f32[1000]{0:T(1024)} all-reduce(%arg), channel_id=3, replica_groups=[64,2]<=[2,64]T(1,0), use_global_device_ids=true, to_apply=%add
  ROOT %out = bf16[16,4096]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501


@pytest.fixture(scope='module')
def tpu():
  return hlo.Program(TPU)


def row(program, kind):
  (found,) = (
    r for r in collectives.collectives(program, SIZES) if r['kind'] == kind
  )
  return found


# --- Lines of a TPU's program


def test_a_loop_turns_as_often_as_its_condition_says(tpu):
  """Fault seen: the body counted once."""
  assert tpu.times['main'] == 1 and tpu.times['body'] == 46
  assert tpu.times['fused'] == 46 and 'add' not in tpu.times
  assert not tpu.unknown_loops


def test_an_attribute_of_several_lines_ends_no_computation(tpu):
  """Fault seen: all that stands behind a kernel lost."""
  names = [line.name for line in tpu.computations['body']]
  assert names[1:4] == ['kernel', 'all-gather.1', 'product']
  assert tpu.source(tpu.computations['body'][1]) == 'atm/layers.py:88'


def test_cycles_are_times_the_loop(tpu):
  """Fault seen: the mark of no estimate added."""
  assert tpu.cycles() == {
    'matrix products': 46 * 1000,
    'copies': 46 * 10,
    'unknown': 46,
  }


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


def test_large_arrays_are_not_those_inside_fusions(tpu):
  """Fault seen: a fusion's own parameters and results listed."""
  shapes = [r['shape'] for r in tpu.largest()]
  assert shapes[0] == 'bf16[4096,4096]' and 'f32[16,512,128]' in shapes
  assert shapes.count('bf16[4096,4096]') == 1
  assert tpu.largest()[0]['bytes'] == 2 * 4096 * 4096


ASYNC = """HloModule m

%inner (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  ROOT %rs = f32[2]{0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

ENTRY %main (a: f32[8]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%a), replica_groups=[2,4]<=[8], dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %async = ((f32[8]{0}), f32[2]{0}, u32[]) async-start(%a), calls=%inner
  %finish = f32[2]{0} async-done(%async)
  ROOT %move = f32[32]{0} collective-permute(%done), source_target_pairs={{0,0},{1,3},{3,1}}
}
"""  # noqa: E501


def test_asynchronous_collectives():
  """Faults seen: what starts counted with what is given to it; what is called
  by async-start taken for synchronous."""
  sizes = {'slice': 1, 'data': 2, 'fsdp': 2, 'tensor': 2}
  found = {
    r['kind']: (r['axes'], r['wire_bytes'], r['asynchronous'])
    for r in collectives.collectives(hlo.Program(ASYNC), sizes)
  }
  assert found == {
    'all-gather': (('fsdp', 'tensor'), 128 * 3 / 4, True),
    'reduce-scatter': (('fsdp', 'tensor'), 32 * 3 / 4, True),
    'collective-permute': (('fsdp',), 128, False),
  }


def test_large_arrays_are_not_those_inside_async_start():
  """Fault seen: what is called listed as well."""
  counts = {r['shape']: r['count'] for r in hlo.Program(ASYNC).largest()}
  assert counts['f32[2]'] == 2  # start, done


# A v5e's gather that runs beside a product: written three times, done once.
FUSED = """HloModule m

%begin (p: bf16[32,64]) -> (bf16[32,64], bf16[128,64]) {
  %p = bf16[32,64]{1,0} parameter(0)
  ROOT %gather.1 = bf16[128,64]{1,0} all-gather(%p), channel_id=5, replica_groups=[2,4]<=[8]
}

%async_collective_fusion.7 (q: bf16[32,64], x: bf16[8,64]) -> bf16[8,64] {
  %q = bf16[32,64]{1,0} parameter(0)
  %x = bf16[8,64]{1,0} parameter(1)
  %gather.2 = bf16[128,64]{1,0} all-gather(%q), channel_id=5, replica_groups=[2,4]<=[8]
  ROOT %product = bf16[8,64]{1,0} convolution(%x, %q), dim_labels=bf_io->bf
}

%end (r: bf16[128,64]) -> bf16[128,64] {
  %r = bf16[128,64]{1,0} parameter(0)
  ROOT %gather.3 = bf16[128,64]{1,0} all-gather(%r), channel_id=5, replica_groups=[2,4]<=[8]
}

ENTRY %main (a: bf16[32,64]) -> bf16[128,64] {
  %a = bf16[32,64]{1,0} parameter(0)
  %async-collective-start.1 = (bf16[32,64]{1,0}, bf16[128,64]{1,0}) fusion(%a), kind=kCustom, calls=%begin
  %fusion.1 = bf16[8,64]{1,0} fusion(%a), kind=kOutput, calls=%async_collective_fusion.7, backend_config={"estimated_cycles":"70"}
  ROOT %async-collective-done.1 = bf16[128,64]{1,0} fusion(%a), kind=kCustom, calls=%end
}
"""  # noqa: E501


def test_a_gather_beside_a_product_is_one():
  """Faults seen: counted wherever it is written; taken for synchronous; the
  product's cycles for the gather's."""
  program = hlo.Program(FUSED)
  sizes = {'slice': 1, 'data': 2, 'fsdp': 4, 'tensor': 1}
  (found,) = collectives.collectives(program, sizes)
  assert found['count'] == 1 and found['asynchronous']
  assert found['wire_bytes'] == 2 * 128 * 64 * 3 / 4
  assert program.cycles() == {'matrix products': 70, 'unknown': 0}


@pytest.mark.parametrize(
  'text, first',
  [
    ('replica_groups={{0,2},{1,3}}', [0, 2]),
    ('replica_groups=[2,2]<=[4]', [0, 1]),
    ('replica_groups=[2,2]<=[2,2]T(1,0)', [0, 2]),
    ("replica_groups=mesh['x'=2,'y'=2] {'y'}", [0, 1]),
    ("replica_groups=mesh['x'=4] {'x':(1)2}", [0, 2]),
    ("replica_groups=mesh['x'=4] {'x':(2)2}", [0, 1]),
    ('channel_id=1', [0, 1, 2, 3]),
  ],
)
def test_groups_in_every_notation(text, first):
  assert list(collectives.groups(text, 4)[0]) == first


# --- Small programs of the CPU


RING = [(i, (i + 1) % 4) for i in range(4)]


def mesh():
  return mesh_lib.make_mesh(data=2, fsdp=4)


def compiled(function, *args, out=P()):
  with jax.set_mesh(mesh()):
    shapes = [jnp.ones(shape) for shape in args]
    return hlo.Program(jax.jit(function).lower(*shapes).compile().as_text())


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
  (found,) = collectives.collectives(program, dict(mesh().shape))
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
    for r in collectives.collectives(program, dict(mesh().shape))
    if r['kind'] == kind
  ]
  assert len(found) == 1 and found[0]['axes'] == ('fsdp',)
  assert found[0]['wire_bytes'] == 4 * 16 * 4 * sent


OFFLOADED = """HloModule m

%turn (p: (s32[], f32[4,256], f32[4,64]{1,0:T(8)S(5)})) -> (s32[], f32[4,256]) {
  %p = (s32[], f32[4,256]{1,0:T(8)S(5)}) parameter(0)
  %dynamic-update-slice-start.1 = ((f32[4,256]{1,0:T(8)S(5)}, f32[1,256]{1,0:T(8)}, s32[], s32[]), f32[4,256]{1,0:T(8)S(5)}, u32[]{:S(2)}) dynamic-update-slice-start(%p)
  %dynamic-slice-start = ((f32[4,64]{1,0:T(8)S(5)}, s32[], s32[]), f32[1,64]{1,0:T(8)}, u32[]{:S(2)}) dynamic-slice-start(%p)
  %product = f32[8]{0} fusion(%p), calls=%product, backend_config={"estimated_cycles":"1000"}
  ROOT %done = (s32[], f32[4,256]{1,0:T(8)S(5)}) tuple(%p)
}

%more (p: (s32[], f32[4,256])) -> pred[] {
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %loop = (s32[], f32[4,256]{1,0:T(8)S(5)}) while(%a), condition=%more, body=%turn, backend_config={"known_trip_count":{"n":"4"}}
  %last = (f32[8]{0:S(5)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%a)
  ROOT %back = (f32[16]{0}, f32[16]{0:S(5)}, u32[]{:S(2)}) copy-start(%a)
}
"""  # noqa: E501


def test_copies_to_and_from_the_host():
  """Whole programs, and those of quick plans.

  Faults seen: whole arrays counted; both ways the same; a turn once; none seen
  of a quick plan.
  """
  quick = re.sub(
    r' dynamic(-update)?-slice-start\(', ' async-start(', OFFLOADED
  )
  assert quick != OFFLOADED
  for text in (OFFLOADED, quick):
    assert hlo.Program(text).host_copies() == [
      ('turn', 4, True, 1024),
      ('turn', 4, False, 256),
      ('main', 1, True, 32),
      ('main', 1, False, 64),
    ]


def test_copies_of_a_turn_wait_where_they_outlast_it():
  """Faults seen: one way after the other; the wait of one turn; a negative."""
  chip = hardware.CHIPS['v5e']
  slow = dataclasses.replace(chip, pcie=1e9, clock=1e9)
  found = step_time.host_copies(hlo.Program(OFFLOADED), {}, slow)
  assert found['to_host_bytes'] == 4 * 1024 + 32
  assert found['from_host_bytes'] == 4 * 256 + 64
  assert found['waits_s'] == pytest.approx(4 * (1024e-9 - 1000e-9))
  fast = dataclasses.replace(slow, pcie=2e9)
  assert step_time.host_copies(hlo.Program(OFFLOADED), {}, fast)['waits_s'] == 0
  assert step_time.host_copies(hlo.Program(ASYNC), {}, chip) is None


def test_arrays_of_a_shape():
  assert hlo.arrays('(f32[2,3]{1,0:T(8,128)}, bf16[], token[])') == [24, 2]
  assert np.isclose(sum(hlo.arrays('s4[8]')), 4)


# What libtpu 0.0.42 writes for two slices of v5p:4x4x8, and for one without
# wrapped sides, most of it left out.
SLICES = r"""
ENTRY %main (a: bf16[128,8,128]) -> token[] {
  %a = bf16[128,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %after-all.82 = token[] after-all()
  %send.82 = (bf16[128,8,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%a, %after-all.82), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.195_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:127}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.83 = (bf16[128,8,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%a, %after-all.82), channel_id=5, is_host_transfer=true
  ROOT %send-done.82 = token[] send-done(%send.82), channel_id=4
}
"""  # noqa: E501
PADDED = r"""
%fused (p: bf16[1,4096,4096], q: bf16[1,4096,32]) -> bf16[1,4096,4096] {
  %p = bf16[1,4096,4096]{2,1,0} parameter(0)
  %q = bf16[1,4096,32]{2,1,0} parameter(1)
  ROOT %dynamic-update-slice.1 = bf16[1,4096,4096]{2,1,0} dynamic-update-slice(%p, %q)
}

%products (a: bf16[4096,4096]) -> bf16[1,4096,4096] {
  %a = bf16[4096,4096]{1,0} parameter(0)
  ROOT %convolution.1 = bf16[1,4096,4096]{2,1,0} convolution(%a, %a), dim_labels=bf_io->bf
}

ENTRY %main (z: bf16[1,4096,4096], w: bf16[1,4096,32]) -> bf16[1,4096,4096] {
  %z = bf16[1,4096,4096]{2,1,0} parameter(0)
  %w = bf16[1,4096,32]{2,1,0} parameter(1)
  %fusion.1 = bf16[1,4096,4096]{2,1,0} fusion(%z, %w), kind=kLoop, calls=%fused
  %dynamic-update-slice.2 = bf16[1,4096,4096]{2,1,0} dynamic-update-slice(%z, %w)
  %fusion.2 = bf16[1,4096,4096]{2,1,0} fusion(%z), kind=kOutput, calls=%products
  ROOT %all-reduce.1 = (bf16[1,4096,4096]{2,1,0}, bf16[1,4096,4096]{2,1,0}, bf16[1,4096,4096]{2,1,0}, bf16[1,4096,4096]{2,1,0}) all-reduce(%fusion.1, %dynamic-update-slice.2, %fusion.2, %z), channel_id=1, replica_groups=[1,128]<=[128], use_global_device_ids=true, to_apply=%add
}
"""  # noqa: E501


def test_what_goes_to_other_slices_is_counted():
  """Fault seen: the number beside what is sent taken for it."""
  sizes = {'slice': 2, 'data': 2, 'fsdp': 64, 'tensor': 1}
  (row,) = collectives.collectives(hlo.Program(SLICES), sizes)
  assert row['kind'] == 'all-reduce' and row['axes'] == ('slice',)
  assert row['asynchronous'] and row['group'] == 2 and row['count'] == 1
  assert row['wire_bytes'] == 2 * 128 * 8 * 128


def test_sums_of_zeros_but_for_a_part_are_recognised():
  """Two of four operands; not a product, nor what is given."""
  sizes = {'slice': 1, 'data': 1, 'fsdp': 128, 'tensor': 1}
  (row,) = collectives.collectives(hlo.Program(PADDED), sizes)
  assert row['padded'] == row['wire_bytes'] / 2 > 1e8
