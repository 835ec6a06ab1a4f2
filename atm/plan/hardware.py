"""TPU chips: figures with their sources, and devices of pods to compile for."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import math
import os
import re
from collections.abc import Callable

import jax
from jax.experimental.compilation_cache import compilation_cache

from atm.messages import did_you_mean, missing_extra
from atm.parallel import mesh as mesh_lib
from atm.parallel import peak_flops


@dataclasses.dataclass(frozen=True)
class Chip:
  """Figures of one chip; where JAX has two devices a chip, of one of these."""

  kind: str  # JAX's device kind
  sides: int  # dimensions of the torus that its links make
  usable: float  # bytes of HBM that a program may use
  hbm: float  # bytes a second from and to it
  link: float  # bytes a second one way over one link to a neighbour
  dcn: float  # bytes a second to another slice
  pcie: float  # bytes a second one way between it and its host's memory
  clock: float  # cycles a second
  cores: int  # that make one device
  share: float  # of peak FLOP/s, reached by all but attention kernels
  # Share of peak FLOP/s that attention kernels reach by their schedules,
  # forward and backward of 1024 x 1024 with heads of 128.
  kernels: float
  devices: int = 1  # JAX's devices of one chip

  @property
  def peak(self) -> float:
    """bfloat16 FLOP/s."""
    return peak_flops.PEAK_FLOPS[self.kind]


_GIB = 2**30
# Figures of a chip, none measured here, and their sources:
# - peak FLOP/s: Google's data sheets, see `peak_flops.PEAK_FLOPS`.
# - usable HBM: the compiler's out-of-memory messages, libtpu 0.0.42 (TPU7x:
#   0.0.41).
# - HBM and DCN bytes a second: the data sheets (docs.cloud.google.com/tpu/docs)
#   of each; DCN of v4 and v6e is v5p's, for want of a figure. A device of TPU7x
#   has half of its chip's 7,380 GB/s and 100 Gb/s.
# - link: "How to Scale Your Model", part 2 (jax-ml.github.io/scaling-book), one
#   way; a tenth below the data sheets' figures. A collective along one axis
#   that closes to a ring sends both ways, one along several axes uses the links
#   of each (part 3 there). That has no TPU7x: its data sheet has v5p's 1,200
#   GB/s a chip, and two devices share them. What joins these two is taken for
#   such a link, for want of a figure.
# - pcie: the same part 2, one way; of TPU7x v5p's.
# - clock: peak FLOP/s / FLOPs a cycle: 262,144 of v4 and v5p, 131,072 of v5e,
#   524,288 of v6e and TPU7x. That is what the compiler's cycles mean: bfloat16
#   products of 16384 x 4096 by 4096 x 4096 have 236,964 (v4), 255,819 (v5p),
#   128,148 (v5e), 477,219 (v6e) and 499,892 (TPU7x) FLOPs a cycle, 90% to 98%.
# - share: of peak FLOP/s, what a step of 20b reaches in all but those kernels
#   by the compiler's cycles; for plans that stop before cycles are known.
# - kernels: FLOPs of splash attention's kernels / cycles of the schedules that
#   the compiler makes for them, see kernels.py; for the same plans.
CHIPS = {
  'v4': Chip(
    'TPU v4', 3, 30.75 * _GIB, 1.2e12, 4.5e10, 6.25e9, 1.5e10,
    clock=1.05e9, cores=2, share=0.80, kernels=0.67,
  ),
  'v5e': Chip(
    'TPU v5e', 2, 15.75 * _GIB, 8.19e11, 4.5e10, 3.1e9, 1.5e10,
    clock=1.5e9, cores=1, share=0.91, kernels=0.88,
  ),
  'v5p': Chip(
    'TPU v5p', 3, 95.73 * _GIB, 2.765e12, 9e10, 6.25e9, 1.5e10,
    clock=1.75e9, cores=2, share=0.86, kernels=0.88,
  ),
  'v6e': Chip(
    'TPU v6e', 2, 31.24 * _GIB, 1.638e12, 9e10, 6.25e9, 3.2e10,
    clock=1.75e9, cores=1, share=0.69, kernels=0.34,
  ),
  'tpu7x': Chip(
    'TPU7x', 3, 95.0 * _GIB, 3.69e12, 4.5e10, 6.25e9, 1.5e10,
    clock=2.2e9, cores=1, share=0.71, kernels=0.33, devices=2,
  ),
}  # fmt: skip
# Shapes that are sold, by dimensions; libtpu takes some more.
SHAPES = {
  3: '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x4x12 4x8x8 8x8x8 8x8x16 8x16x16',
  2: '2x2 2x4 4x4 4x8 8x8 8x16 16x16',
}
# Without these libtpu asks the cloud what this machine is, and complains.
_LIBTPU_ENVIRONMENT = {
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}
_TOPOLOGY = re.compile(r'(?:([1-9]\d*) \* )?(\w+):(\d+(?:x\d+)+)')


@dataclasses.dataclass(frozen=True)
class Pod:
  """Slices of a shape, named as TOPOLOGY has them: '2 * v5p:4x4x8'."""

  name: str
  slices: int
  kind: str
  shape: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]

  @property
  def chips(self) -> int:
    """Number of chips."""
    return self.slices * math.prod(self.shape)

  @property
  def size(self) -> int:
    """Number of devices, as JAX counts them."""
    return self.chips * self.chip.devices

  @property
  def assumed_flops(self) -> float:
    """FLOP/s of all devices outside attention kernels, by the share of peak."""
    return self.chip.share * self.chip.peak * self.size

  @property
  def wraps(self) -> tuple[bool, ...]:
    """Which sides close to rings."""
    # Cubes of 4x4x4 are wired so in a 3D torus; in a 2D one, sides of 16.
    ring = lambda side: side % 4 == 0 if self.chip.sides == 3 else side == 16
    return tuple(ring(side) for side in self.shape)

  def link_speeds(self, coordinates) -> tuple[float, float]:
    """Returns bytes a second (least, most) that a chip of a group sends."""
    # Least: along one side. Most: along every side that the group spans. Of a
    # side that wraps, both ways.
    links = [
      1 + wraps
      for wraps, along in zip(self.wraps, zip(*coordinates))
      if len(set(along)) > 1
    ] or [1]
    return self.chip.link * max(links), self.chip.link * sum(links)


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices planned for, in a run's mesh."""

  mesh: jax.sharding.Mesh
  pod: Pod | None  # None: the devices are this machine's

  @property
  def device(self):
    """One of its devices."""
    return self.mesh.devices.flat[0]

  def __str__(self):
    axes = ' x '.join(f'{name} {n}' for name, n in self.mesh.shape.items())
    here = f'this machine ({self.device.platform})'
    kind = self.pod.name if self.pod else here
    return f'{kind}, {self.mesh.size} device(s): {axes}'

  def __reduce__(self):
    # Devices do not pickle: another process makes its own of the same pod.
    make_mesh = functools.partial(mesh_lib.make_mesh, **self.mesh.shape)
    return find_target, (self.pod.name, make_mesh)

  def coordinates(self, axes: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Returns coordinates of the chips of one group along some mesh axes."""
    index = tuple(
      slice(None) if axis in axes else 0 for axis in self.mesh.axis_names
    )
    return [tuple(d.coords) for d in self.mesh.devices[index].flat]


def find_target(
  topology: str | None,
  make_mesh: Callable,
  start: Callable[[], None] = lambda: None,
) -> Target:
  """Returns the devices to plan for; arguments as `train_plan.plan`'s."""
  if topology is None:
    start()
    return Target(make_mesh(devices=jax.devices()), None)
  jax.config.update('jax_platforms', 'cpu')  # libtpu makes JAX look for a TPU
  # A program for absent devices could be written to the cache, but not read.
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # JAX asks only once whether there is one
  pod = parse_pod(topology)
  return Target(make_mesh(devices=pod_devices(pod)), pod)


def parse_pod(name: str) -> Pod:
  """Parses TOPOLOGY, or raises a ValueError that names the nearest."""
  known = [
    f'{k}:{s}' for k, c in CHIPS.items() for s in SHAPES[c.sides].split()
  ]
  parts = _TOPOLOGY.fullmatch(str(name))
  if not parts or parts[2] not in CHIPS:
    raise ValueError(
      f"TOPOLOGY = {name!r}: expected a chip and a shape, 'v5p:4x4x8', or "
      f"slices of it, '2 * v5p:4x4x8'." + did_you_mean(str(name), known)
    )
  slices, kind, sides = parts.groups()
  shape = tuple(int(n) for n in sides.split('x'))
  pod = Pod(name, int(slices or 1), kind, shape)
  if f'{kind}:{sides}' not in known:
    shapes = [k for k in known if k.startswith(f'{kind}:')]
    distance = lambda k: abs(math.log(parse_pod(k).size / pod.size))
    raise ValueError(
      f'TOPOLOGY = {name!r}: {kind} has no such shape; the nearest in size: '
      f'{min(shapes, key=distance)!r}. Known: {", ".join(shapes)}'
    )
  return pod


def pod_devices(pod: Pod) -> list:
  """Returns devices to compile for, or raises ValueError if libtpu refuses."""
  # None of these devices need exist, and a second process of the same machine
  # may compile for them, too.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  for name, value in _LIBTPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  try:
    import libtpu  # noqa: F401
  except ImportError:
    raise ValueError(
      missing_extra(
        f'TOPOLOGY = {pod.name!r}: compiling for TPUs needs libtpu', 'plan'
      )
    ) from None
  from jax.experimental import topologies

  settings = dict(
    chips_per_host_bounds=(2, 4, 1) if pod.shape == (2, 4) else (2, 2, 1),
    wrap=(*pod.wraps, False)[:3],
    num_slices=pod.slices,
  )
  if pod.chip.cores == 2:
    settings['chip_config_name'] = 'megacore'  # both cores are one device
  shape = 'x'.join(map(str, pod.shape))
  try:
    topology = topologies.get_topology_desc(
      platform='tpu', topology_name=f'{pod.kind}:{shape}', **settings
    )
  except Exception as e:  # XLA raises several classes of its own
    reason = str(e).strip().splitlines()[0]
    message = f'TOPOLOGY = {pod.name!r}: libtpu says: {reason}'
    raise ValueError(message) from None
  return list(topology.devices)


def installed_versions() -> dict[str, str | None]:
  """Returns versions of the packages that a plan depends on; None: missing."""
  versions: dict[str, str | None] = dict.fromkeys(('jax', 'jaxlib', 'libtpu'))
  for name in versions:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return versions


def find_version_skew() -> str:
  """Returns what is wrong with libtpu's version beside JAX's; '' if nothing."""
  # Of 'libtpu==0.0.42.*; extra == "tpu"' the series is 0.0.42.
  needs = '\n'.join(importlib.metadata.requires('jax') or ())
  pattern = r'^libtpu\s*==\s*([\d.]+)\.\*.*extra == "tpu"'
  series = re.search(pattern, needs, re.M)
  installed = installed_versions()['libtpu']
  if not installed or not series or f'{installed}.'.startswith(f'{series[1]}.'):
    return ''
  return (
    f'libtpu {installed} beside jax {jax.__version__}, which was made with '
    f'{series[1]}: install that'
  )
