"""TPU chips: what they can do and who says so; the devices of a pod none has.

Figures are a chip's. Nothing here was measured by us.

- peak FLOP/s: Google's data sheets, see `devices.PEAK_FLOPS`.
- usable HBM: the compiler's out-of-memory messages, libtpu 0.0.42.
- HBM and DCN bytes a second: the data sheets (docs.cloud.google.com/tpu/docs)
  of each; DCN of v4 and v6e is v5p's, for want of a figure.
- link: "How to Scale Your Model", part 2 (jax-ml.github.io/scaling-book), one
  way; a tenth below the data sheets' figures. A collective along one axis that
  closes to a ring sends both ways, one along several axes uses the links of
  each (part 3 there).
- pcie: the same part 2, one way.
- clock: peak FLOP/s / FLOPs a cycle: 262,144 of v4 and v5p, 131,072 of v5e,
  524,288 of v6e. These are what the compiler's cycles mean: it gives bfloat16
  products of 16384 x 4096 by 4096 x 4096 236,964 (v4), 255,819 (v5p), 128,148
  (v5e) and 477,219 (v6e) FLOPs a cycle, 90% to 98% of them.
- share: of peak FLOP/s, what a step of 20b reaches in all but those kernels by
  the compiler's cycles; for the same plans.
- kernels: FLOPs of splash attention's kernels / cycles of the schedules that
  the compiler makes for them, see kernels.py; for plans that stop before those.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import re

import jax

from atm.messages import did_you_mean
from atm.parallel import devices as devices_lib


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip has.

  Attributes:
    kind: JAX's device kind.
    sides: dimensions of the torus that its links make.
    usable: bytes of HBM that a program may use.
    hbm: bytes a second from and to it.
    link: bytes a second one way over one link to a neighbour.
    dcn: bytes a second to another slice.
    pcie: bytes a second one way between it and its host's memory.
    clock: cycles a second.
    cores: that make one device.
    share: of peak FLOP/s, reached by all but attention kernels.
    kernels: share of peak FLOP/s that attention kernels reach by their
      schedules, forward and backward of 1024 x 1024 with heads of 128.
  """

  kind: str
  sides: int
  usable: float
  hbm: float
  link: float
  dcn: float
  pcie: float
  clock: float
  cores: int
  share: float
  kernels: float

  @property
  def peak(self) -> float:
    """bfloat16 FLOP/s."""
    return devices_lib.PEAK_FLOPS[self.kind]


GIB = 2**30
CHIPS = {
  'v4': Chip(
    'TPU v4', 3, 30.75 * GIB, 1.2e12, 4.5e10, 6.25e9, 1.5e10,
    clock=1.05e9, cores=2, share=0.80, kernels=0.67,
  ),
  'v5e': Chip(
    'TPU v5e', 2, 15.75 * GIB, 8.19e11, 4.5e10, 3.1e9, 1.5e10,
    clock=1.5e9, cores=1, share=0.91, kernels=0.88,
  ),
  'v5p': Chip(
    'TPU v5p', 3, 95.73 * GIB, 2.765e12, 9e10, 6.25e9, 1.5e10,
    clock=1.75e9, cores=2, share=0.86, kernels=0.88,
  ),
  'v6e': Chip(
    'TPU v6e', 2, 31.24 * GIB, 1.638e12, 9e10, 6.25e9, 3.2e10,
    clock=1.75e9, cores=1, share=0.69, kernels=0.34,
  ),
}  # fmt: skip
# What is sold, by dimensions; libtpu takes some more.
SHAPES = {
  3: '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16',
  2: '2x2 2x4 4x4 4x8 8x8 8x16 16x16',
}
# So that libtpu neither asks the cloud what this machine is nor complains.
QUIET = {
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}
_NAME = re.compile(r'(?:([1-9]\d*) \* )?(\w+):(\d+(?:x\d+)+)')


@dataclasses.dataclass(frozen=True)
class Pod:
  """'2 * v5p:4x4x8': slices of a shape."""

  name: str
  slices: int
  kind: str
  shape: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]

  @property
  def size(self) -> int:
    """Chips."""
    return self.slices * math.prod(self.shape)

  @property
  def wraps(self) -> tuple[bool, ...]:
    """Which sides close to rings: multiples of 4 of a 3D torus (cubes of
    4x4x4 are wired so), 16 of a 2D one."""
    ring = lambda side: side % 4 == 0 if self.chip.sides == 3 else side == 16
    return tuple(ring(side) for side in self.shape)

  def speeds(self, places) -> tuple[float, float]:
    """Bytes a second that a chip sends to others at `places`: (least, most).

    Least: along one side. Most: along every side that the places differ in.
    Of a side that wraps, both ways.

    Args:
      places: coordinates of the chips of a group.
    """
    spanned = [
      wraps
      for axis, wraps in enumerate(self.wraps)
      if len({place[axis] for place in places}) > 1
    ]
    links = [2 if wraps else 1 for wraps in spanned] or [1]
    return self.chip.link * max(links), self.chip.link * sum(links)


@dataclasses.dataclass(frozen=True)
class Target:
  """What is planned for.

  Attributes:
    mesh: over the target's devices.
    pod: None: the devices of this machine.
  """

  mesh: jax.sharding.Mesh
  pod: Pod | None

  @property
  def device(self):
    """One of its devices."""
    return self.mesh.devices.flat[0]

  @property
  def platform(self) -> str:
    return self.device.platform

  def places(self, axes: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Coordinates of the chips of one group along some mesh axes."""
    index = tuple(
      slice(None) if axis in axes else 0 for axis in self.mesh.axis_names
    )
    return [tuple(d.coords) for d in self.mesh.devices[index].flat]


def pod(name: str) -> Pod:
  """The pod of TOPOLOGY.

  Raises:
    ValueError: no such chip or shape; names the nearest.
  """
  known = [
    f'{k}:{s}' for k, c in CHIPS.items() for s in SHAPES[c.sides].split()
  ]
  found = _NAME.fullmatch(str(name))
  if not found or found[2] not in CHIPS:
    raise ValueError(
      f"TOPOLOGY = {name!r}: expected a chip and a shape, 'v5p:4x4x8', or "
      f"slices of it, '2 * v5p:4x4x8'." + did_you_mean(str(name), known)
    )
  shape = tuple(int(n) for n in found[3].split('x'))
  made = Pod(name, int(found[1] or 1), found[2], shape)
  if f'{found[2]}:{found[3]}' not in known:
    of_kind = [k for k in known if k.startswith(f'{found[2]}:')]
    near = min(of_kind, key=lambda k: abs(math.log(pod(k).size / made.size)))
    raise ValueError(
      f'TOPOLOGY = {name!r}: {found[2]} has no such shape; the nearest in '
      f'size: {near!r}. Known: {", ".join(of_kind)}'
    )
  return made


def devices(of: Pod) -> list:
  """The pod's devices, to compile for.

  Raises:
    ValueError: libtpu is missing, or refuses the pod.
  """
  # A second process of the same machine may compile, too.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  for name, value in QUIET.items():
    os.environ.setdefault(name, value)
  try:
    import libtpu  # noqa: F401
  except ImportError:
    raise ValueError(
      f'TOPOLOGY = {of.name!r}: to compile for TPUs without one takes libtpu: '
      "pip install 'atm[plan]'"
    ) from None
  from jax.experimental import topologies

  flat = len(of.shape) == 2
  settings = dict(
    chips_per_host_bounds=(2, 4, 1) if of.shape == (2, 4) else (2, 2, 1),
    wrap=(*of.wraps, False) if flat else of.wraps,
    num_slices=of.slices,
  )
  if of.chip.sides == 3:
    settings['chip_config_name'] = 'megacore'  # both cores are one device
  shape = 'x'.join(map(str, of.shape))
  try:
    made = topologies.get_topology_desc(
      platform='tpu', topology_name=f'{of.kind}:{shape}', **settings
    )
  except Exception as e:  # XLA's own, of several classes
    said = str(e).strip().splitlines()[0]
    raise ValueError(f'TOPOLOGY = {of.name!r}: libtpu says: {said}') from None
  return list(made.devices)


def version_skew() -> str:
  """What is wrong with libtpu's version beside JAX's; '' if nothing is."""
  wanted = [
    need
    for need in importlib.metadata.requires('jax') or ()
    if need.startswith('libtpu') and 'extra == "tpu"' in need
  ]
  found = re.match(r'libtpu\s*==\s*([\d.]+)\.\*', wanted[0] if wanted else '')
  try:
    has = importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    return ''
  if not found or f'{has}.'.startswith(f'{found[1]}.'):
    return ''
  return (
    f'libtpu {has} beside jax {jax.__version__}, which was made with '
    f'{found[1]}: install that'
  )
