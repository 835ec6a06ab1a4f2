"""The device mesh: its four axes, and which device stands where."""

import math
from functools import partial

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from atm.messages import MOST_INT32, check_arguments, check_number

MESH_AXES = ('slice', 'data', 'fsdp', 'tensor')


@check_arguments(
  **{
    name: partial(check_number, f'mesh.{name}', least=-1, most=MOST_INT32)
    for name in MESH_AXES
  }
)
def make_mesh(
  slice: int = 1, data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None
) -> jax.sharding.Mesh:
  """Builds a mesh over `devices` (default: all); one size may be -1: the rest.

  On TPUs the axes follow the links between chips, the last axis the shortest,
  and `slice` the slices (pods) that the network of the data centre joins.
  Elsewhere devices stand in the order of their processes, the last axis the
  fastest: `slice` then splits them into equal blocks.

  Args:
    slice: how many slices (pods); parameters are copied to each.
    data: ways of data parallelism; parameters are copied.
    fsdp: ways of data parallelism with parameters and optimizer state split.
    tensor: ways that matrices, heads and the vocabulary are split.
    devices: those of the mesh; None: all.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or `slice`
      is not the number of the TPU's slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = fill_sizes(
    len(devices), slice=slice, data=data, fsdp=fsdp, tensor=tensor
  )
  return jax.sharding.Mesh(
    arrange_devices(sizes, devices),
    MESH_AXES,
    axis_types=(AxisType.Auto,) * len(MESH_AXES),
  )


def fill_sizes(count: int, **sizes: int) -> tuple[int, ...]:
  """Returns the sizes of a mesh over `count` devices, with -1 filled in."""
  shown, given = _check_sizes(sizes), list(sizes.values())
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


def fit_sizes(count: int, **sizes: int) -> tuple[int, ...]:
  """Returns the sizes nearest to those of a mesh of other devices.

  The inner axes keep what divides `count`, as `fsdp` and `tensor` say what a
  device holds. The axis of -1, or else `data`, takes the rest.
  """
  _check_sizes(sizes)
  filled = next((name for name, size in sizes.items() if size == -1), 'data')
  fitted, rest = {}, count
  for name in reversed(MESH_AXES):
    if name != filled:
      fitted[name] = math.gcd(sizes[name], rest)
      rest //= fitted[name]
  return tuple((fitted | {filled: rest})[name] for name in MESH_AXES)


def _check_sizes(sizes: dict[str, int]) -> str:
  """Returns sizes as errors show them; raises ValueError for bad ones."""
  shown = ', '.join(f'mesh.{name} = {size}' for name, size in sizes.items())
  given = list(sizes.values())
  if given.count(-1) > 1 or any(size < 1 and size != -1 for size in given):
    raise ValueError(f'{shown}: sizes are positive, and one may be -1.')
  return shown


def format_sizes(sizes) -> str:
  """Formats the sizes of a mesh by axis: 'slice 1 x data 2 x fsdp 4'."""
  return ' x '.join(f'{name} {size}' for name, size in sizes.items())


def arrange_devices(sizes: tuple[int, ...], devices: list) -> np.ndarray:
  """Arranges devices in the shape of a mesh, those that talk most adjacent."""
  if devices[0].platform != 'tpu':
    order = sorted(devices, key=lambda d: (d.process_index, d.id))
    return np.array(order).reshape(sizes)
  slices, *inner = sizes
  actual = len({getattr(device, 'slice_index', 0) for device in devices})
  if actual > 1 and slices != actual:
    raise ValueError(
      f'mesh.slice = {slices}, but the devices are {actual} slices: set '
      f'mesh.slice = {actual}'
    )
  # jax.make_mesh knows no slices, and would not split a side of the pod, as
  # 2 x 64 of 4 x 4 x 8 need.
  if actual > 1:
    return mesh_utils.create_hybrid_device_mesh(
      (1, *inner), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )
  return mesh_utils.create_device_mesh(
    sizes, devices, allow_split_physical_axes=True
  )
