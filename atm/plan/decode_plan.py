"""What decoding or encoding will do on a pod, found out without one.

The programs of `atm infer` (bucketing.py, generate.py, beam_search.py) compiled
for the pod's devices: the largest batch that fits, and how fast a token can be.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from atm import fileio
from atm.data import task_registry
from atm.inference import sampling
from atm.messages import check_arguments, check_choice, check_count, check_path
from atm.model import config as config_lib
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.parallel.device_memory import device_bytes
from atm.parallel.sharding import Rules
from atm.plan import (
  decode_programs,
  hardware,
  largest,
  plan_warnings,
  report,
  suggestions,
  workers,
)
from atm.plan.decode_programs import DecodeJob
from atm.train import config_checks

PROGRAMS = ('train', 'decode', 'encode', 'serve')


@check_arguments(name=partial(check_choice, 'PROGRAM', known=PROGRAMS))
def program(name: str = 'train') -> str:
  """Returns PROGRAM, what is planned: one of PROGRAMS, or raises ValueError."""
  return name


@check_arguments(
  lengths=partial(
    task_registry.check_lengths, 'TASK_FEATURE_LENGTHS', optional=True
  ),
  program=partial(check_choice, 'PROGRAM', known=PROGRAMS),
  weights=partial(
    check_choice, 'WEIGHTS', known=config_lib.WEIGHTS, optional=True
  ),
  batch_size=partial(check_count, 'DECODE_BATCH_SIZE', optional=True),
  model_dir=partial(check_path, 'MODEL_DIR', optional=True),
)  # fmt: skip
def plan_rows(
  lengths: dict[str, int] | None,
  model_config: config_lib.ModelConfig,
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
  """Compiles what `atm infer` runs for a pod, and reports what it will do.

  Args:
    lengths: `inputs`, ids of an encoder input; `targets`, tokens written; None:
      the model's positions.
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
    RuntimeError: the compiler failed for another reason than memory.
  """
  model_config.check_encoder(f'PROGRAM = {program!r}')
  fileio.check_output_folder('MODEL_DIR', model_dir)
  if lengths is None:
    lengths = task_registry.Lengths.of_model(model_config).as_setting()
  sizes = task_registry.Lengths.of(lengths)
  target = hardware.find_target(topology, make_mesh, start)
  config = dataclasses.replace(config, max_tokens=sizes.targets)
  job = DecodeJob(
    model_config, weights, rules, target, program, config, sizes.inputs
  )
  _check(job, sizes, batch_size)
  say(f'compiling {program} for {target}')
  if batch_size is None:
    batches, best = find_largest(job, say)
  else:
    best = decode_programs.plan_batch(job, batch_size)
    batches = [best]
  result = {
    **best,
    'program': program,
    'topology': topology,
    'mesh': dict(target.mesh.shape),
    'devices': target.mesh.size,
    'lengths': dataclasses.asdict(sizes),
    'tokens_written': job.room[1],
    **job.describe_params(),
    'choosing': dataclasses.asdict(config),
    'versions': hardware.installed_versions(),
    'searched': batch_size is None,
    'batches': [_summarize(row) for row in batches],
    'compile_seconds': sum(row['compile_seconds'] for row in batches),
    'changes': [],
  }
  units = result['batch_size'] // job.unit
  above = (units + largest.grain(units)) * job.unit
  result['warnings'] = plan_warnings.decode_warnings(result, job, above)
  if result['fits'] is False:
    result['changes'] = suggestions.estimate_decode_changes(result, job)
  say(report.decode_page(result, target.pod))
  report.write(result, model_dir)
  return result


def _check(job: DecodeJob, lengths, batch_size: int | None) -> None:
  """Raises ValueError for what cannot be served, or not sensibly."""
  check_choice('PROGRAM', job.kind, PROGRAMS[1:3])
  mesh, config, rules = job.target.mesh, job.model_config, job.rules
  if job.kind == 'decode':
    check_serving_mesh(mesh, config)
  if batch_size is None and job.target.pod is None:
    raise ValueError(
      'DECODE_BATCH_SIZE = None, the most that fit: what fits on the devices '
      'of this machine is not known. Give a number, or a TOPOLOGY'
    )
  rows = job.unit if batch_size is None else batch_size
  sharding.check_divides(mesh, rules, {'batch': ('DECODE_BATCH_SIZE', rows)})
  config_checks.check_sizes(mesh, rules, config, lengths, job.unit)


def check_serving_mesh(mesh, config: config_lib.ModelConfig) -> None:
  """Raises ValueError for a mesh that decodes slowly."""
  if (fsdp := mesh.shape['fsdp']) == 1:
    return
  # NLLB's vocabulary divides by 2 alone.
  tensor = math.gcd(
    mesh.size, config.encoder_heads, config.decoder_heads, config.encoder_ff,
    config.decoder_ff, config.vocab_size,
  )  # fmt: skip
  raise ValueError(
    f'mesh.fsdp = {fsdp}: decoding would gather all parameters for every '
    'token. Serve with a mesh of tensor (and data): add '
    f'--gin.sharding.mesh.fsdp=1 --gin.sharding.mesh.tensor={tensor} '
    f'--gin.sharding.mesh.data={mesh.size // tensor}'
  )


# --- The largest batch


def find_largest(job: DecodeJob, say: Callable) -> tuple[list[dict], dict]:
  """Returns (all batches tried, by size; the largest that fits, else least)."""
  search = largest.LargestSearch(
    plan=lambda n: decode_programs.plan_batch(job, n * job.unit),
    place=lambda n: place_batch(job, n * job.unit),
    base=device_bytes(job.params),
    usable=job.target.pod.chip.usable,
    say=say,
    unit=job.unit,
  )
  return search.run(first_guess(job))


def place_batch(job: DecodeJob, rows: int) -> dict:
  """Returns what a batch takes, not how long, compiled partly."""
  jobs = [(rows, {'job': job, 'rows': rows}, True)]
  ((_, result),) = workers.run_plans(decode_programs.measure_peak, jobs)
  if 'error' in result:
    raise RuntimeError(f'a batch of {rows} did not compile: {result["error"]}')
  peak, batch = result['peak'] + largest.RESERVED, job.batch(rows)
  return {
    'batch_size': batch['tokens'].shape[0],
    'fits': peak <= job.target.pod.chip.usable,
    'peak_hbm_gib': peak / 2**30,
    'tokens_per_second_range': None,
    'compile_seconds': result['seconds'],
    'memory': {
      'peak': peak, 'cache': device_bytes(job.caches(batch))
    },
    'whole': False,
  }  # fmt: skip


def first_guess(job: DecodeJob) -> int:
  """Returns a power of two that the shapes say fills half of what is left."""
  usable = job.target.pod.chip.usable - device_bytes(job.params)
  batch = job.batch(job.unit)
  row = device_bytes(job.caches(batch))
  c, S = job.net.config, batch['tokens'].shape[1]
  states = 8 * S * c.d_model * jnp.dtype(c.dtype).itemsize
  most = max(2, usable / max(row, states if job.kind == 'encode' else 1))
  return 2 ** int(math.log2(most / 2 + 1e-9))


def _summarize(result: dict) -> dict:
  """Returns a row of the table of batches."""
  names = (
    'batch_size', 'fits', 'peak_hbm_gib', 'tokens_per_second_range',
    'compile_seconds', 'whole',
  )  # fmt: skip
  row = {name: result[name] for name in names}
  return row | {'cache_gib': result['memory']['cache'] / 2**30}
