"""What a serving engine will do on a pod, found out without one.

The programs of `atm serve` (atm/serve/programs.py) compiled for the pod's
devices: how many slots fit, and how fast requests are read and written.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

from atm import fileio
from atm.data import task_registry
from atm.messages import check_arguments, check_choice, check_count, check_path
from atm.model import config as config_lib
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.plan import (
  decode_plan,
  hardware,
  largest,
  memory,
  plan_warnings,
  report,
  serve_report,
  suggestions,
  workers,
)
from atm.plan.serve_programs import ServeJob, place_program, plan_program
from atm.serve.engine_sizes import EngineSizes
from atm.serve.program_shapes import share_of_copies
from atm.train import config_checks


@check_arguments(
  slots=partial(check_count, 'SLOTS', optional=True),
  weights=partial(
    check_choice, 'WEIGHTS', known=config_lib.WEIGHTS, optional=True
  ),
  model_dir=partial(check_path, 'MODEL_DIR', optional=True),
)  # fmt: skip
def plan_engine(
  model_config: config_lib.ModelConfig,
  sizes: EngineSizes = EngineSizes(),
  slots: int | None = None,
  make_mesh: Callable = mesh_lib.make_mesh,
  rules: Rules = Rules(),
  topology: str | None = None,
  weights: str | None = None,
  model_dir: str | None = None,
  start: Callable[[], None] = lambda: None,
  say: Callable[[str], None] = print,
) -> dict:
  """Compiles what `atm serve` runs for a pod, and reports what it will do.

  Args:
    model_config, make_mesh, rules, topology, weights, model_dir, start, say:
      see `decode_plan.plan_rows`.
    sizes: what the engine has room for, but for its slots.
    slots: outputs that decode together; None: the most that fit.

  Returns:
    What plan.json holds: of the most slots that fit, or of `slots`; `tried` has
    all numbers that were compiled.

  Raises:
    ValueError: settings that do not fit each other or the pod, or libtpu is
      missing.
    RuntimeError: the compiler failed for another reason than memory.
  """
  model_config.check_encoder("PROGRAM = 'serve'")
  fileio.check_output_folder('MODEL_DIR', model_dir)
  target = hardware.find_target(topology, make_mesh, start)

  def job_of(number: int) -> ServeJob:
    of_number = dataclasses.replace(sizes, slots=number)
    return ServeJob(model_config, weights, rules, target, of_number)

  _check(job_of(slots or 1), slots)
  say(f'compiling serve for {target}')
  planner = EnginePlanner(job_of, say)
  if slots is None:
    rows, best = planner.find_most()
  else:
    best = planner.plan(slots)
    rows = [best]
  job = job_of(best['slots'])
  result = {
    **best,
    'program': 'serve',
    'topology': topology,
    'mesh': dict(target.mesh.shape),
    'devices': target.mesh.size,
    'sizes': dataclasses.asdict(job.lanes['rows'].sizes),
    'vocab_size': model_config.vocab_size,
    **job.describe_params(),
    'versions': hardware.installed_versions(),
    'searched': slots is None,
    'tried': [_summarize(row) for row in rows],
    'changes': [],
  }
  if result['fits'] is not False:
    result |= planner.measure_others(job)
  result |= estimate_rates(result)
  result['compile_seconds'] = planner.seconds
  result['warnings'] = plan_warnings.serve_warnings(result, job)
  if result['fits'] is False:
    result['changes'] = suggestions.estimate_serve_changes(result, job)
  say(serve_report.serve_page(result, target.pod))
  report.write(result, model_dir)
  return result


def _check(job: ServeJob, slots: int | None) -> None:
  """Raises ValueError for what cannot be served, or not sensibly."""
  mesh, config, target = job.target.mesh, job.model_config, job.target
  decode_plan.check_serving_mesh(mesh, config)
  hosts = len({device.process_index for device in mesh.devices.flat})
  if hosts > 1:
    raise ValueError(
      f'TOPOLOGY = {target.pod.name!r}: {hosts} hosts, and serve runs in one '
      'process of one host. Take a pod of one host, such as '
      '--gin_file=pods/v5e_2x4.gin, and replicas behind a balancer'
    )
  if slots is None and target.pod is None:
    raise ValueError(
      'SLOTS = None, the most that fit: what fits on the devices of this '
      'machine is not known. Give a number, or a TOPOLOGY'
    )
  lengths = task_registry.Lengths.of_model(config)
  config_checks.check_sizes(mesh, job.rules, config, lengths, job.unit)


class EnginePlanner:
  """Plans engines of several numbers of slots.

  Attributes:
    seconds: that compilations took.
  """

  def __init__(self, job_of: Callable[[int], ServeJob], say: Callable):
    self._job_of, self._say = job_of, say
    self._unit = job_of(1).unit
    self._dearest: int | None = None  # of `ServeJob.list_dearest`
    self.seconds = 0.0

  def find_most(self) -> tuple[list[dict], dict]:
    """Returns (all numbers tried; the most slots that fit, else the least)."""
    job = self._job_of(self._unit)
    search = largest.LargestSearch(
      plan=lambda n: self.plan(n * self._unit),
      place=lambda n: self.place(n * self._unit),
      base=job.fixed_bytes(),
      usable=job.target.pod.chip.usable,
      say=self._say,
      noun='slots',
      unit=self._unit,
    )
    return search.run(self._first_guess(job))

  def _first_guess(self, job: ServeJob) -> int:
    """Returns how many times a job's slots may fit, by shapes."""
    base = job.fixed_bytes()
    caches = sum(job.arguments().values()) - base
    # Some programs copy a part of the caches.
    rows = self._job_of(64 * self._unit).lanes['rows']
    copied = max(share_of_copies(window, rows.sizes) for window in rows.windows)
    room = job.target.pod.chip.usable - base
    return max(1, int(room / (caches * (1 + copied))))

  def place(self, slots: int) -> dict:
    """Returns the memory of an engine, its dearest programs compiled partly."""
    job = self._job_of(slots)
    programs = job.list_dearest()
    if self._dearest is not None:  # it is the same for other numbers
      programs = programs[self._dearest : self._dearest + 1]
    jobs = (
      (i, dict(job=job, kind=kind, shape=shape, lane=lane), True)
      for i, (kind, shape, lane) in enumerate(programs)
    )
    peaks = {}
    for i, result in workers.run_plans(place_program, jobs):
      if 'error' in result:
        raise RuntimeError(f'{slots} slots did not compile: {result["error"]}')
      peaks[i] = result['peak'] + largest.RESERVED
      self.seconds += result['seconds']
    dearest = max(peaks, key=peaks.get)
    if self._dearest is None:
      self._dearest = dearest
    return self._row(job, peaks[dearest], whole=False)

  def plan(self, slots: int) -> dict:
    """Returns the memory and the steps of an engine, compiled whole."""
    job = self._job_of(slots)
    step = plan_program(job, 'decode', max(job.lanes['rows'].windows))
    self.seconds += step['compile_seconds']
    peak = step['memory']['peak']
    if self._dearest:  # another program needs more
      peak = max(peak, self.place(slots)['memory']['peak'])
    held = job.arguments()
    temporaries = max(0, peak - sum(held.values()))
    parts = {**held, 'temporaries': temporaries, 'peak': peak}
    row = self._row(job, peak, whole=True)
    row['fits'] = row['fits'] and step['fits'] is not False
    return row | {'memory': parts, 'step': step}

  def _row(self, job: ServeJob, peak: int, whole: bool) -> dict:
    pod = job.target.pod
    return {
      'slots': job.slots,
      'fits': peak <= pod.chip.usable if pod else None,
      'peak_hbm_gib': peak / 2**30,
      'usable_hbm_gib': pod and pod.chip.usable / 2**30,
      'memory': {**job.arguments(), 'peak': peak},
      'slot_bytes': memory.total_bytes(
        [x.caches for x in job.lanes['rows'].abstract_states]
      )
      // job.slots,
      'compile_seconds': self.seconds,
      'whole': whole,
    }

  def measure_others(self, job: ServeJob) -> dict:
    """Compiles a step of a request alone, admissions, and a step of beams."""
    rows = job.lanes['rows']
    measured = {'alone': ('decode', min(rows.windows), 'rows')}
    longest = max(S for _, S in rows.batches)
    for S in dict.fromkeys(
      min((n for _, n in rows.batches if n >= longest / k), default=longest)
      for k in (16, 4, 1)
    ):
      B = max(b for b, n in rows.batches if n == S)
      measured[f'admit {S}'] = 'admit', (B, S), 'rows'
    if beams := job.lanes.get('beams'):
      measured['beams'] = 'decode', max(beams.windows), 'beams'
    found = {}
    for name, program in measured.items():
      self._say(f'  {name}: {program[0]} {program[1]}')
      found[name] = plan_program(job, *program)
      self.seconds += found[name]['compile_seconds']
    admissions = [v for k, v in found.items() if k.startswith('admit ')]
    return {
      'alone': found['alone'],
      'admissions': admissions,
      'beam_step': found.get('beams'),
    }


def estimate_rates(plan: dict) -> dict:
  """Returns tokens a second (least, most) of all slots and of one request."""
  names = 'tokens_per_second_range', 'alone_tokens_per_second_range'
  rates = dict.fromkeys((*names, 'requests_per_second_range'))
  time = lambda row: row and row['estimate'] and row['estimate']['time_range_s']
  step, alone = time(plan['step']), time(plan.get('alone'))
  if step is None or alone is None:
    return rates
  per_second = lambda n, seconds: tuple(n / t for t in reversed(seconds))
  admission = plan['admissions'][-1]  # of the longest inputs
  read = [t / admission['shape'][0] for t in time(admission)]
  # A request takes a slot for as many steps as it writes tokens, and its
  # admission lets all of them wait.
  tokens = plan['sizes']['max_output'] - 1
  each = [a + tokens * b / plan['slots'] for a, b in zip(read, step)]
  return {
    names[0]: per_second(plan['slots'], step),
    names[1]: per_second(1, alone),
    'requests_per_second_range': per_second(1, each),
  }


def _summarize(row: dict) -> dict:
  """Returns a row of the table of numbers of slots."""
  names = 'slots', 'fits', 'peak_hbm_gib', 'whole'
  return {name: row[name] for name in names}
