"""The programs of `atm infer`, compiled for a batch of rows on any devices.

What one batch takes of a device and how long; decode_plan.py asks for several.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from atm.inference import beam_search, bucketing, generate, sampling
from atm.model import config as config_lib
from atm.model import flops as flops_lib
from atm.model import parameters, quantized, transformer
from atm.parallel import sharding
from atm.parallel.device_memory import device_bytes
from atm.parallel.sharding import NamedSharding, Rules
from atm.plan import (
  compilation,
  decode_step_time,
  hardware,
  hlo,
  memory,
  step_time,
  train_program,
)


@dataclasses.dataclass(frozen=True)
class ModelJob:
  """A model that serves on devices that need not be here."""

  model_config: config_lib.ModelConfig  # as it is trained
  weights: str | None  # see `api.load`
  rules: Rules
  target: hardware.Target

  def __reduce__(self):
    # Without the model, whose shardings hold devices, which do not pickle.
    names = [field.name for field in dataclasses.fields(self)]
    return type(self), tuple(getattr(self, name) for name in names)

  @functools.cached_property
  def net(self) -> transformer.AlexaTM:
    """The model; weights in bfloat16 compute in it."""
    config = self.model_config
    if self.weights == 'bfloat16':
      config = dataclasses.replace(config, dtype='bfloat16')
    return transformer.AlexaTM(config)

  @functools.cached_property
  def float_params(self) -> dict:
    """Abstract parameters as they are trained, with shardings."""
    net = transformer.AlexaTM(self.model_config)
    return parameters.abstract_params(net, self.target.mesh, self.rules)

  @functools.cached_property
  def params(self) -> dict:
    """Abstract parameters as `api.load` has them, with shardings."""
    mesh, rules, params = self.target.mesh, self.rules, self.float_params
    if self.weights == 'int8':
      params = quantized.abstract_quantized(params)
    elif self.weights == 'bfloat16':
      halved = lambda x: _place(x, x.sharding, jnp.bfloat16)
      params = jax.tree.map(halved, params)
    with sharding.use_mesh(mesh, rules):
      return generate.prepare_params(self.net, params, unstack_abstract)

  def describe_params(self) -> dict:
    """Returns how many parameters there are, and what they are held in."""
    floats = jax.tree.leaves(self.float_params)
    held = self.weights or str(floats[0].dtype)
    return {'weights': held, 'params': sum(x.size for x in floats)}

  @property
  def unit(self) -> int:
    """Data shards: rows come in multiples."""
    mesh = self.target.mesh
    return math.prod(mesh.shape[a] for a in self.rules.mesh_axes('batch'))


@dataclasses.dataclass(frozen=True)
class DecodeJob(ModelJob):
  """A program that decodes or encodes, but for how many rows."""

  kind: str  # 'decode' or 'encode'
  config: sampling.Config  # max_tokens are those asked for
  longest: int  # ids of an encoder input

  @property
  def room(self) -> tuple[int, int]:
    """(T, tokens that are written at most)."""
    shape = bucketing.decoder_shape(self.net.config, 1, self.config.max_tokens)
    return shape[1:]

  def batch(self, rows: int) -> dict:
    """Returns shapes of `api.Model`'s batch of so many full rows."""
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
    return dict(sides, prefix=like(B, n), lengths=like(B), numbers=like(B))

  def trace(self, batch: dict) -> jax.stages.Traced:
    """Traces the program that runs for a batch."""
    given = self.net, self.params
    with sharding.use_mesh(self.target.mesh, self.rules):
      if self.kind == 'encode':
        run = jax.jit(generate.encode, static_argnums=0, keep_unused=True)
        return run.trace(*given, batch['tokens'], batch['segments'])
      T, room = self.room
      sampler = sampling.Sampler.from_config(self.config).replace(
        max_tokens=np.int32(room)
      )
      run, args, named = bucketing.select_program(
        *given, sampler, batch, self.config, T
      )
      return run.trace(*args, **named)

  def caches(self, batch: dict) -> list:
    """Returns abstract `layers.KVCache`s, as the loop over tokens has them."""
    if self.kind == 'encode':
      return []
    bare, c = train_program.without_sharding, self.config
    params, named = jax.tree.map(bare, (self.params, batch))
    start, fixed = generate.start_decoding, dict(results=c.results, seed=0)
    if c.beams > 1:
      del named['numbers']
      start, fixed = beam_search.start_beams, dict(k=c.beams)
    run = functools.partial(start, self.net, T=self.room[0], **fixed)
    rows = jax.eval_shape(run, params, sampling.Sampler.from_config(c), **named)
    spec = self.rules.spec('batch', 'heads', None, None)
    placed = NamedSharding(self.target.mesh, spec)
    return jax.tree.map(lambda x: _place(x, placed), rows.caches)

  def encode_flops(self, B: int, S: int) -> float:
    """Counts model FLOPs of encoding B rows of S tokens."""
    # As `flops.train_flops` has them: with plain attention, which multiplies no
    # padding. Those of one row, B times.
    net = transformer.AlexaTM(
      dataclasses.replace(self.net.config, attention='einsum')
    )
    ids = jax.ShapeDtypeStruct((1, S), jnp.int32)
    params = jax.eval_shape(net.init, jax.random.key(0), ids, ids)['params']
    run = functools.partial(generate.encode, net)
    jaxpr = jax.make_jaxpr(run)(params, ids, ids).jaxpr
    return B * flops_lib.jaxpr_flops(train_program.remove_dead_code(jaxpr))


def _place(x, sharding, dtype=None) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding)


def unstack_abstract(layers: dict, count: int) -> dict:
  """Unstacks abstract layers, with the shardings that JAX chooses."""
  lowered = generate.unstack_layers.lower(layers, count)
  shardings = lowered.compile().output_shardings
  return jax.tree.map(_place, lowered.out_info, shardings)


# --- One batch


def plan_batch(job: DecodeJob, rows: int) -> dict:
  """Compiles a batch's program whole; returns what it takes and how long."""
  batch, clock = job.batch(rows), time.perf_counter()
  traced = job.trace(batch)
  compiled, overflow = compilation.compile_or_overflow(traced, job.target, None)
  caches, B = job.caches(batch), batch['tokens'].shape[0]
  arguments = {
    'parameters': device_bytes(job.params),
    'batch': device_bytes(batch),
    'cache': device_bytes(caches),
  }
  result = {
    'batch_size': B,
    'compile_seconds': time.perf_counter() - clock,
    **memory.account(arguments, compiled, overflow, job.target.pod),
    'cache_row_bytes': memory.total_bytes(caches) // B,
    'cache_row_bytes_a_chip': arguments['cache'] * job.unit // B,
    'whole': True,
    # Of `decode_step.estimate_token`; and done once for a batch, of
    # `step_time.estimate`.
    'token': None,
    'prefill': None,
  }
  del result['memory']['host']  # programs that decode leave nothing there
  if compiled:
    program = hlo.parse(compiled.as_text())
    flops = train_program.hardware_flops(traced.jaxpr.jaxpr)['kernel_flops']
    if job.kind == 'decode':
      result['token'] = decode_step_time.estimate_token(
        program, job.params, caches, job.net.config, job.target
      )
      program = program.without_loop(decode_step_time.token_loop(program))
    result['prefill'] = step_time.estimate(program, job.target, flops)
    del result['prefill']['host_copies']
  return result | _rates(job, result)


def measure_peak(
  job: DecodeJob, rows: int, say: Callable, compiler: Callable
) -> dict:
  """Returns `peak`, bytes of a device; arguments as in `workers.run_plans`."""
  traced = job.trace(job.batch(rows))
  compiled, _ = compiler(traced, job.target, None)
  return {'peak': compiled.memory_analysis().peak_memory_in_bytes}


def _rates(job: DecodeJob, result: dict) -> dict:
  """Returns tokens a second (least, most) of all devices; None if not known."""
  # Decoding: the first while all rows are being written, the second with what
  # comes before and all tokens written. Encoding: tokens that are read.
  names = 'tokens_per_second_range', 'whole_batch_tokens_per_second_range'
  rates = dict.fromkeys((*names, 'batch_time_range_s', 'mfu_range'))
  once = result['prefill'] and result['prefill']['time_range_s']
  if once is None:
    return rates
  per_second = lambda n, seconds: tuple(n / t for t in reversed(seconds))
  B, S = job.batch(result['batch_size'])['tokens'].shape
  if job.kind == 'encode':
    flops = job.encode_flops(B, S)
    peak = job.target.pod.chip.peak * job.target.mesh.size
    return rates | {
      'model_flops': flops,
      'batch_time_range_s': once,
      names[0]: per_second(B * S, once),
      'mfu_range': per_second(flops / peak, once),
    }
  written, turns = B * job.config.results, job.room[1] - 1
  each = result['token']['time_range_s']
  whole = tuple(a + turns * b for a, b in zip(once, each))
  return rates | {
    'batch_time_range_s': whole,
    names[0]: per_second(written, each),
    names[1]: per_second(written * (turns + 1), whole),
  }
