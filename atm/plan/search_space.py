"""Candidates of a search, and what is known of them before anything compiles.

A candidate is a mesh, what remat keeps and a number of micro-batches. Two
figures decide which ones are worth a compilation: memory that it needs at
least, and a step's time by a formula. S, T, D, L as in transformer.py.
"""

import dataclasses
import functools
import itertools
import math

import jax

from atm.data import task_registry
from atm.model import remat as remat_lib
from atm.parallel import mesh as mesh_lib
from atm.parallel.device_memory import device_bytes
from atm.parallel.sharding import NamedSharding
from atm.plan import hardware, memory, step_time, workers
from atm.plan.train_program import TrainStep, hardware_flops, remove_dead_code
from atm.train import config_checks

POWERS = 1, 2, 4, 8  # of two: tensor, micro-batches


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Settings of a run; its `slice` is the pod's."""

  data: int
  fsdp: int
  tensor: int
  remat: str
  micro_batches: int
  rounded: bool = False  # moments in bfloat16

  @property
  def mesh(self) -> dict[str, int]:
    return {axis: getattr(self, axis) for axis in ('data', 'fsdp', 'tensor')}

  def __str__(self):
    axes = ', '.join(f'{axis} {n}' for axis, n in self.mesh.items())
    return f'{axes}; remat {self.remat}; {self.micro_batches} micro-batch(es)'

  def bindings(self) -> list[str]:
    """Returns lines of gin."""
    return [
      *(f'sharding.mesh.{axis} = {n}' for axis, n in self.mesh.items()),
      f'model.Config.remat = {self.remat!r}',
      f'MICRO_BATCHES = {self.micro_batches}',
      *(["MOMENTS_DTYPE = 'bfloat16'"] * self.rounded),
    ]

  def settings(self, given: dict, slices: int) -> dict:
    """Returns a run's portable settings of `train_plan.plan`, changed."""
    axes = {'slice': slices, **self.mesh}
    config, replace = given['optimizer_config'], dataclasses.replace
    if self.rounded:
      config = replace(config, moments_dtype='bfloat16')
    return {
      **workers.portable_settings(given),
      'make_mesh': functools.partial(mesh_lib.make_mesh, **axes),
      'model_config': replace(given['model_config'], remat=self.remat),
      'optimizer_config': config,
      'micro_batches': self.micro_batches,
    }


@dataclasses.dataclass(frozen=True)
class Traced:
  """Figures of a step with one kind of remat, on any mesh."""

  kept: float  # bytes that loops over layers keep of a whole batch's rows
  offloaded: float  # bytes that they keep in the host's memory
  flops: float  # on all chips, without attention kernels
  kernel_flops: float


class CostModel:
  """Estimates memory and time of a run's candidates on a pod."""

  def __init__(self, given: dict):
    """Takes settings of `train_plan.plan`, a topology among them."""
    self.given, self.rules = given, given['rules']
    target = hardware.find_target(given['topology'], given['make_mesh'])
    self.pod, shape = target.pod, target.mesh.shape
    self.usable, self.slices = self.pod.chip.usable, shape['slice']
    self.lengths = task_registry.Lengths.of(given['lengths'])
    axes = (shape[axis] for axis in ('data', 'fsdp', 'tensor'))
    remat = given['model_config'].remat
    self.own = Candidate(*axes, remat, given['micro_batches'])
    self._devices = hardware.pod_devices(self.pod)
    # Seconds a FLOP (least, most) by the chip's share of peak.
    self.assumed_per_flop = (1 / self.pod.assumed_flops,) * 2
    # Figures of a remat take a second or two; those of a mesh are shared.
    self.traced = functools.cache(self._trace)
    self._target = functools.cache(self._make_target)
    self._state_bytes = functools.cache(self._place_state)
    # What loops keep is counted of a whole batch.
    self._step = TrainStep.of({**given, 'micro_batches': 1}, target.mesh)

  def candidates(self) -> list[Candidate]:
    """Returns all candidates that divide, the run's own first."""
    others = (
      Candidate(*mesh, remat, n)
      for mesh in self._meshes()
      for remat, n in itertools.product(remat_lib.REMAT, POWERS)
    )
    divide = (c for c in others if c != self.own and self._divides(c))
    return [self.own, *divide]

  def _meshes(self):
    """Yields (data, fsdp, tensor), `data` and `tensor` powers of two."""
    of_slice = self.pod.size // self.slices
    for tensor in POWERS:
      data = 1
      while of_slice % (data * tensor) == 0:
        yield data, of_slice // (data * tensor), tensor
        data *= 2

  def _divides(self, candidate: Candidate) -> bool:
    B, config = self.given['batch_size'], self.given['model_config']
    axes = {'slice': self.slices, **candidate.mesh}
    mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
    rules, micro = self.rules, candidate.micro_batches
    try:
      config_checks.check_sizes(mesh, rules, config, self.lengths, B, micro)
    except ValueError:
      return False
    return True

  def target(self, candidate: Candidate) -> hardware.Target:
    """Returns the pod's devices in a candidate's mesh."""
    return self._target(**candidate.mesh)

  def _make_target(self, **axes: int) -> hardware.Target:
    mesh = mesh_lib.make_mesh(self.slices, **axes, devices=self._devices)
    return hardware.Target(mesh, self.pod)

  # --- Memory

  def _trace(self, remat: str) -> Traced:
    config = dataclasses.replace(self._step.config, remat=remat)
    traced = dataclasses.replace(self._step, config=config).trace()
    jaxpr = remove_dead_code(traced.jaxpr.jaxpr)
    flops = hardware_flops(jaxpr)
    residuals = [
      memory.loop_residuals(jaxpr, self.given['batch_size'], 1, host)
      for host in (False, True)
    ]
    return Traced(
      *(sum(row['bytes'] for row in rows) for rows in residuals),
      flops['hardware_flops'] - flops['kernel_flops'],
      flops['kernel_flops'],
    )

  def least_memory(self, candidate: Candidate) -> float:
    """Returns bytes that a chip needs at least: state, and what loops keep."""
    # As if `tensor` split all that they keep: it does heads and mlp.
    parts = self._row_shards(candidate) * candidate.tensor
    parts *= candidate.micro_batches
    state = self.state_bytes(candidate)
    if candidate.rounded:
      state -= state / 3  # moments take 8 of 12 bytes a parameter, now 4
    return state + self.traced(candidate.remat).kept / parts

  def state_bytes(self, candidate: Candidate) -> int:
    """Returns bytes of a chip's parameters and optimizer."""
    return self._state_bytes(self.target(candidate).mesh)

  def _place_state(self, mesh: jax.sharding.Mesh) -> int:
    placed = lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, x.sharding.spec)
    )
    held = self._step.state, self._step.base
    return device_bytes(jax.tree.map(placed, held))

  def keeps_no_less(self, candidate: Candidate, other: Candidate) -> bool:
    """Tells whether it keeps no less than another on the same mesh."""
    kept = lambda c: self.traced(c.remat).kept
    return (
      candidate.mesh == other.mesh
      and candidate.micro_batches <= other.micro_batches
      and candidate.rounded <= other.rounded
      and kept(candidate) >= kept(other)
    )

  def _row_shards(self, candidate: Candidate) -> int:
    shape = self.target(candidate).mesh.shape
    return math.prod(shape[axis] for axis in self.rules.mesh_axes('batch'))

  # --- Time

  def formula_time(self, candidate: Candidate) -> float:
    """Returns a step's seconds by a formula, the middle of the range."""
    return sum(self.step_range(candidate, self.formula_split(candidate))) / 2

  def formula_split(self, candidate: Candidate) -> dict:
    """Returns `step_time.split_time` by a formula, without what is computed."""
    traced = self.traced(candidate.remat)
    each = traced.offloaded / (self._row_shards(candidate) * candidate.tensor)
    copies = {'to_host_bytes': each, 'from_host_bytes': each, 'waits_s': 0.0}
    rows, target = self._collectives(candidate), self.target(candidate)
    copies = copies if each else None
    return step_time.split_time(
      rows, {'unknown': 0}, traced.kernel_flops, target, copies
    )

  def _collectives(self, candidate: Candidate) -> list[dict]:
    """Returns rows like `list_collectives`'s: bytes a chip sends a step."""
    # Parameters in bfloat16, gathered for both passes of every micro-batch;
    # gradients of those that are trained, scattered in each; sums over `data`
    # and `slice`; and over `tensor` what each block of a layer adds to the
    # hidden states, forward and backward and where remat repeats it.
    c, config = candidate, self.given['model_config']
    params, trained = (
      2 * n / c.tensor for n in (self._step.params, self._step.trained)
    )
    rows = self.given['batch_size'] / self._row_shards(c)
    hidden = 2 * rows * config.d_model * (
      2 * config.encoder_layers * self.lengths.inputs
      + 3 * config.decoder_layers * self.lengths.targets
    )  # fmt: skip
    copies = c.data * self.slices
    around = lambda n: (n - 1) / n
    scattered = 1 if copies > 1 else 2  # XLA's choice: see docs/pods.md
    moved = 2 * params + scattered * trained
    sent = {
      'fsdp': moved * c.micro_batches * around(c.fsdp),
      'data': 2 * trained / c.fsdp * around(c.data),
      'slice': 2 * trained / (c.fsdp * c.data) * around(self.slices),
      'tensor': (2 + (c.remat == 'full')) * 2 * hidden * around(c.tensor),
    }
    return [
      dict(axes=(axis,), wire_bytes=n, asynchronous=False)
      for axis, n in sent.items()
      if n
    ]

  def step_range(
    self,
    candidate: Candidate,
    split: dict,
    per_flop: tuple[float, float] | None = None,
  ) -> tuple[float, float]:
    """Returns seconds (least, most) of a step, from FLOPs instead of cycles."""
    # `per_flop`: seconds a FLOP outside kernels; None: `assumed_per_flop`.
    flops = self.traced(candidate.remat).flops
    per_flop = per_flop or self.assumed_per_flop
    compute = tuple(flops * seconds for seconds in per_flop)
    return step_time.step_time({**split, 'compute': compute})
