"""A search of a run's settings: what it tries, what it says, how it ends."""

import dataclasses
import functools
import json
import os

import jax
import pytest

import gin
from atm.cli import commands, gin_config
from atm.model import remat as remat_lib
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.plan import (
  command,
  hardware,
  search,
  search_report,
  suggestions,
  train_plan,
)
from atm.plan import workers as workers_lib
from atm.plan.search import Search
from atm.plan.search_space import Candidate, Outlook
from atm.train import optimizer

from conftest import tiny

POD = 'v5e:2x4'
OWN = Candidate(2, 4, 1, 'none', 1)


def run(**changed) -> dict:
  """Settings of `train_plan.plan`, of a run on eight chips."""
  given = dict(
    lengths={'inputs': 20, 'targets': 12}, batch_size=32, train_steps=10,
    model_config=tiny(), optimizer_config=optimizer.Config(learning_rate=1e-3),
    make_mesh=functools.partial(mesh_lib.make_mesh, data=2, fsdp=4),
    rules=Rules(),
    topology=POD, packed=False, micro_batches=1, z_loss=0.0,
    freeze_encoder_steps=0, model_dir=None, say=lambda text: None,
  )  # fmt: skip
  return {**given, **changed}


_trace = functools.cache(
  lambda remat: trace_of(Outlook(run()), remat)  # the same for all of a run
)
trace_of = Outlook._trace


@pytest.fixture
def simulated(monkeypatch):
  """Simulated devices stand for the pod's chips."""
  monkeypatch.setattr(Outlook, '_trace', lambda self, remat: _trace(remat))
  places = lambda target, axes: [
    divmod(d.id, 4)
    for d in target.mesh.devices[
      tuple(
        slice(None) if axis in axes else 0 for axis in target.mesh.axis_names
      )
    ].flat
  ]
  aim = lambda topology, make_mesh, start: hardware.Target(
    make_mesh(devices=jax.devices()), topology and hardware.pod(topology)
  )
  monkeypatch.setattr(hardware, 'devices', lambda pod: jax.devices())
  monkeypatch.setattr(hardware.Target, 'places', places)
  monkeypatch.setattr(train_plan, 'aim', aim)


def of_settings(settings: dict) -> Candidate:
  axes = settings['make_mesh'].keywords
  return Candidate(
    *(axes[name] for name in ('data', 'fsdp', 'tensor')),
    settings['model_config'].remat, settings['micro_batches'],
  )  # fmt: skip


@pytest.fixture
def planned(monkeypatch, simulated):
  """Plans are made up: 10 GiB each, or as `sizes` has it by candidate; a step's
  traffic as the formula of the candidate, its computation 2 s if whole.

  Attributes of what is returned: `tried`, `whole`, candidates in turn;
  `sizes`; `failing`, candidate -> an exception raised, or what it says.
  """
  state = type('State', (), dict(tried=[], whole=[], sizes={}, failing={}))()
  outlook = Outlook(run())

  def made(settings, fast):
    candidate = of_settings(settings)
    (state.tried if fast else state.whole).append(candidate)
    failing = state.failing.get(candidate)
    if isinstance(failing, BaseException):
      raise failing
    if failing:
      return {'error': failing, 'seconds': 1.0}
    gib, split = (
      state.sizes.get(candidate, 10.0),
      outlook.split(candidate),
    )
    compute = 0.0 if fast else 2.0
    return {
      'fits': gib <= 15.75, 'peak_hbm_gib': gib, 'usable_hbm_gib': 15.75,
      'time_split_s': {**split, 'compute': (compute, compute)},
      'collectives': [], 'seconds': 1.0,
      'step_time_range_s': None if fast else (2.0, 2.0 + candidate.fsdp),
      'mfu_range': (0.4, 0.5),
    }  # fmt: skip

  def fake(jobs, workers):
    for name, settings, fast in jobs:
      yield name, made(settings, fast)

  monkeypatch.setattr(workers_lib, 'planned', fake)
  return state


# --- Candidates


def test_candidates_are_those_that_a_plan_would_take(simulated):
  """Faults seen: tensor 8 of four heads; rows that do not divide."""
  found = Outlook(run()).candidates()
  assert found[0] == OWN and len(set(found)) == len(found)
  assert {c.remat for c in found} == set(remat_lib.REMAT)
  assert all(c.data * c.fsdp * c.tensor == 8 for c in found)
  meshes = {tuple(c.mesh.values()) for c in found}
  assert meshes == {
    (data, fsdp, tensor)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    for tensor in (1, 2, 4)
    if data * fsdp * tensor == 8
  }
  # 32 rows over eight chips are four; over two they are sixteen.
  micro = lambda *mesh: {
    c.micro_batches for c in found if tuple(c.mesh.values()) == mesh
  }
  assert micro(2, 4, 1) == {1, 2, 4} and micro(1, 2, 4) == {1, 2, 4, 8}


@pytest.mark.parametrize(
  'candidate',
  [
    Candidate(2, 2, 2, 'none', 2),
    Candidate(4, 2, 1, 'full', 1),
  ],
)
def test_what_is_known_before_compiling_is_so(simulated, candidate):
  """State and FLOPs are those of the plan; memory is no more than that's.

  Fault seen: what layers keep of all micro-batches at once.
  """
  outlook = Outlook(run())
  settings = candidate.settings(workers_lib.settings(run()), outlook.slices)
  made = train_plan.plan(
    **{**settings, 'topology': None}, say=lambda text: None
  )
  known, has = outlook.traced(candidate.remat), made['memory']
  assert known.flops == made['hardware_flops'] and not known.kernel_flops
  assert outlook.held(candidate) == has['parameters'] + has['optimizer']
  least = outlook.least_memory(candidate)
  assert outlook.held(candidate) < least < has['parameters'] + has['heap']
  assert made['mesh'] == {'slice': 1, **candidate.mesh}


def test_a_larger_one_keeps_no_less(simulated):
  """Fault seen: fewer micro-batches taken to keep less."""
  outlook = Outlook(run())
  change = functools.partial(dataclasses.replace, OWN)
  assert outlook.no_less(OWN, change(remat='full'))
  assert outlook.no_less(OWN, change(micro_batches=2))
  assert not outlook.no_less(change(micro_batches=2), OWN)
  assert not outlook.no_less(change(remat='full'), OWN)
  assert not outlook.no_less(OWN, change(data=1, fsdp=8))


def test_what_waits_in_the_hosts_memory_is_copied_not_kept(simulated):
  """Faults seen: kept on the chip, too; the bytes of all chips on one."""
  outlook = Outlook(run())
  change = lambda remat: dataclasses.replace(OWN, remat=remat)
  full, kept, offloaded = map(
    outlook.traced, ('full', 'save_widened', 'offload_widened')
  )
  assert offloaded.kept == full.kept and not full.offloaded
  config, sizes = run()['model_config'], outlook.sizes
  positions = config.encoder_layers * sizes.inputs
  positions += config.decoder_layers * sizes.targets
  stream = 4 * run()['batch_size'] * positions * config.d_model
  assert offloaded.offloaded == kept.kept - full.kept - stream > 0
  assert 'host copies' not in outlook.split(change('full'))
  least, most = outlook.split(change('offload_widened'))['host copies']
  each = offloaded.offloaded / 8
  assert least == 0 and most == 2 * each / outlook.pod.chip.pcie


def test_bindings_are_the_candidate(configured):
  candidate = Candidate(1, 2, 4, 'dots', 2)
  configured('models/tiny.gin', bindings=candidate.bindings())
  given = gin.get_configurable('plan.plan')(instead=dict)
  mesh = given['make_mesh'](devices=jax.devices())
  assert {'slice': 1, **candidate.mesh} == dict(mesh.shape)
  assert given['model_config'].remat == 'dots'
  assert given['micro_batches'] == 2


# --- A search


def test_a_search_tries_many_and_plans_the_best(planned, tmp_path):
  """Faults seen: the run's own left out; the slowest three planned."""
  lines = []
  found = Search(run(model_dir=str(tmp_path), say=lines.append)).done()
  assert planned.tried[0] == OWN and len(planned.tried) == search.TRIES
  assert len(set(planned.tried)) == search.TRIES
  assert planned.whole[0] == OWN and 3 <= len(planned.whole) <= 4
  estimates = [sum(r['estimate_s']) for r in found['rows']]
  assert estimates == sorted(estimates)
  best = found['rows'][:3]
  assert all(r['plan'] for r in best if not r['own'])
  # By the made-up plans, the smaller fsdp the faster.
  whole = sorted(planned.whole, key=lambda c: c.fsdp)
  assert found['best'] == whole[0].bindings()
  total = len(Outlook(run()).candidates())
  assert sum(found['left_out'].values()) + search.TRIES == total
  with open(tmp_path / search.SEARCH_FILE) as f:
    assert json.load(f) == json.loads(json.dumps(found))
  assert os.path.getsize(tmp_path / search_report.PICTURE) > 10_000
  for line in (*found['best'], 'slower by the formula'):
    assert line in lines[-1]
  assert f'[{search.TRIES}/{search.TRIES}]' in ''.join(lines)


def test_one_whose_remat_is_being_planned_waits(planned, monkeypatch):
  """Fault seen: two of a remat at once, before the first had its cycles."""
  begun = []

  def two_at_a_time(jobs, workers):
    running = []
    for name, settings, fast in jobs:
      if not fast:
        begun.append((name.remat, {job[0].remat for job in running}))
      running.append((name, quick_plan(settings, fast)))
      if len(running) == 2:
        yield running.pop(0)
    yield from running

  quick_plan = lambda settings, fast: next(one([(None, settings, fast)], 1))[1]
  one = workers_lib.planned
  monkeypatch.setattr(workers_lib, 'planned', two_at_a_time)
  Search(run(say=lambda text: None)).done()
  assert len(begun) >= 3
  assert all(remat not in others for remat, others in begun)


def test_headroom_is_wanted_where_there_is_any(planned):
  """Fault seen: the fastest taken, with a hundredth left."""
  for candidate in Outlook(run()).candidates():
    planned.sizes[candidate] = 15.6 if candidate.remat != 'full' else 10.0
  found = Search(run()).done()
  assert {c.remat for c in planned.whole[1:]} == {'full'}
  assert "model.Config.remat = 'full'" in found['best']
  planned.sizes = dict.fromkeys(planned.sizes, 15.6)
  assert Search(run()).done()['best']


def test_where_the_fastest_do_not_fit_small_ones_are_tried(planned):
  """And none that keeps no less than one that did not fit.

  Faults seen: all tries spent on the fastest; a hopeless one tried.
  """
  outlook = Outlook(run())
  least = min(outlook.candidates(), key=outlook.least_memory)
  for candidate in outlook.candidates():
    planned.sizes[candidate] = 10.0 if candidate == least else 20.0
  found = Search(run()).done()
  assert found['best'] == least.bindings()
  tried = planned.tried
  for number, candidate in enumerate(tried):
    before = [c for c in tried[:number] if c != least]
    assert not any(outlook.no_less(candidate, c) for c in before)
  planned.sizes = dict.fromkeys(planned.sizes, 20.0)
  lines = []
  found = Search(run(say=lines.append)).done()
  assert found['left_out'][search.LARGER]
  assert found['best'] is None and 'none fits' in lines[-1]


def test_one_that_fails_is_a_row(planned):
  """Of the quick plans and of the whole ones."""
  fast = Outlook(run()).candidates()
  planned.failing = dict.fromkeys(fast[1:], 'INTERNAL: a bug')
  lines = []
  found = Search(run(say=lines.append)).done()
  assert found['best'] == OWN.bindings()
  failed = [r for r in found['rows'] if r['error']]
  assert len(failed) == search.TRIES - 1
  assert lines[-1].count('INTERNAL: a bug') == len(failed)


def test_what_was_found_is_kept_when_interrupted(planned, tmp_path):
  third = Search(run())._queue()[2]
  planned.failing = {third: KeyboardInterrupt()}
  lines = []
  with pytest.raises(KeyboardInterrupt):
    Search(run(model_dir=str(tmp_path), say=lines.append)).done()
  with open(tmp_path / search.SEARCH_FILE) as f:
    found = json.load(f)
  assert len(found['rows']) == 2 and not found['finished']
  assert 'stopped before its end' in lines[-1]
  assert found['left_out'][search.STOPPED]


# --- Pods


def test_pods_are_planned_each_with_its_own_mesh(
  configured, monkeypatch, capsys
):
  """Faults seen: all with the last one's mesh; the named file not read."""
  asked = {}

  def planned(jobs, workers):
    for name, settings, fast in jobs:
      asked[name] = settings
      assert fast
      yield name, {'error': 'not today', 'seconds': 1.0}

  monkeypatch.setattr(workers_lib, 'planned', planned)
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
  found = command.by_pods(given, True, lines.append, str(tmp_path))
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
    ("PODS = 'v5p_4x4x8'", 'expected names'),
    ('SEARCH = 1', 'expected True or False'),
    ('SEARCH = True', 'TOPOLOGY = None'),
  ],
)
def test_what_is_no_search_is_one_line(configured, binding, said):
  configured('models/20b.gin', bindings=[binding])
  with pytest.raises((ValueError, gin_config.UserError), match=said) as e:
    commands.execute('plan')
  assert '\n' not in str(e.value).partition('\n  In call')[0]


def test_a_plan_alone_is_a_plan():
  asked = []

  def run_plan(**given):
    asked.append(given)
    return given['instead'](run()) if 'instead' in given else 'a plan'

  assert command.run(run_plan, None) == 'a plan'
  assert [list(given) for given in asked] == [['instead'], ['tried']]


# --- Changes


def test_changes_are_tried_until_three_fit(planned):
  """The fewest settings first. Fault seen: one told that does not fit."""
  outlook = Outlook(run())
  least = outlook.least_memory(OWN)
  needs = 2 * outlook.usable
  every = suggestions.possible(outlook, needs)
  assert not any(c.to == OWN and not c.rounded for c in every)
  count = [len(suggestions.costs(outlook, c)) for c in every]
  assert count == sorted(count) and count[0] == 1 and count[-1] == 4
  for candidate in outlook.candidates():
    share = outlook.least_memory(candidate) / least
    planned.sizes[candidate] = 2 * 15.75 * share
  planned.sizes[every[0].to] = 20.0
  rows = suggestions.fitting(run(), needs)
  assert len(rows) == 3 and len(planned.tried) <= 5
  assert all(r['peak_hbm_gib'] <= 15.75 and r['change'] for r in rows)
  planned.sizes, planned.tried = dict.fromkeys(planned.sizes, 20.0), []
  assert suggestions.fitting(run(), needs) == []
  assert len(planned.tried) == suggestions.TRIES


def test_rounded_moments_are_bound(simulated):
  outlook = Outlook(run())
  made = suggestions.settings(outlook, suggestions.Change(OWN, True))
  assert made['optimizer_config'].moments_dtype == 'bfloat16'
  assert made['model_config'] == tiny()


# --- Processes


def dies(devices):
  os._exit(3)


def test_a_process_that_fails_is_an_error():
  given = workers_lib.settings(run(topology=None))
  jobs = [
    ('refused', {**given, 'batch_size': 0}, False),
    ('dead', {**given, 'make_mesh': dies}, False),
  ]
  made = dict(workers_lib.planned(jobs, 2))
  assert made['refused']['error'].startswith('BATCH_SIZE = 0')
  assert made['dead']['error'] == 'its process ended with status 3'
  assert all(m['seconds'] > 0 for m in made.values())


# --- With libtpu


SMALL = dict(
  lengths={'inputs': 128, 'targets': 128}, batch_size=64,
  model_config=tiny(
    d_model=128, vocab_size=256, dtype='bfloat16', positions=128,
    attention='einsum',
  ),
)  # fmt: skip


@pytest.fixture(scope='module')
def whole():
  return train_plan.plan(**run(**SMALL))


@pytest.mark.libtpu
def test_a_quick_plan_says_what_a_whole_one_does(whole):
  """The same traffic, and memory but for up to 64 MiB that whole programs keep
  free for collectives. Of a step that does not fit, the compiler's own figure.

  Fault seen: the report of another memory of the chip read.
  """
  small = workers_lib.settings(run(**SMALL))
  large = {**small, 'batch_size': 2**17}
  jobs = [('small', small, True), ('large', large, True), (0, large, False)]
  made = dict(workers_lib.planned(jobs, 2))
  fast = made['small']
  assert fast['fits'] and fast['collectives'] == whole['collectives']
  # 48 MiB here; 60 where no reduce-scatter is asynchronous.
  free = whole['memory']['peak'] - fast['memory']['peak']
  assert 2**25 < free <= 2**26 and fast['memory']['temporaries'] > 0
  fast, refused = made['large'], made[0]
  assert fast['fits'] is refused['fits'] is False
  assert fast['peak_hbm_gib'] == pytest.approx(
    refused['peak_hbm_gib'], rel=1e-3
  )


@pytest.mark.libtpu
def test_a_search_of_a_small_model(monkeypatch):
  monkeypatch.setattr(search, 'TRIES', 1)
  monkeypatch.setattr(search, 'BEST', 1)
  lines = []
  found = Search(run(**SMALL, say=lines.append)).done()
  assert found['finished'] and len(found['rows']) == 1
  assert all(r['fits'] and r['wire_bytes'] for r in found['rows'])
  assert found['best'] and 'estimated' in lines[-1]


@pytest.mark.libtpu
def test_a_program_that_cannot_be_read_back_is_read_off_the_dump(
  monkeypatch, whole
):
  def fails(compiled):
    raise jax.errors.JaxRuntimeError('no')

  monkeypatch.setattr(jax.stages.Compiled, 'as_text', fails)
  made = train_plan.plan(**run(**SMALL))
  assert {k for k in made if made[k] != whole[k]} <= {'compile_seconds'}
