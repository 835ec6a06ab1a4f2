"""Plans of training: what they say of simulated devices is so."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding, xla_options
from atm.parallel.sharding import Rules
from atm.plan import report, train_plan
from atm.train import optimizer, step

from conftest import batch, tiny
from plan_runs import ADAMW as TX
from plan_runs import FSDP, REFUSED, on_device

B, S, T = 16, 20, 12


LENGTHS = {'inputs': S, 'targets': T}


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
  mesh, net, tx = FSDP(), AlexaTM(tiny()), optimizer.make_optimizer(TX)
  abstract = step.abstract_state(net, tx, mesh, Rules())
  state = step.init_state(net, tx, 0, abstract)
  placed = sharding.shard_batch(
    batch(np.random.default_rng(0), B, S, T), mesh, Rules()
  )
  with sharding.use_mesh(mesh, Rules()):
    update = functools.partial(step.train_step, net, tx)
    lowered = xla_options.jit_update(update, state).lower(state, placed)
    return state, placed, xla_options.compile_program(lowered, jax.devices()[0])


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


def test_a_plan_is_written_and_printed(tmp_path):
  lines = []
  said = made(model_dir=str(tmp_path), say=lines.append)
  with open(tmp_path / report.PLAN_FILE) as f:
    kept = json.load(f)
  assert kept == json.loads(json.dumps(said))
  assert {
    'fits', 'params', 'peak_hbm_gib', 'usable_hbm_gib', 'model_flops',
    'hardware_flops', 'collectives', 'step_time_range_s', 'mfu_range',
    'warnings',
  } <= kept.keys()  # fmt: skip
  assert 'all-gather' in lines[1] and 'step time: not known' in lines[1]
  assert kept['fits'] is None and kept['step_time_range_s'] is None


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
