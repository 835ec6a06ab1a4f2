"""One token: its cache, what it reads, and its time."""

import jax
import jax.numpy as jnp
import pytest

from atm.inference import bucketing
from atm.plan import decode_step_time, hlo, plan_warnings

from conftest import FUSED_AS_USERS
from plan_runs import (
  BEAMS,
  GREEDY,
  TARGETS,
  Line,
  job_of,
  on_device,
  tiny,
  zeros_model,
)


@pytest.fixture(scope='module')
def loaded():
  """A model of zeros."""
  return zeros_model()


@pytest.fixture(scope='module')
def programs():
  """Compiled text of decoding by greedy choice and by beams, and caches."""

  def of(config):
    job = job_of(config)
    batch = job.batch(8)
    text = job.trace(batch).lower().compile(FUSED_AS_USERS).as_text()
    return hlo.parse(text), job.caches(batch), job

  return {'greedy': of(GREEDY), 'beams': of(BEAMS)}


def test_the_loop_over_tokens_is_of_unknown_length(programs):
  """One turn has each layer once; the rest nothing of it.

  Fault seen: the rest counts the loop.
  """
  program, _, _ = programs['greedy']
  loop = decode_step_time.token_loop(program)
  assert program.unknown_loops == [loop.name]
  turn, rest = program.one_iteration(loop), program.without_loop(loop)
  assert not turn.unknown_loops
  body = dict(loop.called)['body']
  assert turn.run_counts[body] == 1 and body not in rest.run_counts
  reduce = [
    line
    for line, _, n in turn.executed()
    if line.opcode == 'all-reduce' and 'decode_cached' in line.op_name
  ]
  assert len(reduce) >= 3 * tiny().decoder_layers
  assert any('encode' in line.op_name for line, _, _ in rest.executed())
  assert not any('while/body/Alexa' in x.op_name for x, _, _ in rest.executed())


def test_a_cache_is_written_in_place_or_said_to_be_copied(programs):
  """Beams change places, their cache does not; nor is it B x k rows.

  Faults seen: writing in place taken for a copy; the cache moved with beams.
  """
  for name, (program, caches, job) in programs.items():
    figures = decode_step_time.estimate_token(
      program, job.params, caches, job.net.config, job.target
    )
    assert figures['cache_copies'] == [], name
    assert figures['read_bytes']['copies'] == 0
    written = BEAMS.beams if name == 'beams' else 1
    # The start token's, and those of all tokens but the last.
    slots = 1 + written * (bucketing.next_power_of_two(TARGETS) - 1)
    assert {x.self_values.shape[2] for x in caches} == {slots}
    assert {len(x.self_values) for x in caches} == {8}


def test_a_loop_that_rolls_its_cache_copies_it():
  like = jax.ShapeDtypeStruct(
    (4, 2, 64, 8), jnp.float32,
    sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
  )  # fmt: skip

  def decoding(write):
    body = lambda x: (write(*x), x[1] + 1)
    run = lambda x: jax.lax.while_loop(lambda x: x[0].sum() < x[1], body, x)
    lowered = jax.jit(run).lower((like, 0))
    program = hlo.parse(lowered.compile(FUSED_AS_USERS).as_text())
    turn = program.one_iteration(decode_step_time.token_loop(program))
    return decode_step_time.list_cache_copies(turn, [like])

  put = lambda x, i: x.at[:, :, i].set(1.0)
  assert not decoding(put)
  copies = decoding(lambda x, i: jnp.roll(put(x, i), 1, axis=2))
  assert copies
  held = {'cache': 2**20, 'temporaries': 0}
  token = {'cache_copies': copies, 'copies_once': []}
  (said,) = plan_warnings.cache_warnings(token, held)
  assert said.startswith('cache copied for every token: ')


TPU_LINES = """HloModule m

%body (p: (bf16[4,2,64,8])) -> (bf16[4,2,64,8]) {
  %p = (bf16[4,2,64,8]{3,1,2,0:T(4,128)(2,1)}) parameter(0)
  %scatter_fusion = bf16[4,2,64,8]{3,1,2,0:T(4,128)(2,1)} fusion(%p), kind=kCustom, calls=%f, backend_config={"aliasing_operands":{"lists":[{"indices":["0","3"]}]}}
  %slice-start.1 = ((bf16[4,2,64,8]{3,2,1,0}), bf16[4,2,64,8]{3,2,1,0:T(8,128)(2,1)INPUTS(1)}, s32[]{:INPUTS(2)}) slice-start(%scatter_fusion), slice={[0:4]}
  %slice-done.1 = bf16[4,2,64,8]{3,2,1,0:T(8,128)(2,1)INPUTS(1)} slice-done(%slice-start.1)
  %custom-call.1 = bf16[4,2,64,8]{3,2,1,0:T(8,128)(2,1)INPUTS(1)} custom-call(%slice-done.1), custom_call_target="ConcatBitcast", backend_config={"aliasing_operands":{"lists":[]}}
  %flat = bf16[512,8]{1,0:T(8,128)(2,1)} reshape(%custom-call.1)
  %merged = bf16[4,2,64,8]{3,1,2,0:T(4,128)(2,1)} fusion(%custom-call.1), kind=kLoop, calls=%f, backend_config={"aliasing_operands":{"lists":[]}}
  ROOT %out = (bf16[4,2,64,8]{3,1,2,0:T(4,128)(2,1)}) tuple(%merged)
}

%condition (p.1: (bf16[4,2,64,8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(7)
  %p.1 = (bf16[4,2,64,8]{3,1,2,0:T(4,128)(2,1)}) parameter(0)
  ROOT %not.1 = pred[]{:T(512)} not(%p.1)
}

ENTRY %main (arg: (bf16[4,2,64,8])) -> (bf16[4,2,64,8]) {
  %arg = (bf16[4,2,64,8]{3,1,2,0:T(4,128)(2,1)}) parameter(0)
  ROOT %while.1 = (bf16[4,2,64,8]{3,1,2,0:T(4,128)(2,1)}) while(%arg), condition=%condition, body=%body
}
"""  # noqa: E501


def test_copies_among_lines_of_a_tpu():
  """What lies in place, and what is fetched to vector memory, is none.

  Faults seen: a constant that nothing is compared with taken for the loop's
  length; fetching taken for a copy; an array of other sides for none.
  """
  program = hlo.parse(TPU_LINES)
  like = jax.ShapeDtypeStruct(
    (4, 2, 64, 8), jnp.bfloat16,
    sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
  )  # fmt: skip
  turn = program.one_iteration(decode_step_time.token_loop(program))
  rows = decode_step_time.list_cache_copies(turn, [like])
  assert {row['opcode'] for row in rows} == {'fusion', 'reshape'}
  for row in rows:
    assert row['count'] == 1 and row['bytes'] == 2 * 4 * 2 * 64 * 8


def test_a_token_takes_from_all_beside_to_one_by_one():
  """Faults seen: collectives hidden; a ring gone around once."""
  chip, target = Line.pod.chip, Line()
  row = dict(axes=('tensor',), count=10, wire_bytes=4.5e7)
  read = {'weights': chip.hbm * 0.004, 'cache': chip.hbm * 0.003}
  cycles = {'matrix products': chip.clock * 0.005, 'unknown': 3}
  split = decode_step_time.split_token_time([row], cycles, read, target)
  assert decode_step_time.count_hops(target, ('tensor',)) == (4, 14)
  assert split['latency of collectives'] == pytest.approx((40e-6, 140e-6))
  assert split['reading HBM'] == pytest.approx((0.007, 0.01))
  least, most = decode_step_time.token_time(split)
  around = 4.5e7 / chip.link
  assert most == pytest.approx(0.01 + 0.005 + 140e-6 + around)
  fast = 4.5e7 / Line.pod.link_speeds(target.coordinates(()))[1]
  assert least == pytest.approx(0.007 + 40e-6 + fast)


def test_weights_read_for_a_token(loaded):
  """The decoder's layers, its last norm and the head. Fault seen: all."""
  job = job_of(GREEDY)
  read = decode_step_time.count_bytes_read(job.params, [], job.net.config)
  real = loaded.params
  assert read['weights'] == on_device([real['decoder'], real['lm_head']])
