"""The programs of a serving engine, compiled for devices that need not be here.

What each takes of a device and how long; serve_plan.py asks for several.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax

from atm.inference import api, generate
from atm.parallel.device_memory import device_bytes
from atm.plan import (
  compilation,
  decode_step_time,
  hlo,
  memory,
  step_time,
  train_program,
)
from atm.plan.decode_programs import ModelJob, unstack_abstract
from atm.serve.beam_programs import BeamPrograms
from atm.serve.engine_sizes import EngineSizes
from atm.serve.program_shapes import share_of_copies
from atm.serve.programs import Programs


@dataclasses.dataclass(frozen=True)
class ServeJob(ModelJob):
  """An engine of some sizes, see `serve.programs`."""

  sizes: EngineSizes

  @functools.cached_property
  def lanes(self) -> dict[str, Programs]:
    """The engine's programs by 'rows' and 'beams', of shapes, not arrays."""
    config, mesh = self.net.config, self.target.mesh
    model = api.Model(config, self.params, None, mesh, self.rules, 0)
    params = self.params
    with model._use():
      params = generate.unstack_encoder(self.net, params, unstack_abstract)
    sizes = self.sizes.fit(config, mesh, self.rules)
    lanes = {'rows': Programs(model, sizes, params)}
    if sizes.beam_groups:
      lanes['beams'] = BeamPrograms(model, sizes, params)
    return lanes

  @property
  def slots(self) -> int:
    """How many rows decode together, beams apart."""
    return self.lanes['rows'].rows

  def trace(self, kind: str, shape: tuple, lane: str) -> jax.stages.Traced:
    """Traces a program: 'admit' of (B, S) or 'decode' of (rows, T, S)."""
    programs = self.lanes[lane]
    if kind == 'admit':
      return programs.trace_admit(*shape)
    return programs.trace_decode(shape)

  def caches(self, window: tuple[int, int, int]) -> list:
    """Returns abstract `layers.KVCache`s of what a window has of the slots."""
    R, T, S = window
    cut = lambda x, *sides: jax.ShapeDtypeStruct(
      sides, jax.tree.leaves(x)[0].dtype,
      sharding=jax.tree.leaves(x)[0].sharding,
    )  # fmt: skip
    caches = []
    for x in self.lanes['rows'].abstract_state.caches:
      _, H, K, _ = jax.tree.leaves(x.self_keys)[0].shape
      caches.append(
        x.replace(
          self_keys=cut(x.self_keys, R, H, K, T),
          self_values=cut(x.self_values, R, H, T, K),
          cross_keys=cut(x.cross_keys, R, H, K, S),
          cross_values=cut(x.cross_values, R, H, S, K),
        )
      )
    return caches

  def arguments(self) -> dict[str, int]:
    """Returns bytes that a device always holds, by what has them."""
    states = self.lanes['rows'].abstract_states
    caches = [x for state in states for x in state.caches]
    keep = lambda *names: device_bytes(
      [getattr(x, name) for x in caches for name in names]
    )
    return {
      'parameters': device_bytes(self.lanes['rows'].params),
      'self cache': keep('self_keys', 'self_values'),
      'cross cache': keep('cross_keys', 'cross_values'),
      'settings of rows': device_bytes([x.replace(caches=[]) for x in states]),
      'beams': self.lane_bytes('beams'),
    }

  def fixed_bytes(self) -> int:
    """Returns bytes of a device beside the caches of slots."""
    held = self.arguments()
    return sum(held.values()) - held['self cache'] - held['cross cache']

  def lane_bytes(self, lane: str) -> int:
    """Returns bytes of a device for the state of a lane, if there is one."""
    programs = self.lanes.get(lane)
    return device_bytes(programs.abstract_states) if programs else 0

  def beside(self, lane: str) -> int:
    """Returns bytes that a device holds while a program of a lane runs."""
    return sum(self.lane_bytes(x) for x in self.lanes if x != lane)

  def list_dearest(self) -> list[tuple[str, tuple, str]]:
    """Lists (kind, shape, lane) of programs: one needs the most memory."""
    rows = self.lanes['rows']
    copies = lambda window: share_of_copies(window, rows.sizes)
    size = lambda shape: shape[0] * shape[1]
    found = [
      ('decode', max(rows.windows), 'rows'),
      ('decode', max(rows.windows, key=copies), 'rows'),
      ('admit', max(rows.batches, key=size), 'rows'),
    ]
    if 'beams' in self.lanes:
      found.append(('decode', max(self.lanes['beams'].windows), 'beams'))
    return list(dict.fromkeys(found))


def place_program(
  job: ServeJob, kind: str, shape: tuple, lane: str, say: Callable,
  compiler: Callable,
) -> dict:  # fmt: skip
  """Returns `peak`, bytes of a device; arguments as in `workers.run_plans`."""
  compiled, _ = compiler(job.trace(kind, shape, lane), job.target, None)
  peak = compiled.memory_analysis().peak_memory_in_bytes
  return {'peak': peak + job.beside(lane)}


def plan_program(
  job: ServeJob, kind: str, shape: tuple, lane: str = 'rows'
) -> dict:
  """Compiles one program whole; returns what it takes and how long."""
  clock = time.perf_counter()
  traced = job.trace(kind, shape, lane)
  compiled, overflow = compilation.compile_or_overflow(traced, job.target, None)
  result = {
    'kind': kind,
    'shape': shape,
    'lane': lane,
    **memory.account(
      job.arguments(), compiled, overflow, job.target.pod, job.beside(lane)
    ),
    'compile_seconds': time.perf_counter() - clock,
    'whole': True,
    'estimate': None,
    'asked': None,
  }
  if compiled:
    program = hlo.parse(compiled.as_text())
    # The dear choices of tokens are branches that are taken where rows ask.
    plain = program.with_first_branches()
    if kind == 'admit':
      flops = train_program.hardware_flops(traced.jaxpr.jaxpr)['kernel_flops']
      result['estimate'] = step_time.estimate(plain, job.target, flops)
    else:
      estimate = functools.partial(
        decode_step_time.estimate_token,
        params=job.params,
        caches=job.caches(shape),
        config=job.net.config,
        target=job.target,
      )
      result['estimate'], result['asked'] = estimate(plain), estimate(program)
  return result
