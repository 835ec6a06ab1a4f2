"""Sharding rules: from the logical axes of arrays to the axes of the mesh.

The mesh has four axes: `slice` (pods joined by the data centre's network; the
parameters are copied to each), `data` (copies within a pod), `fsdp` (parameters
and optimizer state are split) and `tensor` (matrices are split). A batch is
split over the first three. Nothing downstream depends on the number of hosts,
nor on whether devices are CPU, GPU or TPU.

Parameters and activations name what an axis *means* (`embed`, `mlp`, `batch`);
`Rules` maps a name to mesh axes.
"""
# Nothing is replicated by mistake: an unknown name or a mesh axis used twice
# raises (linen's own `logical_to_mesh_axes` would silently replicate both).

import contextlib
import contextvars
import dataclasses
import math

import jax
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding, PartitionSpec

from atm import messages
from atm.parallel import mesh as mesh_lib

BY_ROW = Layout((0, 1))  # of a matrix, else XLA may transpose it


@dataclasses.dataclass(frozen=True)
class Rules:
  """Mesh axes for every logical axis; None keeps the axis whole.

  A value is a mesh axis, a tuple of them, or None.

  Raises:
    ValueError: a value is not one of MESH_AXES, or names one twice.
  """

  batch: str | tuple[str, ...] | None = ('slice', 'data', 'fsdp')  # its rows
  length: str | tuple[str, ...] | None = None  # of encoder or decoder
  hidden: str | tuple[str, ...] | None = None  # d_model, of activations
  embed: str | tuple[str, ...] | None = 'fsdp'  # d_model, of matrices
  vocab: str | tuple[str, ...] | None = 'tensor'  # embeddings, LM head
  heads: str | tuple[str, ...] | None = 'tensor'  # heads x head dimension
  mlp: str | tuple[str, ...] | None = 'tensor'  # inside the feed-forward
  position: str | tuple[str, ...] | None = None  # rows of position tables
  vector: str | tuple[str, ...] | None = None  # norms, biases over d_model
  layers: str | tuple[str, ...] | None = None  # of stacked parameters

  def __post_init__(self):
    for field in dataclasses.fields(self):
      axes = getattr(self, field.name)
      if not isinstance(axes, str | None):
        axes = messages.check_texts(f'Rules.{field.name}', axes)
      object.__setattr__(self, field.name, axes)
      self.mesh_axes(field.name)

  def mesh_axes(self, name: str) -> tuple[str, ...]:
    """Returns the mesh axes that logical axis `name` is split over."""
    value = getattr(self, name)
    axes = () if value is None else value
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    for axis in axes:
      if axis not in mesh_lib.MESH_AXES:
        raise ValueError(
          f'Rules.{name} = {value!r}: {axis!r} is not a mesh axis.'
          + messages.did_you_mean(axis, mesh_lib.MESH_AXES)
        )
    if len(set(axes)) < len(axes):
      raise ValueError(f'Rules.{name} = {value!r} names a mesh axis twice.')
    return axes

  def spec(self, *logical: str | None) -> PartitionSpec:
    """Returns the PartitionSpec of an array whose axes mean `logical`.

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
          f'{name!r} is not a logical axis.'
          + messages.did_you_mean(name, known)
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


def check_divides(mesh, rules: Rules, sizes: dict[str, tuple[str, int]]):
  """Raises ValueError unless each logical axis divides by its devices.

  `sizes` has of each axis (the binding that sets its size, the size).
  """
  for name, (binding, size) in sizes.items():
    axes = rules.mesh_axes(name)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if size % shards:
      split = ' x '.join(f'mesh.{a} = {mesh.shape[a]}' for a in axes)
      raise ValueError(
        f'{binding} = {size} does not divide by {shards} ({split}); the '
        f'nearest that does: {max(1, round(size / shards)) * shards}. Or '
        f'change the mesh, or Rules.{name} = {getattr(rules, name)!r}.'
      )


_active = contextvars.ContextVar('atm_rules', default=None)


@contextlib.contextmanager
def use_mesh(mesh, rules: Rules):
  """Opens a context in which `constrain` applies and jit sees `mesh`."""
  token = _active.set(rules)
  try:
    with jax.set_mesh(mesh):
      yield
  finally:
    _active.reset(token)


def current_rules() -> Rules | None:
  """Returns the rules of the open `use_mesh`; None outside."""
  return _active.get()


def current_target() -> tuple[str, int]:
  """Returns (platform, devices) of the mesh in use, else (the default's, 1)."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.abstract_device is None:
    return jax.default_backend(), 1
  return mesh.abstract_device.platform, mesh.size


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
  """Pins the sharding of an activation; the identity outside `use_mesh`."""
  rules = _active.get()
  if rules is None:
    return x
  return jax.lax.with_sharding_constraint(x, rules.spec(*logical))


def constrain_columns(x: jax.Array) -> jax.Array:
  """Pins [B, T, D] looked up in a table that is split over `embed`."""
  # Each device then has the columns of its part of the table, for the rows of
  # all devices that share them, and so has the gradient: devices exchange rows,
  # not the table, and sum a part of the table's gradient, not all of it.
  rules = _active.get()
  if rules is None:
    return x
  columns = rules.mesh_axes('embed')
  rest = tuple(a for a in rules.mesh_axes('batch') if a not in columns)
  spec = PartitionSpec(rest or None, None, columns or None)
  return jax.lax.with_sharding_constraint(x, spec)


def map_batch_shards(
  compute, rows: tuple, table: jax.Array, bias: jax.Array | None
):
  """Calls compute(*rows, table, bias) on each device with its batch rows.

  Args:
    compute: returns a pytree of arrays [B, ...]. It may `constrain`, by axes
      that are not the batch's.
    rows: pytrees of arrays [B, ...].
    table: [V, D], axes 'vocab' and 'embed'; every row reads all of it. Or a
      pytree of arrays, which has no gradient.
    bias: [V] or None; has no gradient.
  """
  # The table's gradient is summed over devices once, however often `compute`
  # reads it; a loop that GSPMD partitions sums in every turn.
  rules, mesh = _active.get(), jax.sharding.get_abstract_mesh()
  axes = rules.mesh_axes('batch') if rules else ()
  if all(mesh.shape[axis] == 1 for axis in axes):
    return compute(*rows, table, bias)
  # Each device is sent rows of the table's gradient, then exchanges them for
  # its columns. Reduce-scattered by columns, which can be fewer than the 128 of
  # a tile, XLA sends the whole sum to all. (And so it does where V does not
  # divide, or `tensor` splits it.)
  over = tuple(axis for axis in rules.mesh_axes('embed') if axis in axes)
  parts = math.prod(mesh.shape[axis] for axis in over)
  # Over an axis that is not the batch's, GSPMD would gather the table here.
  alone = math.prod(mesh.shape[axis] for axis in axes) == mesh.size
  is_array = isinstance(table, jax.Array)
  if not (is_array and alone and parts > 1 and len(table) % parts == 0):
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
    in_specs=(
      PartitionSpec(None, over or None) if is_array else whole,
      whole,
      *(split,) * len(rows),
    ),
    out_specs=split,
    axis_names=set(axes),
    check_vma=False,
  )(table, bias, *rows)


def host_rows(mesh, rules: Rules, batch_size: int) -> np.ndarray:
  """Returns the rows of a batch that this process's devices hold, in order."""
  # They need not be consecutive, and several processes may feed the same ones:
  # where `tensor` spans processes, each of them holds the same rows.
  sharding = NamedSharding(mesh, rules.spec('batch'))
  indices = sharding.addressable_devices_indices_map((batch_size,)).values()
  rows = np.arange(batch_size)
  return np.unique(np.concatenate([rows[index] for index in indices]))


def shard_batch(batch, mesh, rules: Rules, batch_size: int | None = None):
  """Moves host arrays [B, ...] to devices, split over the batch axes.

  `batch_size` is B where the arrays hold only the `host_rows` of this process;
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
