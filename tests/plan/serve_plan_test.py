"""Plans of serving: the most slots, rates, and mistakes."""

import functools
import json

import pytest

from atm.parallel import mesh as mesh_lib
from atm.plan import hardware, report, serve_plan, serve_programs
from atm.serve.engine_sizes import EngineSizes

from plan_runs import TENSOR, Line, silent, tiny

SIZES = EngineSizes(beam_groups=0, max_input=16, max_output=12, top=2)


def planned(**changes):
  given = dict(
    model_config=tiny(), sizes=SIZES, make_mesh=TENSOR, slots=4, say=silent
  )  # fmt: skip
  return serve_plan.plan_engine(**{**given, **changes})


def made_up(kind, shape, peak=100, seconds=(0.1, 0.2)):
  """Returns what `plan_program` does, of a pod."""
  times = {
    'time_range_s': seconds, 'time_split_s': {'compute': seconds},
    'unknown_loops': [], 'largest_arrays': [], 'collectives': [],
    'cycles': {'copies': 1}, 'cache_copies': [], 'copies_once': [],
  }  # fmt: skip
  return dict(
    kind=kind, shape=shape, lane='rows', fits=True, memory={'peak': peak},
    compile_seconds=1.0, whole=True, estimate=times, asked=times,
  )  # fmt: skip


def test_a_plan_is_written_and_printed(tmp_path, monkeypatch):
  monkeypatch.setattr(
    serve_plan, 'plan_program',
    lambda job, kind, shape, lane='rows': made_up(kind, shape),
  )  # fmt: skip
  lines = []
  plan = planned(model_dir=str(tmp_path), say=lines.append)
  with open(tmp_path / report.PLAN_FILE) as f:
    assert json.load(f) == json.loads(json.dumps(plan))
  assert plan['slots'] == 4 and plan['fits'] is None
  assert plan['tokens_per_second_range'] == pytest.approx((20, 40))
  assert plan['alone_tokens_per_second_range'] == pytest.approx((5, 10))
  read = max(shape[0] for shape in (plan['admissions'][-1]['shape'],))
  low, high = plan['requests_per_second_range']
  assert high == pytest.approx(1 / (0.1 / read + 11 * 0.1 / 4))
  assert low == pytest.approx(high / 2)
  for text in ('4 slots', 'self cache', 'cross cache', 'logits', 'requests/s'):
    assert text in lines[-1], text


def test_the_most_slots_are_searched(monkeypatch):
  """By the program that needs the most, once that is known."""

  class Pod:
    chip = Line.pod.chip
    name = 'v5e:2x4'

  placed = []

  def run_plans(plan, jobs):
    for name, settings, _ in jobs:
      job = settings['job']
      placed.append((job.slots, settings['kind'], settings['lane']))
      least = sum(job.arguments().values())
      extra = 2**20 * (settings['kind'] == 'admit') + 2**30 * job.slots
      yield name, {'peak': least + extra, 'seconds': 1.0}

  monkeypatch.setattr(serve_plan.workers, 'run_plans', run_plans)
  monkeypatch.setattr(
    serve_plan, 'plan_program',
    lambda job, kind, shape, lane='rows': made_up(kind, shape),
  )  # fmt: skip

  def job_of(slots):
    target = hardware.Target(TENSOR(), Pod())
    config = dict(model_config=tiny(), weights=None, rules=serve_plan.Rules())
    sizes = serve_plan.dataclasses.replace(SIZES, slots=slots)
    return serve_programs.ServeJob(**config, target=target, sizes=sizes)

  planner = serve_plan.EnginePlanner(job_of, silent)
  monkeypatch.setattr(planner, '_first_guess', lambda job: 3)
  rows, best = planner.find_most()
  assert best['slots'] == 14 and best['fits'] and best['whole']
  assert {row['slots'] for row in rows if not row['fits']} >= {16}
  kinds = [kind for n, kind, _ in placed if n != placed[0][0]]
  assert {*kinds} == {'admit'}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'slots': None}, 'SLOTS = None, the most that fit'),
    ({'slots': 0}, 'SLOTS = 0'),
    ({'weights': 'bf16'}, 'WEIGHTS'),
    ({'make_mesh': functools.partial(mesh_lib.make_mesh, data=2, fsdp=4)},
     'mesh.tensor=4 --gin.sharding.mesh.data=2'),
    ({'make_mesh': functools.partial(mesh_lib.make_mesh, data=1, tensor=8)},
     'heads'),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as e:
    planned(**changes)
  assert '\n' not in str(e.value)


@pytest.mark.libtpu
def test_serving_is_planned_for_a_tpu():
  """No cache of heads as wide as a tile is copied, for a step or a call."""
  plan = planned(
    model_config=tiny(
      d_model=2048, vocab_size=256, dtype='bfloat16', positions=256,
      encoder_layers=1, decoder_layers=1, encoder_heads=16, decoder_heads=16,
    ),
    sizes=EngineSizes(beam_groups=2, beams=2), topology='v5e:2x4', slots=64,
  )  # fmt: skip
  assert plan['fits'] and plan['usable_hbm_gib'] == 15.75
  step = plan['step']['estimate']
  assert not step['cache_copies'] and not step['copies_once']
  least, most = step['time_range_s']
  assert 0 < least < most <= plan['step']['asked']['time_range_s'][1]
  low, high = plan['tokens_per_second_range']
  assert low == pytest.approx(64 / most)
  assert plan['beam_step']['estimate']['time_range_s'][0] > 0
