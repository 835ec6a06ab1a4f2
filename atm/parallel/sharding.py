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
import math

import jax
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding, PartitionSpec

from atm import messages
from atm.parallel import mesh as mesh_lib

BY_ROW = Layout((0, 1))  # of a matrix, which XLA may turn


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
      if axis not in mesh_lib.MESH_AXES:
        raise ValueError(
          f'Rules.{name} = {value!r}: {axis!r} is not a mesh axis.'
          + messages.did_you_mean(axis, mesh_lib.MESH_AXES)
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
def use_mesh(mesh, rules: Rules):
  """While open, `constrain` applies, and jit sees `mesh`."""
  token = _active.set(rules)
  try:
    with jax.set_mesh(mesh):
      yield
  finally:
    _active.reset(token)


def current_rules() -> Rules | None:
  """The rules of the `use_mesh` that is open."""
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


def map_batch_shards(
  compute, rows: tuple, table: jax.Array, bias: jax.Array | None
):
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


def shard_batch(batch, mesh, rules: Rules, batch_size: int | None = None):
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
