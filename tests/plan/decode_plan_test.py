"""`atm plan` of decoding and encoding: the programs that `atm infer` runs."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.cli import commands
from atm.inference import api, bucketing, generate, sampling
from atm.model import parameters, transformer
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.plan import (
  decode_plan,
  decode_programs,
  decode_step,
  hardware,
  hlo,
  train_plan,
)

from conftest import FUSED_AS_USERS
from conftest import tiny as of_several_layers

S, T = 16, 9
LENGTHS = {'inputs': S, 'targets': T}
MESH = functools.partial(mesh_lib.make_mesh, data=2, tensor=4)
GREEDY = sampling.Config(max_tokens=T)
SAMPLED = sampling.Config(max_tokens=T, temperature=0.7, results=2)
BEAMS = sampling.Config(max_tokens=T, beams=3, results=2)
silent = lambda text: None
tiny = functools.partial(of_several_layers, encoder_layers=1, decoder_layers=2)


def planned(**changes):
  given = dict(
    lengths=LENGTHS, model_config=tiny(), make_mesh=MESH, batch_size=8,
    say=silent,
  )  # fmt: skip
  return decode_plan.plan_rows(**{**given, **changes})


@pytest.fixture(scope='module')
def loaded():
  """A model of zeros as `api.load` has it, on two by four devices."""
  abstract = parameters.abstract_params(
    transformer.AlexaTM(tiny()), MESH(), Rules()
  )
  zeros = lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
  params = jax.tree.map(zeros, abstract)
  return api.Model(tiny(), params, None, MESH(), Rules(), 0)


def halved(loaded):
  """In bfloat16; the fixture's own parameters stay."""
  params = jax.tree.map(lambda x: x + 0, loaded.params)
  return api.cast_to_bfloat16(dataclasses.replace(loaded, params=params))


def run_of(loaded, config, monkeypatch, rows: int = 8):
  """(function, arguments, named ones) that decoding a batch would call."""
  seen = []

  def call(*given, real=bucketing.select_program):
    seen.append(real(*given))
    raise InterruptedError

  with monkeypatch.context() as patch, pytest.raises(InterruptedError):
    patch.setattr(bucketing, 'select_program', call)
    inputs = [[3 + i] * S for i in range(rows)]
    loaded.complete(inputs, config=config, batch_size=rows)
  return seen[0]


def on_device(tree, number: int = 3) -> int:
  """Bytes of the shards that one device really has."""
  device = jax.devices()[number]
  return sum(
    shard.data.nbytes
    for x in jax.tree.leaves(tree)
    for shard in x.addressable_shards
    if shard.device == device
  )


# --- Against what is there


def job_of(config, weights=None):
  net, params = decode_programs.abstract_model(tiny(), weights, MESH(), Rules())
  target = hardware.Target(MESH(), None)
  return decode_programs.Job('decode', net, params, config, S, Rules(), target)


@pytest.mark.parametrize(
  'config, weights',
  [(GREEDY, None), (SAMPLED, None), (BEAMS, 'bfloat16')],
)
def test_the_program_is_that_of_infer(loaded, monkeypatch, config, weights):
  """The same text.

  Faults seen: another room for tokens; rows on every device; activations in
  float32 beside weights in bfloat16.
  """
  real = halved(loaded) if weights else loaded
  run, given, named = run_of(real, config, monkeypatch)
  job = job_of(config, weights)
  with sharding.use_mesh(MESH(), Rules()):
    lowered = run.lower(*given, **named)
  planned_ = job.traced(job.batch(8)).lower()
  assert planned_.as_text() == lowered.as_text()


def test_temporaries_are_those_of_the_real_program(loaded, monkeypatch):
  run, given, named = run_of(loaded, GREEDY, monkeypatch)
  with sharding.use_mesh(MESH(), Rules()):
    analysis = run.lower(*given, **named).compile().memory_analysis()
  said = planned()['memory']
  assert said['heap'] == analysis.temp_size_in_bytes
  assert said['peak'] == analysis.peak_memory_in_bytes
  numbers = 64  # bytes of scalars, as how many tokens are asked for
  given = said['parameters'] + said['batch']
  assert 0 <= analysis.argument_size_in_bytes - given < numbers
  rest = said['peak'] - given - said['cache']
  assert said['temporaries'] == max(0, rest)


def test_bytes_are_those_of_the_real_shards(loaded, monkeypatch):
  """Faults seen: whole arrays counted; one result of each input."""
  _, (net, params, choice), named = run_of(loaded, SAMPLED, monkeypatch)
  with sharding.use_mesh(MESH(), Rules()):
    rows = generate.start_decoding(net, params, choice, **named)
  said = planned(config=SAMPLED)
  assert said['memory']['parameters'] == on_device(params)
  assert said['memory']['cache'] == on_device(rows.caches)
  row = sum(x.nbytes for x in jax.tree.leaves(rows.caches)) // 8
  assert said['cache_row_bytes'] == row
  assert said['cache_row_bytes_a_chip'] == row / 4  # of tensor
  given = ('tokens', 'segments', 'prefix', 'lengths', 'numbers')
  assert said['memory']['batch'] == on_device([named[k] for k in given])


def test_a_batch_of_any_size_is_one_that_infer_runs():
  """Fault seen: full batches filled up to a power of two."""
  source = functools.partial(bucketing.encoder_shape, tiny(), MESH(), 9)
  assert source(24, 24) == (24, 16)
  assert source(5, 24) == (8, 16) and source(17, 24) == (24, 16)
  assert source(1, 1) == (2, 16)  # two data shards
  assert bucketing.decoder_shape(tiny(), 1, 100) == (1, 64, 47)


def test_flops_of_the_encoder_are_those_of_a_count_by_hand():
  c = tiny()
  D, F, L = c.d_model, c.encoder_ff, c.encoder_layers
  by_hand = 2 * 5 * L * (S * (4 * D * D + 2 * D * F) + 2 * S * S * D)
  assert decode_programs.encode_flops(c, 5, S) == by_hand


def test_the_encoder_is_planned_alone():
  said = planned(program='encode')
  assert said['memory']['cache'] == 0 and said['token'] is None
  assert said['tokens_per_second_range'] is None
  assert not said['prefill']['unknown_loops']


# --- One token


@pytest.fixture(scope='module')
def programs():
  """Compiled text of decoding by greedy choice and by beams, and caches."""

  def of(config):
    job = job_of(config)
    batch = job.batch(8)
    text = job.traced(batch).lower().compile(FUSED_AS_USERS).as_text()
    return hlo.Program(text), job.caches(batch), job

  return {'greedy': of(GREEDY), 'beams': of(BEAMS)}


def test_the_loop_over_tokens_is_of_unknown_length(programs):
  """One turn has each layer once; the rest nothing of it.

  Fault seen: the rest counts the loop.
  """
  program, _, _ = programs['greedy']
  loop = decode_step.loop_of(program)
  assert program.unknown_loops == [loop.name]
  turn, rest = program.one_turn(loop), program.without(loop)
  assert not turn.unknown_loops
  body = dict(loop.called)['body']
  assert turn.times[body] == 1 and body not in rest.times
  reduce = [
    line
    for line, _, n in turn.running()
    if line.opcode == 'all-reduce' and 'decode_cached' in line.op_name
  ]
  assert len(reduce) >= 3 * tiny().decoder_layers
  assert any('encode' in line.op_name for line, _, _ in rest.running())
  assert not any('while/body/Alexa' in x.op_name for x, _, _ in rest.running())


def test_a_cache_is_written_in_place_or_said_to_be_copied(programs):
  """Beams change places, their cache does not; nor is it B x k rows.

  Faults seen: writing in place taken for a copy; the cache moved with beams.
  """
  for name, (program, caches, job) in programs.items():
    figures = decode_step.figures(
      program, job.params, caches, job.net.config, job.target
    )
    assert figures['cache_copies'] == [], name
    assert figures['read_bytes']['copies'] == 0
    written = BEAMS.beams if name == 'beams' else 1
    # The start token's, and those of all tokens but the last.
    slots = 1 + written * (bucketing.next_power_of_two(T) - 1)
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
    program = hlo.Program(lowered.compile(FUSED_AS_USERS).as_text())
    turn = program.one_turn(decode_step.loop_of(program))
    return decode_step.cache_copies(turn, [like])

  put = lambda x, i: x.at[:, :, i].set(1.0)
  assert not decoding(put)
  copies = decoding(lambda x, i: jnp.roll(put(x, i), 1, axis=2))
  assert copies
  held = {'cache': 2**20, 'temporaries': 0}
  token = {'cache_copies': copies, 'copies_once': []}
  (said,) = decode_plan.of_copies(token, {'memory': held})
  assert said.startswith('cache copied for every token: ')


TPU_LINES = """HloModule m

%body (p: (bf16[4,2,64,8])) -> (bf16[4,2,64,8]) {
  %p = (bf16[4,2,64,8]{3,1,2,0:T(4,128)(2,1)}) parameter(0)
  %scatter_fusion = bf16[4,2,64,8]{3,1,2,0:T(4,128)(2,1)} fusion(%p), kind=kCustom, calls=%f, backend_config={"aliasing_operands":{"lists":[{"indices":["0","3"]}]}}
  %slice-start.1 = ((bf16[4,2,64,8]{3,2,1,0}), bf16[4,2,64,8]{3,2,1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%scatter_fusion), slice={[0:4]}
  %slice-done.1 = bf16[4,2,64,8]{3,2,1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start.1)
  %custom-call.1 = bf16[4,2,64,8]{3,2,1,0:T(8,128)(2,1)S(1)} custom-call(%slice-done.1), custom_call_target="ConcatBitcast", backend_config={"aliasing_operands":{"lists":[]}}
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
  program = hlo.Program(TPU_LINES)
  like = jax.ShapeDtypeStruct(
    (4, 2, 64, 8), jnp.bfloat16,
    sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
  )  # fmt: skip
  turn = program.one_turn(decode_step.loop_of(program))
  rows = decode_step.cache_copies(turn, [like])
  assert {row['opcode'] for row in rows} == {'fusion', 'reshape'}
  for row in rows:
    assert row['count'] == 1 and row['bytes'] == 2 * 4 * 2 * 64 * 8


class Line:
  """A target of eight chips in a row of a pod, tensor along it."""

  pod = hardware.pod('v5e:2x4')
  mesh = None

  def places(self, axes):
    return [(x, y) for x in range(2) for y in range(4)]


def test_a_token_takes_from_all_beside_to_one_by_one():
  """Faults seen: collectives hidden; a ring gone around once."""
  chip, target = Line.pod.chip, Line()
  row = dict(axes=('tensor',), count=10, wire_bytes=4.5e7)
  read = {'weights': chip.hbm * 0.004, 'cache': chip.hbm * 0.003}
  cycles = {'matrix products': chip.clock * 0.005, 'unknown': 3}
  split = decode_step.time_split([row], cycles, read, target)
  assert decode_step.hops(target, ('tensor',)) == (4, 14)
  assert split['latency of collectives'] == pytest.approx((40e-6, 140e-6))
  assert split['reading HBM'] == pytest.approx((0.007, 0.01))
  least, most = decode_step.step_time(split)
  around = 4.5e7 / chip.link
  assert most == pytest.approx(0.01 + 0.005 + 140e-6 + around)
  fast = 4.5e7 / Line.pod.speeds(target.places(()))[1]
  assert least == pytest.approx(0.007 + 40e-6 + fast)


def test_weights_read_for_a_token(loaded):
  """The decoder's layers, its last norm and the head. Fault seen: all."""
  net, params = decode_programs.abstract_model(tiny(), None, MESH(), Rules())
  read = decode_step.read_bytes(params, [], net.config)['weights']
  real = loaded.params
  assert read == on_device([real['decoder'], real['lm_head']])


# --- The largest batch


def searched(monkeypatch, peak, unit=1, more=0, reserved=0, usable=10_000):
  """(batches tried, the largest that fits) by memory that is made up.

  Compiled whole, a batch takes `more` than when its arrays are placed.
  """

  def rows_placed(job, rows, more=reserved, whole=False):
    used = peak(rows) + more
    return dict(
      batch_size=rows, fits=used <= usable, peak_hbm_gib=0.0,
      compile_seconds=0.0, memory={'peak': used, 'cache': 0},
      tokens_per_second_range=None, whole=whole,
    )  # fmt: skip

  whole = functools.partial(rows_placed, more=more, whole=True)
  monkeypatch.setattr(decode_plan.placed, 'RESERVED', reserved)
  monkeypatch.setattr(decode_programs, 'rows_planned', whole)
  monkeypatch.setattr(decode_plan, 'rows_placed', rows_placed)
  monkeypatch.setattr(decode_plan, 'first_guess', lambda job: 8)
  monkeypatch.setattr(decode_plan.memory, 'held', lambda tree: 1000)

  class Job:
    params = None
    target = Line()

  Job.unit = unit
  monkeypatch.setattr(
    Line, 'pod', dataclasses.make_dataclass('P', ['chip'])(
      dataclasses.make_dataclass('C', ['usable'])(usable)
    ),
  )  # fmt: skip
  rows, best = decode_plan.search(Job(), silent)
  return [row['batch_size'] for row in rows], best


@pytest.mark.parametrize(
  'peak, unit, best, compiles',
  [
    (lambda n: 1000 + 300 * n, 1, 30, 3),
    (lambda n: 1000 + 300 * n, 4, 28, 4),
    (lambda n: 2500 + 300 * n, 1, 25, 4),  # temporaries without rows
    (lambda n: 1000 + 300 * (-(-n // 4) * 4), 1, 28, 4),  # padded rows
    (lambda n: 1000 + 2000 * n, 1, 4, 5),
    (lambda n: 1000 + 10 * n, 1, 900, 3),  # to a 64th
  ],
)
def test_the_largest_batch_is_found(monkeypatch, peak, unit, best, compiles):
  """It fits, the next does not.

  Faults seen: the last tried is returned; the first that fits is.
  """
  sizes, found = searched(monkeypatch, peak, unit)
  assert found['batch_size'] == best and found['fits']
  assert len(sizes) <= compiles and sizes == sorted(sizes)
  assert any(best < n <= best * 65 / 64 + unit for n in sizes)


def test_a_batch_that_is_too_large_when_compiled_gives_way(monkeypatch):
  """Fault seen: it is told for the largest."""
  sizes, found = searched(monkeypatch, lambda n: 1000 + 300 * n, more=350)
  assert found['batch_size'] == 27 and found['fits']  # steps double
  assert 29 in sizes and 30 in sizes


def test_a_batch_that_is_refused_for_room_not_needed_is_tried(monkeypatch):
  """Whole, until one is refused. Fault seen: the placed one is believed."""
  line = lambda n: 1000 + 300 * n
  sizes, found = searched(monkeypatch, line, more=100, reserved=700)
  assert found['batch_size'] == 29 and found['whole']
  assert 30 in sizes  # refused whole


def test_where_no_batch_fits_the_smallest_is_told(monkeypatch):
  sizes, found = searched(monkeypatch, lambda n: 20_000 + n)
  assert found['batch_size'] == 1 and not found['fits']


def test_what_does_not_fit_gets_changes(monkeypatch):
  said = (
    'RESOURCE_EXHAUSTED: total memory required for HLO temporaries (19.19G) '
    'exceeds available HBM (15.75G).'
  )
  from atm.plan import memory

  found = memory.overflow(said)
  monkeypatch.setattr(
    decode_programs, 'compile_or_overflow', lambda x: (None, found)
  )
  lines = []
  made = planned(say=lines.append)
  assert made['fits'] is False and len(made['changes']) == 3
  assert 'does not fit' in lines[-1] and "WEIGHTS = 'bfloat16'" in lines[-1]


# --- What it says


def test_a_plan_is_written_and_printed(tmp_path):
  lines = []
  said = planned(model_dir=str(tmp_path), say=lines.append)
  with open(tmp_path / train_plan.PLAN_FILE) as f:
    kept = json.load(f)
  assert kept == json.loads(json.dumps(said))
  assert {'program', 'batches', 'memory', 'token', 'cache_row_bytes'} <= set(
    kept
  )
  assert not kept['prefill']['unknown_loops']
  assert kept['fits'] is None and kept['memory']['cache'] > 0
  assert 'the cache of an input' in lines[1] and 'all-reduce' in lines[1]


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'make_mesh': functools.partial(mesh_lib.make_mesh, data=2, fsdp=4)},
     'mesh.tensor=4 --gin.sharding.mesh.data=2'),
    ({'batch_size': None}, 'DECODE_BATCH_SIZE'),
    ({'batch_size': 3}, 'DECODE_BATCH_SIZE = 3 does not divide by 2'),
    ({'batch_size': 0}, 'DECODE_BATCH_SIZE = 0'),
    ({'program': 'decod'}, "Did you mean 'decode'"),
    ({'weights': 'bf16'}, 'WEIGHTS'),
    ({'make_mesh': functools.partial(mesh_lib.make_mesh, data=1, tensor=8)},
     'heads'),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as e:
    planned(**changes)
  assert '\n' not in str(e.value)


def test_the_command_plans_what_is_asked_for(configured, monkeypatch):
  """Fault seen: the step planned for every program."""
  seen = {}
  monkeypatch.setattr(
    decode_programs, 'rows_planned', lambda *x: seen.update(x=x) or 1 / 0
  )
  bindings = ["PROGRAM = 'decode'", 'DECODE_BATCH_SIZE = 6']
  bindings += ['sharding.mesh.fsdp = 1', 'sharding.mesh.tensor = 4']
  bindings += ["WEIGHTS = 'bfloat16'", 'choosing.Config.beams = 2']
  configured('models/tiny.gin', 'pods/cpu8.gin', bindings=bindings)
  with pytest.raises(ZeroDivisionError):
    commands.execute('plan')
  job, rows = seen['x']
  assert job.kind == 'decode' and rows == 6 and job.config.beams == 2
  assert job.config.max_tokens == 48 and job.net.config.dtype == 'bfloat16'


def test_an_unknown_program_is_named(configured):
  configured('models/tiny.gin', 'pods/cpu8.gin', bindings=["PROGRAM = 'encod'"])
  with pytest.raises(ValueError, match="Did you mean 'encode'"):
    commands.execute('plan')


# --- With libtpu


SMALL = dict(
  d_model=128, vocab_size=256, dtype='bfloat16', positions=128,
  encoder_layers=1, decoder_layers=1,
)  # fmt: skip


@pytest.mark.libtpu
@pytest.mark.parametrize('config', [sampling.Config(), BEAMS])
def test_decoding_is_planned_for_a_tpu(config):
  """Neither greedy choice nor beams copy a cache; all end with their rows."""
  said = planned(
    lengths={'inputs': 128, 'targets': 64}, model_config=tiny(**SMALL),
    config=config, topology='v5e:2x4',
  )  # fmt: skip
  token = said['token']
  assert said['fits'] and said['usable_hbm_gib'] == 15.75
  assert not token['unknown_loops'] and not said['prefill']['unknown_loops']
  assert not token['cache_copies']
  least, most = token['time_range_s']
  assert 0 < least < most
  low, high = said['tokens_per_second_range']
  assert low == pytest.approx(8 * config.results / most)
  assert token['cycles']['elementwise'] > 0
  assert {'tensor'} <= {
    axis for r in token['collectives'] for axis in r['axes']
  }
  assert np.prod([*said['mesh'].values()]) == 8


@pytest.mark.libtpu
def test_the_largest_batch_is_searched_for_a_tpu(monkeypatch):
  """The encoder alone, on chips of less memory than there are."""
  small = dataclasses.replace(hardware.CHIPS['v5e'], usable=64 * 2**20)
  monkeypatch.setitem(hardware.CHIPS, 'v5e', small)
  monkeypatch.setattr(decode_plan.placed, 'RESERVED', 8 * 2**20)
  said = planned(
    lengths={'inputs': 128, 'targets': 64}, model_config=tiny(**SMALL),
    program='encode', topology='v5e:2x4', batch_size=None,
  )  # fmt: skip
  sizes = {row['batch_size']: row['fits'] for row in said['batches']}
  assert said['fits'] and sizes[said['batch_size']]
  assert len(sizes) <= 8 and not sizes[max(sizes)]
  whole = [r['batch_size'] for r in said['batches'] if r['whole'] and r['fits']]
  assert said['batch_size'] == max(whole)
  assert 0 < said['mfu_range'][0] < said['mfu_range'][1] < 1
