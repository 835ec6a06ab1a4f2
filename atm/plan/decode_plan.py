"""What decoding or encoding will do on a pod, told without one.

The programs of `atm infer` (buckets.py, decode.py, beams.py) compiled for the
pod's devices: the largest batch that fits, and how fast a token can be.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from atm.data import registry
from atm.inference import sampling
from atm.messages import check_choice
from atm.model import config as config_lib
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.plan import (
  decode_memory,
  decode_programs,
  decode_report,
  hardware,
  memory,
  train_plan,
)
from atm.plan.decode_programs import Job
from atm.train import config_checks

PROGRAMS = ('train', 'decode', 'encode')
TRIES = 8  # of a search, before anything is compiled whole
GRAIN = 64
DOUBTS = 3


def program(name: str = 'train') -> str:
  """PROGRAM, what is planned.

  Raises:
    ValueError: it is none of PROGRAMS.
  """
  check_choice('PROGRAM', name, PROGRAMS)
  return name


def plan_rows(
  lengths: dict[str, int],
  model_config: config_lib.Config,
  program: str = 'decode',
  config: sampling.Config = sampling.Config(),
  make_mesh: Callable = mesh_lib.make_mesh,
  rules: Rules = Rules(),
  topology: str | None = None,
  weights: str | None = None,
  batch_size: int | None = None,
  model_dir: str | None = None,
  start: Callable[[], None] = lambda: None,
  say: Callable[[str], None] = print,
) -> dict:
  """Compiles what `atm infer` runs for a pod, and says what it will do.

  Args:
    lengths: `inputs`, ids of an encoder input; `targets`, tokens written.
    program: 'decode', all that a batch takes; 'encode', the encoder alone.
    config: how tokens are chosen; max_tokens is `lengths`'s.
    weights: see `api.load`.
    batch_size: inputs at a time; None: the most that fit.
    model_config, make_mesh, rules, topology, model_dir, start, say: see
      `train_plan.plan`. The mesh is the one to serve with.

  Returns:
    What plan.json holds: of the largest batch that fits, or of `batch_size`;
    `batches` has all that were compiled.

  Raises:
    ValueError: settings that do not fit each other or the pod, or libtpu is
      missing.
  """
  sizes = registry.Lengths.of(lengths)
  target = train_plan.aim(topology, make_mesh, start)
  check(program, target, rules, model_config, sizes, batch_size)
  config = dataclasses.replace(config, max_tokens=sizes.targets)
  net, params = decode_programs.abstract_model(
    model_config, weights, target.mesh, rules
  )
  job = Job(program, net, params, config, sizes.inputs, rules, target)
  say(f'compiling {program} for {train_plan.describe(target)}')
  if batch_size is None:
    tried, best = search(job, say)
  else:
    best = decode_programs.rows_planned(job, batch_size)
    tried = [best]
  made = {**best, **described(job, sizes), 'topology': topology}
  made['searched'] = batch_size is None
  made['batches'] = [brief(row) for row in tried]
  made['compile_seconds'] = sum(row['compile_seconds'] for row in tried)
  made['warnings'] = warnings(made, job)
  made['changes'] = changes(made, job) if made['fits'] is False else []
  say(decode_report.page(made, target.pod))
  train_plan.write(made, model_dir)
  return made


def described(job: Job, lengths: registry.Lengths) -> dict:
  """What was asked for, as plan.json has it."""
  mesh, leaves = job.target.mesh, jax.tree.leaves(job.params)
  return {
    'program': job.kind,
    'mesh': dict(mesh.shape),
    'devices': mesh.size,
    'lengths': dataclasses.asdict(lengths),
    'tokens_written': job.room[1],
    'weights': str(leaves[0].dtype),
    'params': sum(x.size for x in leaves),
    'choosing': dataclasses.asdict(job.config),
    'versions': train_plan.versions(),
  }


def check(program, target, rules, config, lengths, batch_size) -> None:
  """Raises ValueError for what cannot be served, or not sensibly."""
  check_choice('PROGRAM', program, PROGRAMS[1:])
  mesh = target.mesh
  fsdp = mesh.shape['fsdp']
  if program == 'decode' and fsdp > 1:
    tensor = math.gcd(mesh.size, config.decoder_heads)
    raise ValueError(
      f'mesh.fsdp = {fsdp}: decoding would gather all parameters for every '
      'token. Serve with a mesh of tensor (and data): add '
      f'--gin.sharding.mesh.fsdp=1 --gin.sharding.mesh.tensor={tensor} '
      f'--gin.sharding.mesh.data={mesh.size // tensor}'
    )
  if batch_size is None and target.pod is None:
    raise ValueError(
      'DECODE_BATCH_SIZE = None, the most that fit: what fits on the devices '
      'of this machine is not known. Give a number, or a TOPOLOGY'
    )
  unit = math.prod(mesh.shape[a] for a in rules.mesh_axes('batch'))
  rows = unit if batch_size is None else batch_size
  config_checks.check_numbers(DECODE_BATCH_SIZE=rows)
  sharding.check_divides(mesh, rules, {'batch': ('DECODE_BATCH_SIZE', rows)})
  config_checks.check_sizes(mesh, rules, config, lengths, unit)


# --- The largest batch


def search(job: Job, say) -> tuple[list[dict], dict]:
  """(all that were tried, by size; the largest that fits, compiled whole).

  Memory is nearly linear in rows: two batches give a line, and the line the
  next to try, until one fits and the next one up does not (the next row of each
  data shard; of many, a GRAINth). So far arrays are only placed; then the
  largest is compiled; up to DOUBTS above it, while what is placed alone would
  fit; and the first tried, if it is smaller. Where none fits, the smallest
  stands for the largest.
  """
  unit, usable = job.unit, job.target.pod.chip.usable
  tried: dict[int, dict] = {}
  first = first_guess(job)

  def attempt(units: int, whole: bool = False) -> dict:
    make = decode_programs.rows_planned if whole else rows_placed
    made = tried[units] = make(job, units * unit)
    fits = 'fits' if made['fits'] else 'does not fit'
    say(
      f'  batch {made["batch_size"]}: {made["peak_hbm_gib"]:.2f} GiB, {fits} '
      f'({made["compile_seconds"]:.0f} s)'
    )
    return made

  def bracket() -> tuple:
    fit = [n for n in tried if tried[n]['fits']]
    not_fit = [n for n in tried if not tried[n]['fits']]
    return max(fit, default=0), min(not_fit, default=math.inf)

  attempt(first)
  while len(tried) < TRIES and bracket()[1] - bracket()[0] > grain(
    bracket()[0]
  ):
    attempt(next_guess(tried, memory.held(job.params), usable, *bracket()))
  best = attempt(bracket()[0] or min(tried), whole=True)
  down = grain(bracket()[0])
  while not best['fits'] and bracket()[0]:  # the compiler wanted some more
    best = attempt(max(1, bracket()[1] - down), whole=True)
    down *= 2  # each takes a whole compilation
  for _ in range(DOUBTS):
    if not best['fits'] or not in_doubt(tried.get(bracket()[1]), usable):
      break
    made = attempt(bracket()[1], whole=True)
    if made['fits']:
      best, (low, high) = made, bracket()
      if high - low > grain(low):
        attempt(low + grain(low))
  if best['fits'] and first * unit < best['batch_size']:
    attempt(first, whole=True)
  return [tried[n] for n in sorted(tried)], best


def in_doubt(made: dict | None, usable: float) -> bool:
  """Whether a batch was refused for room that the compiler may not need."""
  if made is None or made['whole']:
    return False
  return made['memory']['peak'] - decode_memory.RESERVED <= usable


def rows_placed(job: Job, rows: int) -> dict:
  """A row of the table of batches: what it takes, not how long."""
  clock = time.perf_counter()
  used, usable = decode_memory.bytes_of(job, rows), job.target.pod.chip.usable
  return {
    'batch_size': job.batch(rows)['tokens'].shape[0],
    'fits': used <= usable,
    'peak_hbm_gib': used / 2**30,
    'tokens_per_second_range': None,
    'compile_seconds': time.perf_counter() - clock,
    'memory': {'peak': used, 'cache': memory.held(job.caches(job.batch(rows)))},
    'whole': False,
  }


def first_guess(job: Job) -> int:
  """A power of two that the shapes say fills half of what is left."""
  usable = job.target.pod.chip.usable - memory.held(job.params)
  batch = job.batch(job.unit)
  row = memory.held(job.caches(batch))
  c, S = job.net.config, batch['tokens'].shape[1]
  states = 8 * S * c.d_model * jnp.dtype(c.dtype).itemsize
  most = max(2, usable / max(row, states if job.kind == 'encode' else 1))
  return 2 ** int(math.log2(most / 2 + 1e-9)) if most >= 2 else 1


def next_guess(tried: dict, base: float, usable: float, low, high) -> int:
  """Where a line meets what a chip has: through the batches on either side.

  Args:
    tried: units -> plans.
    base: bytes without rows: a second point while there is but one.
    usable: bytes.
    low, high: the largest that fits, the smallest that does not.
  """
  near = sorted(tried, key=lambda n: abs(tried[n]['memory']['peak'] - usable))
  ends = [n for n in (low, high) if n in tried]
  ends = ends if len(ends) == 2 else near[:2]
  points = [(n, tried[n]['memory']['peak']) for n in ends]
  points += [(0, base)] * (len(points) == 1)
  (a, x), (b, y) = points
  slope, step = (y - x) / (b - a), grain(low)
  met = math.floor(a + (usable - x) / slope) if slope > 0 else 2 * max(a, b)
  if high == math.inf:
    return max(met // step * step, low + step)
  if len(tried) > 4:  # it is no line
    met = (low + high) // 2
  return int(min(max(met // step * step, low + step), high - step))


def grain(low: int) -> int:
  """Steps between batches of about `low`: a power of two, a GRAINth or less."""
  return 2 ** max(0, (low // GRAIN).bit_length() - 1)


def brief(made: dict) -> dict:
  """A row of the table of batches."""
  names = (
    'batch_size', 'fits', 'peak_hbm_gib', 'tokens_per_second_range',
    'compile_seconds', 'whole',
  )  # fmt: skip
  row = {name: made[name] for name in names}
  return row | {'cache_gib': made['memory']['cache'] / 2**30}


# --- Warnings


def warnings(made: dict, job: Job) -> list[str]:
  """What is not as it was meant, each with what to do."""
  found = []
  token, config = made['token'], job.net.config
  if token:
    found += of_copies(token, made)
  if made['weights'] == 'float32' and config.dtype == 'bfloat16':
    found.append(
      'parameters are float32, and what reads them is bfloat16: programs may '
      "keep both. WEIGHTS = 'bfloat16' keeps one, half the size"
    )
  too_large = [r['batch_size'] for r in made['batches'] if not r['fits']]
  if made['searched'] and made['fits']:
    above = min(too_large, default=math.inf)
    units = made['batch_size'] // job.unit
    if above > (units + grain(units)) * job.unit:
      found.append(f'between {made["batch_size"]} and {above} none was tried')
  parts = token, made['prefill']
  loops = sum(len(part['unknown_loops']) for part in parts if part)
  if loops:
    found.append(f'{loops} more loops of unknown length are counted once')
  if job.target.pod and (skew := hardware.version_skew()):
    found.append(skew)
  return found


def of_copies(token: dict, made: dict) -> list[str]:
  """Of the cache, in the loop over tokens and around it."""
  found = []
  held, rows = made['memory'], token['cache_copies']
  share = lambda rows: sum(row['bytes'] for row in rows) / held['cache']
  if rows:
    found.append(
      f'cache copied for every token: {sum(row["count"] for row in rows)} '
      f'arrays, {share(rows):.0%} of it'
    )
  rows = token['copies_once']
  if held['temporaries'] > held['cache'] / 2:
    found.append(
      f'beside the cache there are {held["temporaries"] / 2**30:.2f} GiB of '
      f'temporaries: of the encoder, or of the {share(rows):.0%} of the cache '
      'that is copied once, before the first token'
    )
  return found


def changes(made: dict, job: Job) -> list[dict]:
  """What would make it smaller, cheapest first; see `memory.changes`."""
  held, config, mesh = made['memory'], job.net.config, job.target.mesh
  found = []
  add = lambda *row: found.append(dict(zip(('change', 'costs', 'saves'), row)))
  if made['weights'] == 'float32':
    half = held['parameters'] // 2
    add("WEIGHTS = 'bfloat16'", 'parameters are rounded', half)
  tensor = 2 * mesh.shape['tensor']
  if mesh.shape['data'] % 2 == 0 and config.decoder_heads % tensor == 0:
    less = f'mesh.data = {mesh.shape["data"] // 2}, mesh.tensor = {tensor}'
    add(less, 'twice the chips wait for each other', held['parameters'] // 2)
  if made['batch_size'] > job.unit:
    rows = made['batch_size'] // job.unit // 2 * job.unit
    saved = (held['cache'] + held['temporaries']) // 2
    add(f'DECODE_BATCH_SIZE = {rows}', 'fewer tokens/s', saved)
  if job.config.beams > 1:
    fewer = 1 - 1 / job.config.beams
    saved = int(held['cache'] * fewer / 2)
    add('choosing.Config.beams = 1', 'other outputs', saved)
  if job.kind == 'decode' and len(found) < 3:
    n = made['lengths']['targets'] // 2
    shorter = f"TASK_FEATURE_LENGTHS['targets'] = {n}"
    add(shorter, 'shorter outputs', held['cache'] // 4)
  return found[:3]
