"""Bytes of arrays on devices, and what devices have left."""

import math

import jax

MEMORY_INFO = '/proc/meminfo'


def count_free_bytes(mesh: jax.sharding.Mesh) -> int | None:
  """Returns bytes that each device of a mesh has left; None: not known.

  Devices of a host's processor share what it has.
  """
  devices = list(mesh.local_devices)
  if devices[0].platform == 'cpu':
    free = read_available_bytes()
    return free and free // len(devices)
  stats = [device.memory_stats() for device in devices]
  if not all(x and 'bytes_limit' in x for x in stats):
    return None
  return min(x['bytes_limit'] - x['bytes_in_use'] for x in stats)


def read_available_bytes() -> int | None:
  """Returns what Linux has left for programs; None elsewhere."""
  try:
    with open(MEMORY_INFO) as f:
      lines = dict(line.split(':', 1) for line in f)
  except OSError:
    return None
  return int(lines['MemAvailable'].split()[0]) * 1024


def device_bytes(tree) -> int:
  """Returns bytes of the shards that one device has of (abstract) arrays."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def format_bytes(n: float) -> str:
  """Formats bytes as 3.51 GiB; smaller ones in MiB or KiB."""
  units = {'G': 2**30, 'M': 2**20}
  unit = next((u for u, size in units.items() if n >= size / 10), 'K')
  return f'{n / units.get(unit, 2**10):.2f} {unit}iB'
