"""`atm plan`: what is planned, searched and tried on pods."""

import json
import subprocess
import sys

import jax
import pytest

import gin
from atm.cli import commands, gin_config
from atm.plan import command, decode_programs, hardware, search, workers

from plan_runs import MadeUpPlans, run, simulate_pod


@pytest.fixture
def planned(monkeypatch):
  """Plans are made up."""
  simulate_pod(monkeypatch)
  return MadeUpPlans(monkeypatch)


def test_the_command_plans_the_run_that_is_bound(configured, monkeypatch):
  """Faults seen: the pods file's own start joins hosts; slices forgotten."""
  asked = []

  def devices(pod):
    asked.append(pod)
    raise ValueError('enough')

  monkeypatch.setattr(hardware, 'pod_devices', devices)
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
    hardware, 'find_target', lambda *given: seen.update(found=given) or 1 / 0
  )
  configured('models/tiny.gin', 'pods/cpu8.gin')
  with pytest.raises(ZeroDivisionError):
    commands.execute('plan')
  topology, make_mesh, start = seen['found']
  start()
  shape = dict(make_mesh(devices=jax.devices()).shape)
  assert topology is None
  assert shape == dict(slice=1, data=2, fsdp=2, tensor=2)


def test_a_plan_needs_no_tensorflow():
  code = (
    'import sys; from atm.cli import gin_config, gin_files; '
    'files = "runs/plan.gin", "models/20b.gin", "pods/v5p_4x4x8.gin"; '
    'paths = [gin_files.find_file(f) for f in files]; '
    'gin_config.apply_config(paths, [], set()); '
    'print([m for m in ("tensorflow", "seqio", "libtpu") if m in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'


def test_the_command_plans_what_is_asked_for(configured, monkeypatch):
  """Fault seen: the step planned for every program."""
  seen = {}
  monkeypatch.setattr(
    decode_programs, 'plan_batch', lambda *x: seen.update(x=x) or 1 / 0
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


def test_a_plan_alone_is_a_plan():
  asked = []

  def run_plan(**given):
    asked.append(given)
    return given['instead'](run()) if 'instead' in given else 'a plan'

  assert command.run(run_plan, None) == 'a plan'
  assert [list(given) for given in asked] == [['instead'], ['tried']]


def test_pods_are_planned_each_with_its_own_mesh(
  configured, monkeypatch, capsys
):
  """Faults seen: all with the last one's mesh; the named file not read."""
  asked = {}

  def planned(plan, jobs, processes=None):
    for name, settings, fast in jobs:
      asked[name] = settings
      assert fast
      yield name, {'error': 'not today', 'seconds': 1.0}

  monkeypatch.setattr(workers, 'run_plans', planned)
  names = "('v4_4x4x4', 'pods/v5e_16x16.gin')"
  configured(
    'models/20b.gin', 'pods/v5p_8x8x8.gin', bindings=[f'PODS = {names}']
  )
  commands.execute('plan')
  assert list(asked) == ['v4_4x4x4', 'v5e_16x16']
  axes = lambda name: asked[name]['make_mesh'].keywords
  assert axes('v4_4x4x4') == dict(slice=1, data=1, fsdp=64, tensor=1)
  assert axes('v5e_16x16') == dict(slice=1, data=2, fsdp=128, tensor=1)
  assert [s['topology'] for s in asked.values()] == ['v4:4x4x4', 'v5e:16x16']
  assert [s['batch_size'] for s in asked.values()] == [1024, 2048]
  assert 'v5e_16x16: failed: not today' in capsys.readouterr().out


def test_pods_are_searched_each_in_its_folder(planned, tmp_path):
  lines = []
  given = {'v5e_2x4': run(), 'v6e_2x4': run(topology='v6e:2x4')}
  found = command.compare_pods(given, True, lines.append, str(tmp_path))
  assert [row['pod'] for row in found['rows']] == list(given)
  for name, row in zip(given, found['rows']):
    with open(tmp_path / name / search.SEARCH_FILE) as f:
      kept = json.load(f)
    assert row['fits'] and row['bindings'] == kept['best']
    assert row['step_s'][0] == 2.0
  with open(tmp_path / command.PODS_FILE) as f:
    assert json.load(f)['finished']
  assert 'v5e_2x4' in lines[-1] and '2.00 to' in lines[-1]


@pytest.mark.parametrize(
  'binding, said',
  [
    ("PODS = ('v5p_4x4x9',)", "Did you mean 'v5p_4x4x8'"),
    ("PODS = ('cpu8',)", "'cpu8' has no TOPOLOGY"),
    ("PODS = 'v5p_4x4x8'", 'expected a tuple of texts'),
    ('SEARCH = 1', 'expected True or False'),
    ('SEARCH = True', 'TOPOLOGY = None'),
  ],
)
def test_what_is_no_search_is_one_line(configured, binding, said):
  configured('models/20b.gin', bindings=[binding])
  with pytest.raises((ValueError, gin_config.UserError), match=said) as e:
    commands.execute('plan')
  assert '\n' not in str(e.value).partition('\n  In call')[0]
