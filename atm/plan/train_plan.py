"""What a training run will do on a pod, found out without one.

The step that training runs, `step.train_step` with the run's own settings, is
compiled for the pod's devices, none of which need be there; figures are read
off the compiled program, the traced one, and the shapes of the state.
"""

import math
import time
from collections.abc import Callable
from functools import partial

from atm import fileio
from atm.data import task_registry
from atm.messages import (
  check_arguments,
  check_choice,
  check_count,
  check_flag,
  check_index,
  check_number,
  check_path,
  check_seed,
  check_texts,
)
from atm.model import config as config_lib
from atm.model import flops as flops_lib
from atm.model.lora import LoraConfig
from atm.parallel import mesh as mesh_lib
from atm.parallel.device_memory import device_bytes
from atm.parallel.sharding import Rules
from atm.parallel.xla_options import check_options
from atm.plan import (
  compilation,
  hardware,
  hlo,
  memory,
  plan_warnings,
  report,
  step_time,
  suggestions,
)
from atm.plan.train_program import TrainStep, hardware_flops
from atm.train import config_checks, optimizer
from atm.train.lora_base import BASE_DTYPES


@check_arguments(
  lengths=partial(
    task_registry.check_lengths, 'TASK_FEATURE_LENGTHS', optional=True
  ),
  batch_size=partial(check_count, 'BATCH_SIZE'),
  train_steps=partial(check_count, 'TRAIN_STEPS'),
  micro_batches=partial(check_count, 'MICRO_BATCHES'),
  freeze_encoder_steps=partial(check_index, 'FREEZE_ENCODER_STEPS'),
  freeze=partial(check_texts, 'FREEZE', empty=False, single=True),
  seed=partial(check_seed, 'SEED'),
  z_loss=partial(check_number, 'Z_LOSS', least=0, whole=False),
  prompt_loss=partial(check_flag, 'PROMPT_LOSS'),
  xla_options=partial(check_options, 'XLA_OPTIONS'),
  lora_base_dtype=partial(check_choice, 'LORA_BASE_DTYPE', known=BASE_DTYPES),
  model_dir=partial(check_path, 'MODEL_DIR', optional=True),
)
def plan(
  lengths: dict[str, int] | None,
  batch_size: int,
  train_steps: int,
  model_config: config_lib.ModelConfig,
  optimizer_config: optimizer.OptimizerConfig,
  make_mesh: Callable = mesh_lib.make_mesh,
  rules: Rules = Rules(),
  topology: str | None = None,
  packed: bool = True,
  seed: int = 0,
  z_loss: float = 0.0,
  micro_batches: int = 1,
  freeze_encoder_steps: int = 0,
  freeze: tuple[str, ...] = (),
  prompt_loss: bool = False,
  xla_options: dict | None = None,
  lora: LoraConfig | None = None,
  lora_base_dtype: str = 'float32',
  model_dir: str | None = None,
  start: Callable[[], None] = lambda: None,
  say: Callable[[str], None] = print,
  compiler: Callable = compilation.compile_or_overflow,
  tried: Callable[[float], list] | None = None,
  instead: Callable | None = None,
) -> dict:
  """Compiles a run's step for a pod, and reports what it will do.

  Args:
    lengths, batch_size, train_steps, model_config, optimizer_config, rules,
      seed, z_loss, micro_batches, freeze_encoder_steps, freeze, prompt_loss,
      xla_options, lora, lora_base_dtype: see `trainer.train`. The step planned
      is the one that trains all parameters but those of `freeze`, or all
      adapters.
    make_mesh: called with devices=.
    topology: 'v5p:4x4x8', or slices of it, '2 * v5p:4x4x8'. None: the devices
      of this machine, whose speed and memory are not known.
    packed: rows of several documents, which have positions of their own.
    model_dir: gets plan.json; None writes nothing.
    start: called before this machine's devices are used.
    say: prints a line.
    compiler: in place of `compilation.compile_or_overflow`.
    tried: called with the bytes of a step that does not fit; returns changes
      that do, see `suggestions.find_fitting`. None, or no changes: those of
      `suggestions.estimate_train_changes` are reported.
    instead: gets all of these settings by name, in place of planning.

  Returns:
    What plan.json holds; None for what is not known. Sizes are a device's, in
    bytes unless the name says GiB; times in seconds; ranges (least, most).

  Raises:
    ValueError: settings that do not fit each other or the pod, or libtpu is
      missing.
  """
  if lengths is None:
    lengths = task_registry.Lengths.of_model(model_config).as_setting()
  given = dict(locals())
  if instead is not None:
    return instead(given)
  fileio.check_output_folder('MODEL_DIR', model_dir)
  target = hardware.find_target(topology, make_mesh, start)
  sizes, mesh = task_registry.Lengths.of(lengths), target.mesh
  config_checks.check_sizes(
    mesh, rules, model_config, sizes, batch_size, micro_batches
  )
  job = TrainStep.of(given, mesh)
  say(f'compiling the step for {target}')
  clock, traced = time.perf_counter(), job.trace()
  options = xla_options or {}
  compiled, overflow = compiler(traced, target, options)
  result = {
    'topology': topology,
    'mesh': dict(mesh.shape),
    'devices': mesh.size,
    'packed': packed,
    'versions': hardware.installed_versions(),
    'compile_seconds': time.perf_counter() - clock,
    **_account(job, compiled, overflow, target.pod),
    **_count_flops(given, job, traced),
  }
  result |= _estimate(result, compiled, traced, target, options)
  tokens = batch_size * sum(sizes.both)
  result |= step_time.project_run(result, target, tokens, train_steps)
  result['warnings'] = plan_warnings.train_warnings(result, job, sizes, target)
  result |= _explain_overflow(result, given, job, traced, tried)
  say(report.train_page(result, target.pod))
  report.write(result, model_dir)
  return result


def _account(job: TrainStep, compiled, overflow, pod) -> dict:
  """Returns `memory.account` of the step, and sizes of its state."""
  state = job.state
  arguments = {
    'parameters': device_bytes((state.params, job.base)),
    'optimizer': device_bytes((state.step, state.opt_state)),
    'batch': device_bytes(job.batch),
  }
  return {
    'params': job.params,
    'checkpoint_bytes': memory.total_bytes(state),
    **memory.account(arguments, compiled, overflow, pod),
  }


def _count_flops(given: dict, job: TrainStep, traced) -> dict:
  """Returns FLOPs of a step, by formula and counted, the hardware's, too."""
  sizes = task_registry.Lengths.of(given['lengths']).both
  adapted = given['lora'] is not None
  return {
    'model_flops': flops_lib.train_flops(
      job.config,
      given['batch_size'],
      *sizes,
      adapted=adapted,
      prompt_loss=given['prompt_loss'],
    ),
    'flops_counted': job.counted_flops(),
    **hardware_flops(traced.jaxpr.jaxpr),
  }


def _estimate(result: dict, compiled, traced, target, options: dict) -> dict:
  """Returns `step_time.estimate`, its time as `step_time_range_s`."""
  estimate = dict.fromkeys(step_time.ESTIMATES)
  if compiled:
    text = compilation.program_text(compiled, traced, target, options)
    kernels = result['kernel_flops']
    products = result['hardware_flops'] - kernels
    estimate = step_time.estimate(hlo.parse(text), target, kernels, products)
  estimate['step_time_range_s'] = estimate.pop('time_range_s')
  return estimate


def _explain_overflow(
  result: dict, given: dict, job: TrainStep, traced, tried: Callable | None
) -> dict:
  """Returns `changes`, and `largest_buffers`, of a step that does not fit."""
  if result['fits'] is not False:
    return {'changes': []}
  axes, B = given['rules'].mesh_axes('batch'), given['batch_size']
  shards = math.prod(job.mesh.shape[axis] for axis in axes)
  return {
    'largest_buffers': result['largest_buffers']
    or memory.loop_residuals(traced.jaxpr.jaxpr, B, shards),
    'changes': (tried and tried(result['memory']['peak']))
    or suggestions.estimate_train_changes(result, given, job.mesh, B // shards),
  }
