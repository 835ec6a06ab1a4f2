"""What a training run will do on a pod, told without one.

The step that training runs, `step.train_step` with the run's own settings, is
compiled for the pod's devices, none of which need be there; what is said is
read off the compiled program, the traced one, and the shapes of the state.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.interpreters import partial_eval

from atm.data import registry
from atm.model import attention, flops, transformer
from atm.model import config as config_lib
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.parallel import xla_options as xla_options_lib
from atm.parallel.sharding import NamedSharding, Rules
from atm.plan import (
  collectives,
  compile,
  hardware,
  hlo,
  kernels,
  memory,
  step_time,
  train_report,
)
from atm.train import config_checks, optimizer, step

PLAN_FILE = 'plan.json'
LARGE = 64 * 2**20  # bytes: what a warning is worth


def plan(
  lengths: dict[str, int],
  batch_size: int,
  train_steps: int,
  model_config: config_lib.Config,
  optimizer_config: optimizer.Config,
  make_mesh: Callable = mesh_lib.make_mesh,
  rules: Rules = Rules(),
  topology: str | None = None,
  packed: bool = True,
  seed: int = 0,
  z_loss: float = 0.0,
  micro_batches: int = 1,
  freeze_encoder_steps: int = 0,
  xla_options: dict | None = None,
  model_dir: str | None = None,
  start: Callable[[], None] = lambda: None,
  say: Callable[[str], None] = print,
  compiler: Callable | None = None,
  tried: Callable | None = None,
  instead: Callable | None = None,
) -> dict:
  """Compiles a run's step for a pod, and says what it will do.

  Args:
    lengths, batch_size, train_steps, model_config, optimizer_config, rules,
      seed, z_loss, micro_batches, freeze_encoder_steps, xla_options: see
      `trainer.train`. The step planned is the one that trains all parameters.
    make_mesh: called with devices=.
    topology: 'v5p:4x4x8', or slices of it, '2 * v5p:4x4x8'. None: the devices
      of this machine, of whose speed and memory nothing is said.
    packed: rows of several documents, which have positions of their own.
    model_dir: gets plan.json; None writes nothing.
    start: called before this machine's devices are used.
    say: prints a line.
    compiler: `compile_or_overflow`, or what returns the like of it.
    tried: called with the bytes that a step needs which does not fit; returns
      changes that do, see `suggestions.fitting`, or none: then those of
      `memory.changes` are said.
    instead: gets all of these settings by name, in place of planning.

  Returns:
    What plan.json holds; None for what is not known. Sizes are a device's, in
    bytes unless the name says GiB; times in seconds; ranges (least, most).

  Raises:
    ValueError: settings that do not fit each other or the pod, or libtpu is
      missing.
  """
  if instead is not None:
    return instead(dict(locals()))
  config_checks.check_numbers(BATCH_SIZE=batch_size, TRAIN_STEPS=train_steps)
  config_checks.check_freeze(freeze_encoder_steps)
  config_checks.check_z_loss(z_loss)
  target = aim(topology, make_mesh, start)
  sizes = registry.Lengths.of(lengths)
  mesh = target.mesh
  config_checks.check_sizes(mesh, rules, model_config, sizes, batch_size)
  config_checks.check_micro_batches(mesh, rules, batch_size, micro_batches)
  net = transformer.AlexaTM(model_config)
  tx = optimizer.make(optimizer_config, freeze_encoder_steps > 0)
  state = step.abstract_state(net, tx, mesh, rules)
  batch = abstract_batch(batch_size, sizes, mesh, rules, packed)
  update = functools.partial(
    step.train_step, seed=seed, z_loss=z_loss, micro_batches=micro_batches
  )
  counted = counted_flops(update, model_config, tx, state, batch)
  say(f'compiling the step for {describe(target)}')
  clock = time.perf_counter()
  with sharding.use_mesh(mesh, rules):
    run = functools.partial(update, net, tx, frozen=False)
    traced = xla_options_lib.jit_update(run, state).trace(state, batch)
    compiled, overflow = (compiler or compile.compile_or_overflow)(
      traced, target, xla_options
    )
  made = {
    'topology': topology,
    'mesh': dict(mesh.shape),
    'devices': mesh.size,
    'packed': packed,
    'versions': versions(),
    'compile_seconds': time.perf_counter() - clock,
    'params': sum(x.size for x in jax.tree.leaves(state.params)),
    'checkpoint_bytes': memory.whole(state),
    **memory.account(state, batch, compiled, overflow, target.pod),
    'model_flops': flops.train_flops(model_config, batch_size, *sizes.both),
    'flops_counted': counted,
    **hardware_flops(traced.jaxpr.jaxpr),
    'changes': [],
  }
  text = compiled and compile.program_text(
    compiled, traced, target, xla_options
  )
  made |= estimates(text, target, made)
  made |= step_time.totals(
    made, target, batch_size * sum(sizes.both), train_steps
  )
  made['warnings'] = warnings(made, model_config, sizes, state, target)
  if made['fits'] is False:
    parts = math.prod(mesh.shape[a] for a in rules.mesh_axes('batch'))
    made['largest_buffers'] = made['largest_buffers'] or memory.kept_by_loops(
      traced.jaxpr.jaxpr, batch_size, parts
    )
    made['changes'] = (
      tried and tried(made['memory']['peak'])
    ) or memory.changes(
      made, model_config, optimizer_config, mesh, batch_size // parts,
      micro_batches,
    )  # fmt: skip
  say(train_report.page(made, target.pod))
  write(made, model_dir)
  return made


def write(made: dict, model_dir: str | None, name: str = PLAN_FILE) -> None:
  """model_dir/`name`, whole or not at all."""
  if model_dir is None:
    return
  os.makedirs(model_dir, exist_ok=True)
  path = os.path.join(model_dir, name)
  with open(path + '.tmp', 'w') as f:
    json.dump(made, f, indent=1)
  os.replace(path + '.tmp', path)


def aim(
  topology: str | None, make_mesh: Callable, start: Callable
) -> hardware.Target:
  """The devices planned for, in the run's mesh."""
  if topology is None:
    start()
    return hardware.Target(make_mesh(devices=jax.devices()), None)
  jax.config.update('jax_platforms', 'cpu')  # libtpu makes JAX look for a TPU
  # A program for absent devices could be written to the cache, but not read.
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # whether there is one is asked once
  pod = hardware.pod(topology)
  return hardware.Target(make_mesh(devices=hardware.devices(pod)), pod)


def describe(target: hardware.Target) -> str:
  axes = ' x '.join(f'{name} {n}' for name, n in target.mesh.shape.items())
  kind = target.pod.name if target.pod else f'this machine ({target.platform})'
  return f'{kind}, {target.mesh.size} device(s): {axes}'


def abstract_batch(B: int, lengths, mesh, rules: Rules, packed: bool) -> dict:
  """Returns the shapes and shardings of a batch of `batches.Batches`."""
  placed = NamedSharding(mesh, rules.spec('batch'))
  like = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(
    shape, dtype, sharding=placed
  )
  batch = {'objective': like(B)}
  kinds = ('input_tokens', 'segment_ids', *(('positions',) * packed))
  for side, length in zip(('encoder', 'decoder'), lengths.both):
    for kind in kinds:
      batch[f'{side}_{kind}'] = like(B, length)
  batch['decoder_target_tokens'] = like(B, lengths.targets)
  weights = like(B, lengths.targets, dtype=jnp.float32)
  return batch | {'decoder_loss_weights': weights}


def versions() -> dict[str, str | None]:
  found = {}
  for name in ('jax', 'jaxlib', 'libtpu'):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


# --- FLOPs


def counted_flops(
  update: Callable, config: config_lib.Config, tx, state, batch
) -> float:
  """Model FLOPs by a count over the step's traced products.

  Traced without remat and with plain attention, which compute nothing twice,
  and as one device would run it.
  """
  plain = dataclasses.replace(config, remat='none', attention='einsum')
  run = functools.partial(update, transformer.AlexaTM(plain), tx)
  bare = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  traced = jax.make_jaxpr(run)(*jax.tree.map(bare, (state, batch)))
  return flops.jaxpr_flops(live(traced.jaxpr))


def hardware_flops(jaxpr) -> dict[str, float]:
  """FLOPs that are computed, remat's repetitions included; kernels' of them."""
  jaxpr = live(jaxpr)
  all_of_it = flops.jaxpr_flops(jaxpr)
  outside = flops.jaxpr_flops(jaxpr, kernels=False)
  return {'hardware_flops': all_of_it, 'kernel_flops': all_of_it - outside}


def live(jaxpr):
  """Without what nothing reads, as XLA compiles it."""
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


# --- Time


def estimates(text: str | None, target: hardware.Target, made: dict) -> dict:
  """What the compiled program says of traffic, cycles and large arrays."""
  nothing = (
    'collectives', 'cycles', 'largest_arrays', 'step_time_range_s',
    'host_copies',
  )  # fmt: skip
  if text is None:
    return dict.fromkeys((*nothing, 'time_split_s', 'unknown_loops'))
  program = hlo.Program(text)
  rows = collectives.collectives(program, dict(target.mesh.shape))
  split = time_range = host = None
  cycles, scheduled = program.cycles(), {}
  if target.pod and len(cycles) > 1:  # quick plans stop before there are any
    scheduled = kernels.cycles(program, target.pod)
    cycles = program.cycles(scheduled)
  if target.pod is not None:
    host = step_time.host_copies(program, scheduled, target.pod.chip)
    split = step_time.time_split(
      rows, cycles, made['kernel_flops'], target, host
    )
    time_range = step_time.step_time(split)
  return {
    'collectives': rows,
    'cycles': cycles,
    'largest_arrays': program.largest(),
    'unknown_loops': program.unknown_loops,
    'host_copies': host,
    'time_split_s': split,
    'step_time_range_s': time_range,
  }


# --- Warnings


def warnings(
  made: dict, config, lengths, state, target: hardware.Target
) -> list[str]:
  """What is not as it was meant, each with what to do."""
  found = [
    *of_reductions(made['collectives'] or (), target.mesh),
    *of_copies(state, target.mesh),
    *of_padding(config, lengths, target.platform),
  ]
  off = abs(made['flops_counted'] / made['model_flops'] - 1)
  if off > 0.02:
    found.append(f'the formula of model FLOPs is {off:.1%} off the count')
  if made['unknown_loops']:
    found.append(
      f'{len(made["unknown_loops"])} loops of unknown length are counted once: '
      'traffic and time are more than said'
    )
  if target.pod and (skew := hardware.version_skew()):
    found.append(skew)
  return found


def of_reductions(rows, mesh) -> list[str]:
  """Sums over the axis that splits parameters, where each keeps but a part."""
  found = []
  for row in rows:
    if row['kind'] != 'all-reduce' or 'fsdp' not in row['axes']:
      continue
    axes, padded = ' x '.join(row['axes']), row.get('padded', 0)
    if padded > LARGE:
      found.append(
        f'gathers over {axes} are done as all-reduces of arrays that are zero '
        f"but for a part: {padded / 1e9:.1f} GB on the wire, twice a gather's"
      )
    if row['wire_bytes'] - padded > LARGE:
      found.append(
        f'all-reduce over {axes}, '
        f'{(row["wire_bytes"] - padded) / 1e9:.1f} GB on the wire, most of it '
        f'at {row["source"] or "?"}: a reduce-scatter would send half'
      )
  if found and mesh.shape['data'] == mesh.shape['slice'] == 1:
    found[-1] += '; mesh.data = 2 beside fsdp may bring it'
  return found


def of_copies(state, mesh) -> list[str]:
  """Matrices that every device has whole, though the mesh splits some."""
  split = math.prod(mesh.shape[axis] for axis in ('fsdp', 'tensor'))
  found = []
  flat = jax.tree_util.tree_flatten_with_path(state.params)[0]
  for path, x in flat if split > 1 else ():
    size = x.size * x.dtype.itemsize
    if x.sharding.is_fully_replicated and size > LARGE:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      found.append(
        f'{name} {x.shape} is whole on every device: look at sharding.Rules'
      )
  return found


def of_padding(config: config_lib.Config, lengths, platform: str) -> list[str]:
  """Work of splash kernels on what fills their blocks."""
  uses = config.attention == 'splash' or (
    config.attention == 'auto' and platform == 'tpu'
  )
  if not uses or config.attention_dropout:
    return []
  up = lambda n: math.ceil(n / attention.BLOCK) * attention.BLOCK
  head = config.d_model // config.encoder_heads
  sizes = dict(zip(('inputs', 'targets', 'a head'), (*lengths.both, head)))
  return [
    f'attention kernels fill {name} of {n} up to {up(n)}: '
    f'{1 - n / up(n):.0%} of their work is padding'
    for name, n in sizes.items()
    if up(n) > 1.05 * n
  ]
