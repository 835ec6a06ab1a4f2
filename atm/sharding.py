"""Devices, the mesh over them, and the rules from logical axes to mesh axes.

Parameters and activations name what an axis *means* (`embed`, `mlp`, `batch`);
`Rules` says which mesh axes it is split over. Nothing is replicated by mistake:
an unknown name or a mesh axis used twice raises (linen's own
`logical_tomesh_axes` would silently replicate both).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import difflib

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

MESH_AXES = ('data', 'fsdp', 'tensor')


def did_you_mean(name: str, known) -> str:
  """' Did you mean X?' for the nearest of `known`, else the whole choice."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  if close:
    return f' Did you mean {close[0]!r}?'
  return f' Known: {", ".join(known)}.'


@dataclasses.dataclass(frozen=True)
class Rules:
  """Mesh axes for every logical axis; None keeps the axis whole.

  A value is a mesh axis, a tuple of them, or None.

  Raises:
    ValueError: a value is not one of MESH_AXES, or names one twice.
  """

  batch: str | tuple[str, ...] | None = ('data', 'fsdp')
  length: str | tuple[str, ...] | None = None  # of encoder or decoder
  hidden: str | tuple[str, ...] | None = None  # d_model, of activations
  embed: str | tuple[str, ...] | None = 'fsdp'  # d_model, of matrices
  vocab: str | tuple[str, ...] | None = 'tensor'
  heads: str | tuple[str, ...] | None = 'tensor'  # heads x head dimension
  mlp: str | tuple[str, ...] | None = 'tensor'
  position: str | tuple[str, ...] | None = None  # rows of position tables
  vector: str | tuple[str, ...] | None = None  # norms, biases over d_model
  layers: str | tuple[str, ...] | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      self.mesh_axes(field.name)

  def mesh_axes(self, name: str) -> tuple[str, ...]:
    """The mesh axes that logical axis `name` is split over."""
    value = getattr(self, name)
    axes = () if value is None else value
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    for axis in axes:
      if axis not in MESH_AXES:
        raise ValueError(
          f'Rules.{name} = {value!r}: {axis!r} is not a mesh axis.'
          + did_you_mean(axis, MESH_AXES)
        )
    if len(set(axes)) < len(axes):
      raise ValueError(f'Rules.{name} = {value!r} names a mesh axis twice.')
    return axes

  def spec(self, *logical: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose axes mean `logical`.

    Raises:
      ValueError: a logical axis is unknown, or two axes of the array would be
        split over the same mesh axis.
    """
    known = {field.name for field in dataclasses.fields(self)}
    used: dict[str, str] = {}
    parts = []
    for name in logical:
      if name is not None and name not in known:
        raise ValueError(
          f'{name!r} is not a logical axis.' + did_you_mean(name, known)
        )
      axes = self.mesh_axes(name) if name else ()
      for axis in axes:
        if axis in used:
          raise ValueError(
            f'Axes {used[axis]!r} and {name!r} of one array are both split '
            f'over mesh axis {axis!r}; change Rules.{used[axis]} or '
            f'Rules.{name}.'
          )
        used[axis] = name
      parts.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*parts)


def start(cpu_devices: int | None = None) -> None:
  """Prepares JAX; to be called before anything touches a device.

  Args:
    cpu_devices: simulate this many devices on the CPU; None leaves the
      platform's own.

  Raises:
    ValueError: devices exist already in another number.
  """
  if cpu_devices is None:
    return
  try:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', cpu_devices)
  except RuntimeError:
    pass  # the backend is up already: fine if it has that many
  if jax.device_count() != cpu_devices:
    raise ValueError(
      f'start.cpu_devices = {cpu_devices}, but JAX has already started with '
      f'{jax.device_count()} devices.'
    )


def mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None
) -> jax.sharding.Mesh:
  """A mesh over `devices` (default: all); -1 fills one axis with the rest.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict(zip(MESH_AXES, (data, fsdp, tensor)))
  shown = ', '.join(f'mesh.{k} = {v}' for k, v in sizes.items())
  if list(sizes.values()).count(-1) > 1 or any(
    v < 1 and v != -1 for v in sizes.values()
  ):
    raise ValueError(f'{shown}: sizes are positive, and one may be -1.')
  known = 1
  for size in sizes.values():
    known *= size if size != -1 else 1
  for name, size in sizes.items():
    if size == -1:
      sizes[name] = len(devices) // known
  total = sizes['data'] * sizes['fsdp'] * sizes['tensor']
  if total != len(devices) or 0 in sizes.values():
    raise ValueError(
      f'{shown}: their product does not fit {len(devices)} devices. Set one '
      'of them to -1 to fill it.'
    )
  return jax.make_mesh(
    tuple(sizes.values()),
    MESH_AXES,
    axis_types=(AxisType.Auto,) * len(MESH_AXES),
    devices=devices,
  )


def check_divides(mesh, rules: Rules, sizes: dict[str, tuple[str, int]]):
  """Checks that each logical axis divides by the devices it is split over.

  Args:
    mesh: the mesh.
    rules: the rules.
    sizes: logical axis -> (the binding that sets its size, the size).

  Raises:
    ValueError: a size does not divide; names the binding to change.
  """
  for name, (binding, size) in sizes.items():
    axes = rules.mesh_axes(name)
    shards = 1
    for axis in axes:
      shards *= mesh.shape[axis]
    if size % shards:
      split = ' x '.join(f'mesh.{a} = {mesh.shape[a]}' for a in axes)
      raise ValueError(
        f'{binding} = {size} does not divide by {shards} ({split}); the '
        f'nearest that does: {max(1, round(size / shards)) * shards}.'
      )


_active = contextvars.ContextVar('atm_rules', default=None)


@contextlib.contextmanager
def use(mesh, rules: Rules):
  """While open, `constrain` applies, and jit sees `mesh`."""
  token = _active.set(rules)
  try:
    with jax.set_mesh(mesh):
      yield
  finally:
    _active.reset(token)


def active() -> Rules | None:
  """The rules of the `use` that is open."""
  return _active.get()


def target() -> tuple[str, int]:
  """(platform, devices) of the mesh in `use`; else the default's, and 1."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.abstract_device is None:
    return jax.default_backend(), 1
  return mesh.abstract_device.platform, mesh.size


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
  """Pins the sharding of an activation; the identity outside `use`."""
  rules = _active.get()
  if rules is None:
    return x
  return jax.lax.with_sharding_constraint(x, rules.spec(*logical))


def by_rows(compute, rows: tuple, whole: tuple):
  """compute(*rows, *whole), each device on the rows that it has.

  What the gradient of `whole` adds up from all devices, it adds once, however
  often `compute` reads it; a loop that GSPMD partitions adds in every turn.

  Args:
    compute: to a pytree of arrays [B, ...]. It may `constrain`, by axes that
      are not the batch's.
    rows: pytrees of arrays [B, ...].
    whole: pytrees of arrays that every row reads.
  """
  rules, mesh = _active.get(), jax.sharding.get_abstract_mesh()
  axes = rules.mesh_axes('batch') if rules else ()
  if all(mesh.shape[axis] == 1 for axis in axes):
    return compute(*rows, *whole)
  split = rules.spec('batch')
  return jax.shard_map(
    compute,
    in_specs=(split,) * len(rows) + (PartitionSpec(),) * len(whole),
    out_specs=split,
    axis_names=set(axes),
    check_vma=False,
  )(*rows, *whole)


def place(batch, mesh, rules: Rules):
  """Host arrays [B, ...] to device arrays split over the batch axes."""
  sharding = NamedSharding(mesh, rules.spec('batch'))
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in batch.items()
  }
