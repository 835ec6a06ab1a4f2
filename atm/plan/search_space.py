"""What a search may choose, and what is known of it before anything compiles.

A candidate is a mesh, what remat keeps and a number of micro-batches. Two
figures decide which ones are worth a compilation: memory that it needs at
least, and a step's time by a formula. S, T, D, L as in model.py.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax

from atm.data import registry
from atm.model import remat as remat_lib
from atm.model import transformer
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding, xla_options
from atm.parallel.sharding import NamedSharding
from atm.plan import hardware, memory, step_time, train_plan
from atm.train import config_checks, optimizer, step

TENSOR = 1, 2, 4, 8
MICRO_BATCHES = 1, 2, 4, 8


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Settings of a run; `slice` is the pod's."""

  data: int
  fsdp: int
  tensor: int
  remat: str
  micro_batches: int

  @property
  def mesh(self) -> dict[str, int]:
    return {axis: getattr(self, axis) for axis in ('data', 'fsdp', 'tensor')}

  def __str__(self):
    axes = ', '.join(f'{axis} {n}' for axis, n in self.mesh.items())
    return f'{axes}; remat {self.remat}; {self.micro_batches} micro-batch(es)'

  def bindings(self) -> list[str]:
    """Lines of gin."""
    return [
      *(f'sharding.mesh.{axis} = {n}' for axis, n in self.mesh.items()),
      f'model.Config.remat = {self.remat!r}',
      f'MICRO_BATCHES = {self.micro_batches}',
    ]

  def settings(self, given: dict, slices: int) -> dict:
    """`train_plan.plan`'s, of a run with those of `given` otherwise."""
    config = dataclasses.replace(given['model_config'], remat=self.remat)
    return {
      **given,
      'make_mesh': functools.partial(
        mesh_lib.make_mesh, slice=slices, **self.mesh
      ),
      'model_config': config,
      'micro_batches': self.micro_batches,
    }


@dataclasses.dataclass(frozen=True)
class Traced:
  """Of a step with one kind of remat, on any mesh.

  Attributes:
    kept: bytes that loops over layers keep of a whole batch's rows.
    flops: computed on all chips, without attention kernels.
    kernel_flops: of those.
    offloaded: bytes of those rows that wait in the host's memory.
  """

  kept: float
  flops: float
  kernel_flops: float
  offloaded: float


class Outlook:
  """What is known of the candidates of a run on a pod.

  Attributes:
    own: the run's.
    slices: of the pod.
    usable: bytes of a chip.
  """

  def __init__(self, given: dict):
    """Args: given: settings of `train_plan.plan`, a topology among them."""
    self.given, self.rules = given, given['rules']
    target = train_plan.aim(given['topology'], given['make_mesh'], lambda: None)
    self.pod, shape = target.pod, target.mesh.shape
    self.devices = list(hardware.devices(self.pod))
    self.usable, self.slices = self.pod.chip.usable, shape['slice']
    self.sizes = registry.Lengths.of(given['lengths'])
    config = given['model_config']
    self.own = Candidate(
      *(shape[axis] for axis in ('data', 'fsdp', 'tensor')),
      config.remat, given['micro_batches'],
    )  # fmt: skip
    tx = optimizer.make(
      given['optimizer_config'], given['freeze_encoder_steps'] > 0
    )
    net = transformer.AlexaTM(config)
    self.state = step.abstract_state(net, tx, target.mesh, self.rules)
    self.params = sum(x.size for x in jax.tree.leaves(self.state.params))
    self.tx, self.mesh = tx, target.mesh
    self._targets: dict[tuple, hardware.Target] = {}
    self._held: dict[jax.sharding.Mesh, int] = {}
    self._traced: dict[str, Traced] = {}

  def candidates(self) -> list[Candidate]:
    """All that divide, the run's own first."""
    found = [self.own]
    for mesh in self._meshes():
      for remat, n in itertools.product(remat_lib.REMAT, MICRO_BATCHES):
        candidate = Candidate(*mesh, remat, n)
        if candidate != self.own and self._divides(candidate):
          found.append(candidate)
    return found

  def _meshes(self):
    """(data, fsdp, tensor), `data` and `tensor` powers of two."""
    chips_of_slice = self.pod.size // self.slices
    for tensor in TENSOR:
      data_size = 1
      while chips_of_slice % (data_size * tensor) == 0:
        yield data_size, chips_of_slice // (data_size * tensor), tensor
        data_size *= 2

  def _divides(self, candidate: Candidate) -> bool:
    batch_size, config = self.given['batch_size'], self.given['model_config']
    axes = {'slice': self.slices, **candidate.mesh}
    mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
    try:
      config_checks.check_sizes(
        mesh, self.rules, config, self.sizes, batch_size
      )
      config_checks.check_micro_batches(
        mesh, self.rules, batch_size, candidate.micro_batches
      )
    except ValueError:
      return False
    return True

  def target(self, candidate: Candidate) -> hardware.Target:
    key = tuple(candidate.mesh.values())
    if key not in self._targets:
      mesh = mesh_lib.make_mesh(
        slice=self.slices, **candidate.mesh, devices=self.devices
      )
      self._targets[key] = hardware.Target(mesh, self.pod)
    return self._targets[key]

  # --- What is known of one

  def traced(self, remat: str) -> Traced:
    """Takes a second or two, once for each kind."""
    if remat not in self._traced:
      self._traced[remat] = self._trace(remat)
    return self._traced[remat]

  def _trace(self, remat: str) -> Traced:
    given = self.given
    batch_size = given['batch_size']
    config = dataclasses.replace(given['model_config'], remat=remat)
    batch = train_plan.abstract_batch(
      batch_size, self.sizes, self.mesh, self.rules, given['packed']
    )
    update = functools.partial(
      step.train_step,
      transformer.AlexaTM(config),
      self.tx,
      z_loss=given['z_loss'],
    )
    with sharding.use_mesh(self.mesh, self.rules):
      traced = xla_options.jit_update(update, self.state).trace(
        self.state, batch
      )
    jaxpr = train_plan.live(traced.jaxpr.jaxpr)
    flops = train_plan.hardware_flops(jaxpr)
    kept, offloaded = (
      sum(
        row['bytes'] for row in memory.kept_by_loops(jaxpr, batch_size, 1, host)
      )
      for host in (False, True)
    )
    return Traced(
      kept,
      flops['hardware_flops'] - flops['kernel_flops'],
      flops['kernel_flops'],
      offloaded,
    )

  def least_memory(self, candidate: Candidate) -> float:
    """Bytes that a chip needs at least: its state, and what loops keep.

    As if `tensor` split all that they keep: it does heads and mlp.
    """
    parts = self._row_shards(candidate) * candidate.tensor
    parts *= candidate.micro_batches
    return self.held(candidate) + self.traced(candidate.remat).kept / parts

  def held(self, candidate: Candidate) -> int:
    """Bytes of a chip's parameters and optimizer."""
    mesh = self.target(candidate).mesh
    if mesh not in self._held:
      placed = lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(mesh, x.sharding.spec)
      )
      self._held[mesh] = memory.held(jax.tree.map(placed, self.state))
    return self._held[mesh]

  def no_less(self, candidate: Candidate, other: Candidate) -> bool:
    """Whether it keeps no less than another on the same mesh."""
    kept = lambda c: self.traced(c.remat).kept
    return (
      candidate.mesh == other.mesh
      and candidate.micro_batches <= other.micro_batches
      and kept(candidate) >= kept(other)
    )

  def formula(self, candidate: Candidate) -> float:
    """A step's seconds before anything compiles, middle of the range."""
    split = self.split(candidate)
    return sum(self.step_range(candidate, split, self.assumed)) / 2

  def _row_shards(self, candidate: Candidate) -> int:
    shape = self.target(candidate).mesh.shape
    return math.prod(shape[axis] for axis in self.rules.mesh_axes('batch'))

  def split(self, candidate: Candidate) -> dict:
    """`step_time.time_split` by a formula, without what is computed."""
    traced = self.traced(candidate.remat)
    each = traced.offloaded / (self._row_shards(candidate) * candidate.tensor)
    copies = {'to_host_bytes': each, 'from_host_bytes': each, 'waits_s': 0.0}
    return step_time.time_split(
      self._collectives(candidate),
      {'unknown': 0},
      traced.kernel_flops,
      self.target(candidate),
      copies if each else None,
    )

  def _collectives(self, candidate: Candidate) -> list[dict]:
    """Rows as `collectives.collectives` has them: bytes a chip sends a step.

    Parameters in bfloat16, gathered for both passes of every micro-batch; their
    gradients, scattered in each; sums over `data` and `slice`; and over
    `tensor` what each block of a layer adds to the hidden states, forward and
    backward and where remat repeats it.
    """
    c, config = candidate, self.given['model_config']
    params = 2 * self.params / c.tensor
    rows = self.given['batch_size'] / self._row_shards(c)
    hidden = 2 * rows * config.d_model * (
      2 * config.encoder_layers * self.sizes.inputs
      + 3 * config.decoder_layers * self.sizes.targets
    )  # fmt: skip
    copies = c.data * self.slices
    around = lambda n: (n - 1) / n
    scattered = 1 if copies > 1 else 2  # XLA's choice: see docs/pods.md
    sent = {
      'fsdp': (2 + scattered) * params * c.micro_batches * around(c.fsdp),
      'data': 2 * params / c.fsdp * around(c.data),
      'slice': 2 * params / (c.fsdp * c.data) * around(self.slices),
      'tensor': (2 + (c.remat == 'full')) * 2 * hidden * around(c.tensor),
    }
    return [
      dict(axes=(axis,), wire_bytes=n, asynchronous=False)
      for axis, n in sent.items()
      if n
    ]

  def step_range(
    self, candidate: Candidate, split: dict, per_flop: tuple[float, float]
  ) -> tuple[float, float]:
    """Seconds (least, most) of a step, from FLOPs instead of cycles.

    Args:
      candidate: whose FLOPs.
      split: `step_time.time_split` without cycles.
      per_flop: seconds a FLOP that is not in kernels, (least, most).
    """
    flops = self.traced(candidate.remat).flops
    compute = tuple(flops * seconds for seconds in per_flop)
    return step_time.step_time({**split, 'compute': compute})

  @property
  def assumed(self) -> tuple[float, float]:
    """Seconds a FLOP by the chip's share of peak, see `step_range`."""
    chip = self.pod.chip
    return (1 / (chip.share * chip.peak * self.pod.size),) * 2

  def per_flop(self, made: dict, candidate: Candidate) -> tuple[float, float]:
    """Seconds a FLOP of a whole plan, by its cycles; see `step_range`."""
    flops = self.traced(candidate.remat).flops
    least, most = made['time_split_s']['compute']
    return least / flops, most / flops
