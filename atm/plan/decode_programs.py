"""The programs of `atm infer`, compiled for a batch of rows on any devices.

What one batch takes of a device and how long; plan_decode.py asks for several.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from atm.inference import beam_search, bucketing, generate, sampling
from atm.messages import check_choice
from atm.model import config as config_lib
from atm.model import flops as flops_lib
from atm.model import parameters, transformer
from atm.parallel import sharding
from atm.parallel.sharding import NamedSharding, Rules
from atm.plan import (
  collectives,
  decode_step,
  hardware,
  hlo,
  kernels,
  memory,
  step_time,
  train_plan,
)


@dataclasses.dataclass(frozen=True)
class Job:
  """What a model does for rows, but for how many they are.

  Attributes:
    kind: 'decode' or 'encode'.
    net, params: the model, and abstract parameters with shardings.
    config: how tokens are chosen; its max_tokens are those asked for.
    longest: ids of an encoder input.
    rules: logical to mesh axes.
    target: see chips.Target.
  """

  kind: str
  net: transformer.AlexaTM
  params: dict
  config: sampling.Config
  longest: int
  rules: Rules
  target: hardware.Target

  @property
  def unit(self) -> int:
    """Data shards: rows come in multiples."""
    mesh = self.target.mesh
    return math.prod(mesh.shape[a] for a in self.rules.mesh_axes('batch'))

  def batch(self, rows: int) -> dict:
    """Shapes of `api.Model`'s batch of so many rows, all of them full."""
    mesh, config = self.target.mesh, self.net.config
    B, S = bucketing.encoder_shape(config, mesh, self.longest, rows, rows)
    n, _, _ = bucketing.decoder_shape(config, 1, self.config.max_tokens)
    placed = NamedSharding(mesh, self.rules.spec('batch'))
    like = lambda *shape: jax.ShapeDtypeStruct(
      shape, jnp.int32, sharding=placed
    )
    sides = dict(tokens=like(B, S), segments=like(B, S))
    if self.kind == 'encode':
      return sides
    return dict(sides, prefix=like(B, n), lengths=like(B), number=like(B))

  @property
  def room(self) -> tuple[int, int]:
    """(T, tokens that are written at most)."""
    return bucketing.decoder_shape(self.net.config, 1, self.config.max_tokens)[
      1:
    ]

  def traced(self, batch: dict):
    """The program that runs for a batch."""
    given = self.net, self.params
    with sharding.use_mesh(self.target.mesh, self.rules):
      if self.kind == 'encode':
        run = jax.jit(generate.encode, static_argnums=0, keep_unused=True)
        return run.trace(*given, batch['tokens'], batch['segments'])
      T, room = self.room
      choice = sampling.Sampler.from_config(self.config).replace(
        max_tokens=np.int32(room)
      )
      run, args, named = bucketing.select_program(
        *given, choice, batch, self.config, T
      )
      return run.trace(*args, **named)

  def caches(self, batch: dict) -> list:
    """Abstract `layers.KVCache`s, as the loop over tokens carries them."""
    if self.kind == 'encode':
      return []
    c, named = self.config, {k: bare(v) for k, v in batch.items()}
    numbers = named.pop('number')
    begin = functools.partial(beam_search.start_beams, k=c.beams)
    if c.beams == 1:
      begin = functools.partial(
        generate.start_decoding, results=c.results, seed=0
      )
      named |= dict(numbers=numbers)
    rows = jax.eval_shape(
      functools.partial(begin, self.net, T=self.room[0]),
      jax.tree.map(bare, self.params), sampling.Sampler.from_config(c), **named,
    )  # fmt: skip
    placed = NamedSharding(
      self.target.mesh, self.rules.spec('batch', 'heads', None, None)
    )
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
      rows.caches,
    )


def bare(x) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def abstract_model(config: config_lib.Config, weights, mesh, rules: Rules):
  """(model, abstract parameters) as `api.load` has them, ready to decode."""
  if weights is not None:
    check_choice('WEIGHTS', weights, ('float32', 'bfloat16'))
  params = parameters.abstract_params(transformer.AlexaTM(config), mesh, rules)
  if weights == 'bfloat16':
    config = dataclasses.replace(config, dtype='bfloat16')
    params = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, jnp.bfloat16, sharding=x.sharding
      ),
      params,
    )
  net = transformer.AlexaTM(config)
  with sharding.use_mesh(mesh, rules):
    return net, generate.prepare_params(net, params, abstractly_apart)


def abstractly_apart(layers: dict, count: int) -> dict:
  """Unstacks abstract layers, with the shardings that JAX chooses."""
  lowered = generate.unstack_layers.lower(layers, count)
  return jax.tree.map(
    lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
    lowered.out_info,
    lowered.compile().output_shardings,
  )


# --- One batch


def rows_planned(job: Job, rows: int) -> dict:
  """What so many rows take, and how long.

  Returns:
    `batch_size`, `compile_seconds`, `token` (of `decode_step.figures`),
    `prefill`, and what `account` and `speed` return.
  """
  batch, clock = job.batch(rows), time.perf_counter()
  traced = job.traced(batch)
  compiled, overflow = compile_or_overflow(traced)
  caches = job.caches(batch)
  made = {
    'batch_size': batch['tokens'].shape[0],
    'compile_seconds': time.perf_counter() - clock,
    **account(job, batch, caches, compiled, overflow),
    'whole': True,
    'token': None,
    'prefill': None,
  }
  text = compiled and hlo.Program(compiled.as_text())
  if text is not None:
    flops = train_plan.hardware_flops(traced.jaxpr.jaxpr)['kernel_flops']
    if job.kind == 'decode':
      loop = decode_step.loop_of(text)
      made['token'] = decode_step.figures(
        text, job.params, caches, job.net.config, job.target
      )
      text = text.without(loop)
    made['prefill'] = prefill(text, flops, job.target)
  return made | speed(job, made)


def compile_or_overflow(traced):
  """As `compile.compile_or_overflow`, with no options: `atm infer` has none."""
  try:
    return traced.lower().compile(), None
  except jax.errors.JaxRuntimeError as e:
    if overflow := memory.overflow(str(e)):
      return None, overflow
    raise


def account(job: Job, batch, caches, compiled, overflow) -> dict:
  """What a device holds, and whether it fits; see `memory.account`."""
  parts = {
    'parameters': memory.held(job.params),
    'batch': memory.held(batch),
    'cache': memory.held(caches),
  }
  if compiled is not None:
    said = compiled.memory_analysis()
    heap, peak = said.temp_size_in_bytes, said.peak_memory_in_bytes
  else:
    heap, peak = None, overflow['used']  # arguments and all
  pod = job.target.pod
  usable = overflow['usable'] if overflow else pod and pod.chip.usable
  B = batch['tokens'].shape[0]
  return {
    'memory': {
      **parts,
      'temporaries': max(0, peak - sum(parts.values())),
      'heap': heap,
      'peak': peak,
    },
    'cache_row_bytes': memory.whole(caches) // B,
    'cache_row_bytes_a_chip': parts['cache'] * job.unit // B,
    'peak_hbm_gib': peak / 2**30,
    'usable_hbm_gib': usable / 2**30 if usable else None,
    'fits': (peak <= usable and not overflow) if usable else None,
    'largest_buffers': overflow['largest'] if overflow else None,
  }


def prefill(text: hlo.Program, kernel_flops: float, target) -> dict:
  """What is done once for a batch: its encoder, and of a decoder's prefix."""
  rows = collectives.collectives(text, dict(target.mesh.shape))
  cycles = text.cycles(target.pod and kernels.cycles(text, target.pod))
  split = time_range = None
  if target.pod is not None:
    split = step_time.time_split(rows, cycles, kernel_flops, target)
    time_range = step_time.step_time(split)
  return {
    'collectives': rows,
    'cycles': cycles,
    'largest_arrays': text.largest(),
    'unknown_loops': text.unknown_loops,
    'time_split_s': split,
    'time_range_s': time_range,
  }


def speed(job: Job, made: dict) -> dict:
  """Tokens a second (least, most), those of all devices; None if not known.

  Decoding: `tokens_per_second_range` while all rows are being written, and
  `whole_batch_tokens_per_second_range` with what comes before and all tokens
  written. Encoding: tokens that are read.
  """
  names = 'tokens_per_second_range', 'whole_batch_tokens_per_second_range'
  out = dict.fromkeys((*names, 'batch_time_range_s', 'mfu_range'))
  once = made['prefill'] and made['prefill']['time_range_s']
  if once is None:
    return out
  B, S = job.batch(made['batch_size'])['tokens'].shape
  if job.kind == 'encode':
    flops = encode_flops(job.net.config, B, S)
    peak = job.target.pod.chip.peak * job.target.mesh.size
    out['model_flops'] = flops
    out['batch_time_range_s'] = once
    out[names[0]] = tuple(B * S / t for t in reversed(once))
    out['mfu_range'] = tuple(flops / peak / t for t in reversed(once))
    return out
  written, turns = B * job.config.results, job.room[1] - 1
  each = made['token']['time_range_s']
  whole = tuple(a + turns * b for a, b in zip(once, each))
  out['batch_time_range_s'] = whole
  out[names[0]] = tuple(written / t for t in reversed(each))
  out[names[1]] = tuple(written * (turns + 1) / t for t in reversed(whole))
  return out


def encode_flops(config: config_lib.Config, B: int, S: int) -> float:
  """Model FLOPs of the encoder's products, as `flops.train_flops` has them.

  Counted over those of one row, with plain attention.
  """
  net = transformer.AlexaTM(dataclasses.replace(config, attention='einsum'))
  ids = jax.ShapeDtypeStruct((1, S), jnp.int32)
  params = jax.eval_shape(net.init, jax.random.key(0), ids, ids)['params']
  run = functools.partial(generate.encode, net)
  return B * flops_lib.jaxpr_flops(
    train_plan.live(jax.make_jaxpr(run)(params, ids, ids).jaxpr)
  )
