"""Devices, the mesh over them, and the rules from logical axes to mesh axes.

The mesh has four axes: `slice` (pods joined by the data centre's network; the
parameters are copied to each), `data` (copies within a pod), `fsdp` (parameters
and optimizer state are split) and `tensor` (matrices are split). A batch is
split over the first three. What lies over several hosts or on one, and whether
it is CPU, GPU or TPU, is the same to everything downstream.

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
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from atm import hosts

MESH_AXES = ('slice', 'data', 'fsdp', 'tensor')
DISTRIBUTED = ('auto', 'off')
BY_ROW = Layout((0, 1))  # of a matrix, which XLA may turn


def did_you_mean(name: str, known) -> str:
  """' Did you mean X?' for the nearest of `known`, else the whole choice."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  if close:
    return f' Did you mean {close[0]!r}?'
  return f' Known: {", ".join(known)}.'


def check_choice(name: str, value, known) -> None:
  """Raises ValueError unless `value` is one of `known`."""
  if value not in known:
    raise ValueError(f'{name} = {value!r}.' + did_you_mean(str(value), known))


@dataclasses.dataclass(frozen=True)
class Rules:
  """Mesh axes for every logical axis; None keeps the axis whole.

  A value is a mesh axis, a tuple of them, or None.

  Raises:
    ValueError: a value is not one of MESH_AXES, or names one twice.
  """

  batch: str | tuple[str, ...] | None = ('slice', 'data', 'fsdp')
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


def start(
  cpu_devices: int | None = None,
  distributed: str | None = None,
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  timeout: int = 300,
) -> None:
  """Prepares JAX; to be called before anything touches a device.

  Args:
    cpu_devices: simulate this many devices on this process's CPU; None leaves
      the platform's own.
    distributed: 'auto' joins the processes of a TPU pod slice (or several), a
      SLURM step or Open MPI, which JAX finds. 'off': this process is a run of
      its own, though a launcher started several. None: as `coordinator` says.
    coordinator: 'host:port' of process 0, to join the others by hand.
    processes: how many processes the run has, with `coordinator`.
    process: which of them this is, from 0, with `coordinator`.
    timeout: seconds to wait for the others.

  Raises:
    ValueError: settings that do not fit each other or the environment, devices
      that exist already in another number, or others that did not come.
  """
  check_start(distributed, coordinator, processes, process, timeout)
  if cpu_devices is not None:
    try:
      jax.config.update('jax_platforms', 'cpu')
      jax.config.update('jax_num_cpu_devices', cpu_devices)
    except RuntimeError:
      pass  # the backend is up already: fine if it has that many
  joins = distributed == 'auto' or coordinator is not None
  if joins and not jax.distributed.is_initialized():
    hosts.connect(coordinator, processes, process, timeout)
  if cpu_devices is not None and jax.local_device_count() != cpu_devices:
    raise ValueError(
      f'start.cpu_devices = {cpu_devices}, but JAX has already started with '
      f'{jax.local_device_count()} devices.'
    )


def check_start(distributed, coordinator, processes, process, timeout) -> None:
  """Raises ValueError where `start`'s settings do not fit each other."""
  if distributed not in (None, *DISTRIBUTED):
    raise ValueError(
      f'start.distributed = {distributed!r}: expected None or one of '
      f'{DISTRIBUTED}.' + did_you_mean(str(distributed), DISTRIBUTED)
    )
  by_hand = {'processes': processes, 'process': process}
  given = [f'start.{k} = {v!r}' for k, v in by_hand.items() if v is not None]
  if coordinator is not None:
    if distributed is not None:
      raise ValueError(
        f'start.distributed = {distributed!r} and start.coordinator = '
        f'{coordinator!r}: set one of them'
      )
    ints = all(isinstance(v, int) for v in by_hand.values())
    if not ints or not 0 <= process < processes:
      raise ValueError(
        f'start.processes = {processes!r}, start.process = {process!r}: '
        'start.coordinator needs both, and process from 0 to processes - 1'
      )
  elif given:
    raise ValueError(f'{", ".join(given)} without start.coordinator')
  if not isinstance(timeout, int) or timeout < 1:
    raise ValueError(f'start.timeout = {timeout!r}: expected seconds, from 1')
  launcher, count = hosts.launched()
  if count > 1 and distributed is None and coordinator is None:
    raise ValueError(
      f'{launcher} started {count} processes, and each would be a run of its '
      "own: set sharding.start.distributed = 'auto' to join them, 'off' if "
      'that is meant'
    )


def mesh(
  slice: int = 1, data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None
) -> jax.sharding.Mesh:
  """A mesh over `devices` (default: all); -1 fills one axis with the rest.

  On TPUs the axes follow the links between chips, the last axis the shortest,
  and `slice` the slices (pods) that the network of the data centre joins.
  Elsewhere devices stand in the order of their processes, the last axis the
  fastest: `slice` then splits them into equal blocks.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or `slice`
      is not the number of the TPU's slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = filled(len(devices), slice=slice, data=data, fsdp=fsdp, tensor=tensor)
  return jax.sharding.Mesh(
    arranged(sizes, devices),
    MESH_AXES,
    axis_types=(AxisType.Auto,) * len(MESH_AXES),
  )


def filled(count: int, **sizes: int) -> tuple[int, ...]:
  """The sizes of a mesh over `count` devices, the -1 among them filled.

  Raises:
    ValueError: see `mesh`.
  """
  shown = ', '.join(f'mesh.{name} = {size}' for name, size in sizes.items())
  given = list(sizes.values())
  if given.count(-1) > 1 or any(size < 1 and size != -1 for size in given):
    raise ValueError(f'{shown}: sizes are positive, and one may be -1.')
  known = math.prod(size for size in given if size != -1)
  if -1 in given and count % known == 0:
    return tuple(count // known if size == -1 else size for size in given)
  if -1 in given or known != count:
    what = 'must divide' if -1 in given else 'must be'
    raise ValueError(
      f'{shown}: their product {known} does not fit {count} devices: it {what} '
      f'{count}. Set one of them to -1 to fill it.'
    )
  return tuple(given)


def arranged(sizes: tuple[int, ...], devices: list) -> np.ndarray:
  """Devices in the shape of a mesh, those that talk most close together.

  Raises:
    ValueError: `sizes` disagree with the TPU's slices.
  """
  if devices[0].platform != 'tpu':
    order = sorted(devices, key=lambda d: (d.process_index, d.id))
    return np.array(order).reshape(sizes)
  slices, *inner = sizes
  found = len({getattr(device, 'slice_index', 0) for device in devices})
  if found > 1 and slices != found:
    raise ValueError(
      f'mesh.slice = {slices}, but the devices are {found} slices: set '
      f'mesh.slice = {found}'
    )
  # jax.make_mesh knows no slices, and would not split a side of the pod, as
  # 2 x 64 of 4 x 4 x 8 need.
  if found > 1:
    return mesh_utils.create_hybrid_device_mesh(
      (1, *inner), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )
  return mesh_utils.create_device_mesh(
    sizes, devices, allow_split_physical_axes=True
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
        f'nearest that does: {max(1, round(size / shards)) * shards}. Or '
        f'change the mesh, or Rules.{name} = {getattr(rules, name)!r}.'
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


def constrain_columns(x: jax.Array) -> jax.Array:
  """Pins rows that were looked up in a table split over `embed`; [B, T, D].

  Each device then has the columns of its part of the table, for the rows of all
  devices that share them, and so has the gradient: what `constrain` sends on is
  rows, not the table, and what is summed is a part of the table, not all of it.
  """
  rules = _active.get()
  if rules is None:
    return x
  columns = rules.mesh_axes('embed')
  rest = tuple(a for a in rules.mesh_axes('batch') if a not in columns)
  spec = PartitionSpec(rest or None, None, columns or None)
  return jax.lax.with_sharding_constraint(x, spec)


def by_rows(compute, rows: tuple, table: jax.Array, bias: jax.Array | None):
  """compute(*rows, table, bias), each device on the rows that it has.

  What the gradient of the table adds up from all devices, it adds once, however
  often `compute` reads it; a loop that GSPMD partitions adds in every turn. And
  each device is sent the part that it keeps: its rows, which are then exchanged
  for its columns. Those can be less than a tile, 128, and of parts of tiles XLA
  sends the whole sum. (It does where V does not divide, or `tensor` splits it.)

  Args:
    compute: to a pytree of arrays [B, ...]. It may `constrain`, by axes that
      are not the batch's.
    rows: pytrees of arrays [B, ...].
    table: [V, D], axes 'vocab' and 'embed'; every row reads all of it.
    bias: [V] or None; has no gradient.
  """
  rules, mesh = _active.get(), jax.sharding.get_abstract_mesh()
  axes = rules.mesh_axes('batch') if rules else ()
  if all(mesh.shape[axis] == 1 for axis in axes):
    return compute(*rows, table, bias)
  over = tuple(axis for axis in rules.mesh_axes('embed') if axis in axes)
  parts = math.prod(mesh.shape[axis] for axis in over)
  # Over an axis that is not the batch's, GSPMD would gather the table here.
  alone = math.prod(mesh.shape[axis] for axis in axes) == mesh.size
  if not (alone and parts > 1 and len(table) % parts == 0):
    over = ()

  def on_device(table, bias, *rows):
    if over:
      table = jax.lax.all_to_all(table, over, 0, 1, tiled=True)
      table = with_layout_constraint(table, BY_ROW)
      table = jax.lax.all_gather(table, over, tiled=True)
    return compute(*rows, table, bias)

  split, whole = rules.spec('batch'), PartitionSpec()
  return jax.shard_map(
    on_device,
    in_specs=(PartitionSpec(None, over or None), whole, *(split,) * len(rows)),
    out_specs=split,
    axis_names=set(axes),
    check_vma=False,
  )(table, bias, *rows)


def host_rows(mesh, rules: Rules, batch_size: int) -> np.ndarray:
  """The rows of a batch that this process feeds, in order.

  Those that its devices hold. They need not be consecutive, and several
  processes may feed the same ones: where `tensor` spans processes, each of them
  holds the same rows.
  """
  sharding = NamedSharding(mesh, rules.spec('batch'))
  held = sharding.addressable_devices_indices_map((batch_size,))
  rows = np.arange(batch_size)
  return np.unique(np.concatenate([rows[index] for index in held.values()]))


def place(batch, mesh, rules: Rules, batch_size: int | None = None):
  """Host arrays [B, ...] to device arrays split over the batch axes.

  Args:
    batch: the arrays.
    mesh, rules: how they are split.
    batch_size: B, where the arrays hold only the `host_rows` of this process;
      None: they hold all rows, in every process.
  """
  sharding = NamedSharding(mesh, rules.spec('batch'))
  rows = batch_size and host_rows(mesh, rules, batch_size)

  def put(value):
    size = batch_size or len(value)

    def shard(index):
      start, stop, _ = index[0].indices(size)
      first = np.searchsorted(rows, start) if batch_size else start
      return value[first : first + stop - start]

    shape = (size, *value.shape[1:])
    return jax.make_array_from_callback(shape, sharding, shard)

  return {name: put(value) for name, value in batch.items()}
