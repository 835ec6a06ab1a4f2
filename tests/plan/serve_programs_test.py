"""An engine's programs: what they hold, and which needs the most."""

from atm.parallel.device_memory import device_bytes
from atm.parallel.sharding import Rules
from atm.plan import hardware, serve_programs
from atm.serve.engine_sizes import EngineSizes
from atm.serve.programs import prepare_engine_params

from plan_runs import TENSOR, on_device, tiny, zeros_model

SIZES = EngineSizes(
  slots=6, beam_groups=2, beams=2, max_input=16, max_output=12, top=2
)


def job_of(**changes) -> serve_programs.ServeJob:
  """Returns a job of two by four simulated devices."""
  target = hardware.Target(TENSOR(), None)
  given = dict(model_config=tiny(), weights=None, rules=Rules(), target=target)
  return serve_programs.ServeJob(**{**given, 'sizes': SIZES, **changes})


def test_what_an_engine_holds_is_what_it_allocates():
  job, model = job_of(), zeros_model()
  params = prepare_engine_params(model)
  for name, programs in job.lanes.items():
    real = type(programs)(model, programs.sizes, params)
    assert job.lane_bytes(name) == on_device(real.allocate())
    assert job.slots == 6
  parts = job.arguments()
  assert parts['parameters'] == device_bytes(params)
  kept = job.lane_bytes('rows')
  assert sum(parts.values()) - parts['parameters'] - parts['beams'] == kept
  assert job.beside('rows') == parts['beams'] > 0
  assert not job_of(sizes=EngineSizes(beam_groups=0)).lane_bytes('beams')


def test_a_window_has_its_part_of_the_caches():
  caches = job_of().caches((6, 8, 16))
  assert caches[0].self_keys.shape[0::3] == (6, 8)
  assert caches[0].cross_values.shape[0::2] == (6, 16)
  assert caches[0].self_keys.sharding is not None


def test_the_dearest_programs_are_of_both_lanes():
  dearest = job_of().list_dearest()
  assert ('decode', (6, 12, 16), 'rows') in dearest
  assert ('decode', (2, 12, 16), 'beams') in dearest
  assert {kind for kind, _, _ in dearest} == {'admit', 'decode'}


def test_a_step_is_planned_whole():
  job = job_of()
  shape = max(job.lanes['rows'].windows)
  plan = serve_programs.plan_program(job, 'decode', shape)
  assert plan['memory']['peak'] > sum(job.arguments().values())
  assert plan['fits'] is None and plan['estimate']['collectives']
  assert not plan['estimate']['unknown_loops']
  cycles = [plan[name]['cycles']['unknown'] for name in ('estimate', 'asked')]
  assert cycles == [0, 0]  # of CPUs the compiler has none
