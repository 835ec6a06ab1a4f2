"""`atm plan`: what it says of simulated devices is so; TPUs where libtpu is."""

import functools
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

import gin
from atm.cli import commands, gin_config
from atm.data import counter_rng, objectives, packing, registry
from atm.model import config as config_lib
from atm.model import flops as flops_lib
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding, xla_options
from atm.parallel.sharding import Rules
from atm.plan import hardware, memory, step_time, train_plan
from atm.train import optimizer, step

from conftest import batch, tiny

B, S, T = 16, 20, 12
LENGTHS = {'inputs': S, 'targets': T}
FSDP = functools.partial(mesh_lib.make_mesh, data=2, fsdp=4)
CUBE = functools.partial(mesh_lib.make_mesh, data=2, fsdp=2, tensor=2)
TX = optimizer.Config(learning_rate=1e-3)


def made(make_mesh=FSDP, **changes):
  silent = lambda text: None
  changes = {'model_config': tiny(), 'say': silent, **changes}
  return train_plan.plan(
    LENGTHS, B, 10, optimizer_config=TX, make_mesh=make_mesh, packed=False,
    **changes,
  )  # fmt: skip


@pytest.fixture(scope='module')
def planned():
  return made()


@pytest.fixture(scope='module')
def real():
  """(state, batch, compiled step) of real arrays, as training has them."""
  mesh, net, tx = FSDP(), AlexaTM(tiny()), optimizer.make(TX)
  abstract = step.abstract_state(net, tx, mesh, Rules())
  state = step.init_state(net, tx, 0, abstract)
  placed = sharding.shard_batch(
    batch(np.random.default_rng(0), B, S, T), mesh, Rules()
  )
  with sharding.use_mesh(mesh, Rules()):
    update = functools.partial(step.train_step, net, tx)
    lowered = xla_options.jit_update(update, state).lower(state, placed)
    return state, placed, xla_options.compile_program(lowered, jax.devices()[0])


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


def test_bytes_are_those_of_the_real_shards(planned, real):
  """Faults seen: whole arrays counted; the optimizer's step left out."""
  state, placed, _ = real
  said = planned['memory']
  assert said['parameters'] == on_device(state.params)
  assert said['optimizer'] == on_device((state.step, state.opt_state))
  assert said['batch'] == on_device(placed)
  whole = sum(x.nbytes for x in jax.tree.leaves(state))
  assert planned['checkpoint_bytes'] == whole
  count = sum(x.size for x in jax.tree.leaves(state.params))
  assert planned['params'] == count


def test_temporaries_are_those_of_the_real_program(planned, real):
  """Fault seen: planned for packed rows, which have positions."""
  analysis, said = real[2].memory_analysis(), planned['memory']
  assert said['heap'] == analysis.temp_size_in_bytes
  assert said['peak'] == analysis.peak_memory_in_bytes
  given = said['parameters'] + said['optimizer'] + said['batch']
  assert given == analysis.argument_size_in_bytes
  assert said['temporaries'] == said['peak'] - given


def test_flops_are_those_of_a_count_by_hand(planned):
  """2 M N P of every product; the backward pass has two for each.

  Faults seen: the loop over layers counted once; a shard's products for all.
  """
  c = tiny()
  D, F, G, V = c.d_model, c.encoder_ff, c.decoder_ff, c.vocab_size
  encoder = S * (4 * D * D + 2 * D * F) + 2 * S * S * D
  own = T * 4 * D * D + 2 * T * T * D
  cross = T * 2 * D * D + S * 2 * D * D + 2 * T * S * D
  decoder = own + cross + T * 2 * D * G
  forward = 2 * encoder + 3 * decoder + T * D * V
  by_hand = 3 * 2 * B * forward
  assert planned['model_flops'] == by_hand
  assert planned['flops_counted'] == by_hand
  assert planned['hardware_flops'] == by_hand  # remat is 'none'


def test_remat_is_of_the_hardware_not_of_the_model():
  """Fault seen: what remat computes again counted as the model's."""
  net, tx = AlexaTM(tiny(remat='full')), optimizer.make(TX)
  state = step.abstract_state(net, tx, FSDP(), Rules())
  like = train_plan.abstract_batch(
    B, registry.Lengths(S, T), FSDP(), Rules(), False
  )
  flops = flops_lib.train_flops(tiny(), B, S, T)
  for update in (
    step.train_step, functools.partial(step.train_step, micro_batches=2)
  ):  # fmt: skip
    assert (
      train_plan.counted_flops(update, net.config, tx, state, like) == flops
    )
    with sharding.use_mesh(FSDP(), Rules()):
      run = functools.partial(update, net, tx)
      traced = jax.make_jaxpr(run)(state, like)
    found = train_plan.hardware_flops(traced.jaxpr)
    assert 1.2 < found['hardware_flops'] / flops < 4 / 3
    assert found['kernel_flops'] == 0


def test_splash_kernels_are_counted():
  """Forward of two products, backward as one kernel of five.

  Fault seen: one turn of the grid counted.
  """
  import jax.numpy as jnp

  from atm.model.attention import AttentionMask, splash_attention

  b, L, H, K = 2, 2048, 3, 128  # two blocks each way
  x = jnp.zeros((b, L, H, K))
  ids = jnp.ones((b, L), jnp.int32)
  out = lambda *qkv: splash_attention(*qkv, AttentionMask(ids, ids)).sum()
  one = 2 * b * H * L * L * K
  count = lambda f: flops_lib.jaxpr_flops(jax.make_jaxpr(f)(x, x, x).jaxpr)
  assert count(out) == 2 * one
  gradient = jax.grad(out, argnums=(0, 1, 2))
  rows = 2 * b * H * L * K  # of out and its slope, beside the kernels
  assert count(gradient) == (2 + 5) * one + rows
  traced = jax.make_jaxpr(gradient)(x, x, x).jaxpr
  assert flops_lib.jaxpr_flops(traced, kernels=False) == rows


def test_collectives_are_those_of_the_compiled_program(planned, real):
  """Counted again by lines of the text, loops by their length.

  Fault seen: a loop's collectives counted once.
  """
  text = real[2].as_text()
  said = planned['collectives']
  by_kind = {}
  for row in said:
    by_kind[row['kind']] = by_kind.get(row['kind'], 0) + row['count']
  inside = within_loops(text)
  for kind in by_kind:
    lines = [line for line in text.splitlines() if f' {kind}(' in line]
    assert by_kind[kind] == sum(inside(line) for line in lines), kind
  assert {'all-gather', 'all-reduce'} <= by_kind.keys()
  axes = {axis for row in said for axis in row['axes']}
  assert axes == {'data', 'fsdp'}  # tensor and slice are 1


def within_loops(text: str):
  """line -> how often it runs, by the loop that JAX's name of it names.

  The tiny model's encoder has two layers, its decoder three, and nothing else
  loops over collectives.
  """

  def times(line):
    name = line.partition('op_name="')[2].partition('"')[0]
    if 'while/body' not in name:
      return 1
    return 3 if '/decoder/' in name else 2

  return times


def test_a_batch_is_that_of_the_data():
  """Names, shapes and dtypes of an objective's rows, and its number, as
  `batches.make_examples` gives it. Fault seen: weights as integers."""
  tokens = np.arange(3, 3 + 4 * 20, dtype=np.int32).reshape(4, 20)
  length, ids = np.full(4, 20), packing.SpecialIds(0, 1, 2, 90, 91)
  keys = counter_rng.make_key(
    0, np.zeros(4, np.int64), np.zeros(4, int), np.arange(4)
  )
  rows = objectives.Denoise().examples(tokens, length, keys, ids, 32, 24)
  found = {k: (v.shape, v.dtype) for k, v in rows.items()}
  found['objective'] = (4,), np.int32
  sizes = registry.Lengths(32, 24)
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  like = train_plan.abstract_batch(4, sizes, mesh, Rules(), packed=True)
  assert found == {k: (v.shape, v.dtype) for k, v in like.items()}
  alone = train_plan.abstract_batch(4, sizes, mesh, Rules(), packed=False)
  assert like.keys() - alone.keys() == {
    'encoder_positions',
    'decoder_positions',
  }


# --- What it says


def test_a_plan_is_written_and_printed(tmp_path):
  lines = []
  said = made(model_dir=str(tmp_path), say=lines.append)
  with open(tmp_path / train_plan.PLAN_FILE) as f:
    kept = json.load(f)
  assert kept == json.loads(json.dumps(said))
  assert {
    'fits', 'params', 'peak_hbm_gib', 'usable_hbm_gib', 'model_flops',
    'hardware_flops', 'collectives', 'step_time_range_s', 'mfu_range',
    'warnings',
  } <= kept.keys()  # fmt: skip
  assert 'all-gather' in lines[1] and 'step time: not known' in lines[1]
  assert kept['fits'] is None and kept['step_time_range_s'] is None


def test_the_command_plans_the_run_that_is_bound(configured, monkeypatch):
  """Faults seen: the pods file's own start joins hosts; slices forgotten."""
  asked = []

  def devices(pod):
    asked.append(pod)
    raise ValueError('enough')

  monkeypatch.setattr(hardware, 'devices', devices)
  for name, size in (('v5p_4x4x8', 128), ('v5p_4x4x8_x2', 256)):
    configured('models/20b.gin', f'pods/{name}.gin')
    with pytest.raises(ValueError, match='enough'):
      commands.execute('plan')
    assert asked[-1].size == size
    gin.clear_config()


def test_a_search_is_of_training(configured):
  """Fault seen: SEARCH of decoding ignored."""
  for name, value in (('SEARCH', True), ('PODS', "('v5e_2x4',)")):
    bindings = ["PROGRAM = 'decode'", f'{name} = {value}']
    configured('models/20b.gin', 'pods/v5e_2x4.gin', bindings=bindings)
    with pytest.raises(gin_config.UserError, match=f"{name} is for .*'decode'"):
      commands.execute('plan')
    gin.clear_config()


def test_the_command_plans_for_simulated_devices(configured, monkeypatch):
  seen = {}
  monkeypatch.setattr(
    train_plan, 'aim', lambda *given: seen.update(aim=given) or 1 / 0
  )
  configured('models/tiny.gin', 'pods/cpu8.gin')
  with pytest.raises(ZeroDivisionError):
    commands.execute('plan')
  topology, make_mesh, start = seen['aim']
  start()
  shape = dict(make_mesh(devices=jax.devices()).shape)
  assert topology is None
  assert shape == dict(slice=1, data=2, fsdp=2, tensor=2)


def test_a_plan_needs_no_tensorflow():
  code = (
    'import sys; from atm.cli import gin_config as g; '
    'files = "runs/plan.gin", "models/20b.gin", "pods/v5p_4x4x8.gin"; '
    'g.configure([g.find_file(f) for f in files], [], set()); '
    'print([m for m in ("tensorflow", "seqio", "libtpu") if m in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'


POD = hardware.pod('v5p:4x4x8')
SPLIT = {
  'compute': (4.0, 4.0),
  'kernels': (0.5, 1.0),
  'synchronous collectives': (0.25, 1.0),
  'asynchronous collectives': (2.0, 6.0),
}


def test_a_step_takes_from_all_hidden_to_none_hidden():
  """Faults seen: synchronous collectives hidden; asynchronous ones lost where
  they take longer than all else."""
  assert step_time.step_time(SPLIT) == (4.75, 12.0)
  longer = {**SPLIT, 'asynchronous collectives': (5.0, 6.0)}
  assert step_time.step_time(longer) == (5.0, 12.0)
  offloaded = {**SPLIT, 'host copies': (0.125, 3.0)}
  assert step_time.step_time(offloaded) == (4.875, 15.0)


def test_kernels_of_a_quick_plan_are_not_scheduled(monkeypatch):
  """Fault seen: ten seconds of each quick plan went into schedules."""
  asked = []
  found = lambda program, pod: asked.append(pod) or {}
  monkeypatch.setattr(train_plan.kernels, 'cycles', found)
  target = hardware.Target(FSDP(), POD)
  line = '  %x = f32[8]{0} fusion(%a), calls=%f'
  for more, times in (
    ('', 0), (', backend_config={"estimated_cycles":"7"}', 1)
  ):  # fmt: skip
    text = 'ENTRY %main (a: f32[8]) -> f32[8] {\n' + line + more + '\n}'
    train_plan.estimates(text, target, {'kernel_flops': 0.0})
    assert len(asked) == times


def test_sums_of_gradients_that_could_be_scattered_are_named():
  row = dict(
    kind='all-reduce', axes=('fsdp',), group=4, count=3, wire_bytes=3e9,
    asynchronous=False, source='atm/x.py:1',
  )  # fmt: skip
  (said,) = train_plan.of_reductions([row], mesh_lib.make_mesh(data=1, fsdp=8))
  assert '3.0 GB' in said and 'atm/x.py:1' in said and 'mesh.data' in said
  (said,) = train_plan.of_reductions([{**row, 'padded': 2.99e9}], FSDP())
  assert 'gathers over fsdp' in said and '3.0 GB' in said
  for other in (
    {'kind': 'reduce-scatter'}, {'axes': ('data',)}, {'wire_bytes': 1e6}
  ):  # fmt: skip
    assert not train_plan.of_reductions([{**row, **other}], FSDP())


def test_a_matrix_that_is_whole_everywhere_is_named():
  """Fault seen: small vectors named too."""
  config = tiny(vocab_size=2**19 + 8, d_model=64)
  tx = optimizer.make(TX)
  state = lambda rules: step.abstract_state(AlexaTM(config), tx, FSDP(), rules)
  said = train_plan.of_copies(state(Rules(embed=None)), FSDP())
  assert len(said) == 3 and any('lm_head' in line for line in said)
  assert not train_plan.of_copies(state(Rules()), FSDP())


def test_padding_of_kernels_is_named():
  lengths = registry.Lengths(1024, 130)
  said = train_plan.of_padding(tiny(attention='splash'), lengths, 'cpu')
  assert ['targets of 130 up to 256' in line for line in said] == [True, False]
  assert 'a head of 8 up to 128: 94%' in said[1]
  big = config_lib.Config()
  assert not train_plan.of_padding(big, registry.Lengths(1024, 1024), 'tpu')


# --- A program that does not fit

REFUSED = (
  'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for '
  'HLO temporaries (19.19G) exceeds available HBM (15.75G).'
)


def test_what_does_not_fit_is_read_off_the_message():
  found = memory.overflow(REFUSED)
  assert found['used'] == 19.19 * 2**30
  assert found['usable'] == 15.75 * 2**30
  assert not found['largest']
  assert memory.overflow('INTERNAL: something else') is None


def refuse(monkeypatch, said):
  def fails(*_):
    raise jax.errors.JaxRuntimeError(said)

  monkeypatch.setattr(xla_options, 'compile_program', fails)


def test_what_does_not_fit_gets_changes_that_would(monkeypatch):
  """Fault seen: the compiler's error raised."""
  refuse(monkeypatch, REFUSED)
  lines = []
  said = train_plan.plan(
    LENGTHS, B, 10, tiny(), TX, make_mesh=FSDP, say=lines.append
  )
  assert said['fits'] is False and said['step_time_range_s'] is None
  assert len(said['changes']) == 3
  assert 'does not fit' in lines[1] and 'RESOURCE' not in lines[1]
  assert 'MICRO_BATCHES = 2' in lines[1] and "remat = 'full'" in lines[1]


def test_loops_say_what_they_keep_where_the_compiler_does_not(monkeypatch):
  """Every layer's input, and its norms' mean and spread, of this shard's rows.

  Fault seen: of all rows.
  """
  refuse(monkeypatch, REFUSED)
  said = made(model_config=tiny(remat='full'))['largest_buffers']
  width, rows = tiny().d_model, B // 8
  assert {row['shape']: row['bytes'] for row in said} == {
    f'float32[3,{rows},{T},{width}]': 4 * 3 * rows * T * width,
    f'float32[2,{rows},{S},{width}]': 4 * 2 * rows * S * width,
    f'float32[3,{rows},{T}]': 3 * 2 * 4 * 3 * rows * T,
    f'float32[2,{rows},{S}]': 2 * 2 * 4 * 2 * rows * S,
  }
  assert all(row['source'].startswith('atm/') for row in said)
  config = tiny(remat='offload_widened')
  assert made(model_config=config)['largest_buffers'] == said


def test_another_failure_of_the_compiler_is_not_hidden(monkeypatch):
  refuse(monkeypatch, 'INTERNAL: a bug')
  with pytest.raises(jax.errors.JaxRuntimeError, match='a bug'):
    made()


# --- Pods


def test_every_pods_file_names_its_topology():
  for name in gin_config.shipped_files():
    if name.startswith('pods/v'):
      with open(gin_config.find_file(name)) as f:
        text = f.read()
      (line,) = [x for x in text.splitlines() if x.startswith('TOPOLOGY')]
      pod = hardware.pod(line.split("'")[1])
      many = f'_x{pod.slices}' if pod.slices > 1 else ''
      shape = 'x'.join(map(str, pod.shape))
      assert name == f'pods/{pod.kind}_{shape}{many}.gin'
      assert f': {pod.size} chips' in text
      assert f'{pod.chip.usable / 2**30:.2f} GiB a chip' in text


@pytest.mark.parametrize(
  'name, expected',
  [
    ('v5p-128', "'v5p:4x4x8'"),
    ('v5q:4x4x8', "Did you mean 'v5p:4x4x8'"),
    ('v5p:4x4x7', "nearest in size: 'v5p:4x4x8'"),
    ('v5e:4x4x4', "nearest in size: 'v5e:8x8'"),
    ('0 * v5e:4x4', 'TOPOLOGY'),
  ],
)
def test_an_impossible_pod_is_refused(name, expected):
  with pytest.raises(ValueError, match=expected) as e:
    hardware.pod(name)
  assert '\n' not in str(e.value)


def test_links_of_the_sides_that_a_group_spans():
  """Fault seen: a line's two links taken for a ring's."""
  link = POD.chip.link
  row = [(0, 0, z) for z in range(8)]
  assert POD.speeds(row) == (2 * link, 2 * link)
  plane = [(0, y, z) for y in range(4) for z in range(8)]
  assert POD.speeds(plane) == (2 * link, 4 * link)
  flat = hardware.pod('v5e:8x8')
  assert flat.speeds([(x, 0) for x in range(8)]) == (4.5e10, 4.5e10)
  assert flat.speeds([(3, 3)]) == (4.5e10, 4.5e10)


def test_a_missing_libtpu_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(ValueError, match=r"pip install 'atm\[plan\]'") as e:
    made(topology='v5p:4x4x8')
  assert '\n' not in str(e.value)


def test_skew_of_versions(monkeypatch):
  import importlib.metadata as found

  need = ['libtpu==0.0.42.*; extra == "tpu"', 'numpy']
  monkeypatch.setattr(found, 'requires', lambda name: need)
  for version, wrong in (('0.0.42.1', False), ('0.0.5', True)):
    monkeypatch.setattr(found, 'version', lambda name, v=version: v)
    assert bool(hardware.version_skew()) == wrong


# --- With libtpu


@pytest.mark.libtpu
def test_a_mesh_that_does_not_divide_is_one_line():
  make = functools.partial(mesh_lib.make_mesh, data=3, fsdp=2)
  with pytest.raises(ValueError, match='does not fit 8 devices'):
    made(make, topology='v5e:2x4')


@pytest.mark.libtpu
def test_a_step_is_planned_for_a_tpu(tmp_path):
  """A small model on a host of eight chips."""
  config = tiny(d_model=128, vocab_size=256, dtype='bfloat16', positions=128)
  lines = []
  said = train_plan.plan(
    {'inputs': 128, 'targets': 128}, 64, 1000, config, TX,
    make_mesh=functools.partial(mesh_lib.make_mesh, data=2, fsdp=4),
    topology='v5e:2x4', model_dir=str(tmp_path), say=lines.append,
  )  # fmt: skip
  assert said['fits'] and said['usable_hbm_gib'] == 15.75
  assert said['flops_counted'] == said['model_flops']
  assert said['kernel_flops'] > 0 and not said['unknown_loops']
  least, most = said['step_time_range_s']
  assert 0 < least < most
  low, high = said['mfu_range']
  assert 0 < low < high < said['mfu_ceiling'] <= 1
  gathers = [r for r in said['collectives'] if r['kind'] == 'all-gather']
  assert gathers and all(r['axes'] for r in gathers)
  assert said['cycles']['matrix products'] > 0 < said['cycles']['kernels']
  assert math.isclose(said['days_range'][0], least * 1000 / 86400)
  assert 'v5e:2x4' in lines[0]
  assert any('up to 128' in line for line in said['warnings'])  # heads of 32
