"""Meshes: sizes that fit, and devices that are neighbours."""

import dataclasses
import itertools

import numpy as np
import pytest

from atm.parallel import mesh as mesh_lib


def test_mesh_fills_an_axis():
  assert dict(mesh_lib.make_mesh(tensor=2).shape) == {
    'slice': 1, 'data': 4, 'fsdp': 1, 'tensor': 2
  }  # fmt: skip
  filled = mesh_lib.make_mesh(slice=-1, data=2, fsdp=2)
  assert tuple(filled.shape.values()) == (2, 2, 2, 1)


@pytest.mark.parametrize(
  'sizes',
  [
    dict(data=3),
    dict(data=-1, fsdp=-1),
    dict(data=0),
    dict(tensor=16),
    dict(slice=3),
    dict(data=2, fsdp=2),
    dict(data=4, fsdp=4),
  ],  # fmt: skip
)
def test_mesh_names_sizes_that_do_not_fit(sizes):
  with pytest.raises(
    ValueError, match='mesh.slice = .*mesh.data = .*mesh.tensor'
  ):
    mesh_lib.make_mesh(**sizes)


@pytest.mark.parametrize(
  'count, sizes, fitted',
  [
    (8, (1, 2, 2, 2), (1, 2, 2, 2)),
    (4, (1, 2, 2, 2), (1, 1, 2, 2)),
    (1, (1, 2, 2, 2), (1, 1, 1, 1)),
    (16, (1, 2, 2, 2), (1, 4, 2, 2)),
    (6, (1, 2, 2, 2), (1, 3, 1, 2)),
    (4, (2, 2, 2, 1), (2, 1, 2, 1)),
    (8, (1, 2, -1, 3), (1, 2, 4, 1)),
    (2, (1, -1, 4, 1), (1, 1, 2, 1)),
  ],
)
def test_a_mesh_of_other_devices_is_fitted(count, sizes, fitted):
  """What a device holds stays where it can: `data` gives way first."""
  named = dict(zip(mesh_lib.MESH_AXES, sizes, strict=True))
  assert mesh_lib.fit_sizes(count, **named) == fitted
  assert mesh_lib.fill_sizes(count, **dict(zip(named, fitted))) == fitted
  with pytest.raises(ValueError, match='mesh.tensor = 0: sizes are positive'):
    mesh_lib.fit_sizes(count, **{**named, 'tensor': 0})


@dataclasses.dataclass
class Chip:
  """What a mesh asks of a TPU's device."""

  coords: tuple[int, int, int]
  slice_index: int
  id: int
  platform: str = 'tpu'
  device_kind: str = 'TPU v5'
  process_index: int = 0
  core_on_chip: int = 0


def pod(*sides, slices=1):
  """The chips of a few slices, as shuffled as JAX may list them."""
  coords = itertools.product(*map(range, sides))
  chips = [Chip(at, n, 0) for at in coords for n in range(slices)]
  np.random.default_rng(0).shuffle(chips)
  for number, chip in enumerate(chips):
    chip.id = number
  return chips


def test_slices_are_the_outer_axis():
  """Faults seen: devices reshaped as listed; slices laid on `fsdp`."""
  chips = pod(4, 4, 8, slices=2)
  made = mesh_lib.arrange_devices((2, 2, 64, 1), chips)
  assert made.shape == (2, 2, 64, 1)
  assert len({chip.id for chip in made.flat}) == 256
  for number, block in enumerate(made):
    assert {chip.slice_index for chip in block.flat} == {number}
  with pytest.raises(ValueError, match='mesh.slice = 1, .* are 2 slices: set'):
    mesh_lib.arrange_devices((1, 4, 64, 1), chips)


def test_the_last_axis_follows_the_links_of_a_pod():
  """Fault seen: devices reshaped as listed."""
  made = mesh_lib.arrange_devices((1, 2, 16, 4), pod(4, 4, 8))
  for line in made.reshape(-1, 4):  # a ring of four chips along one side
    coords = np.array([chip.coords for chip in line])
    assert sorted(np.ptp(coords, axis=0)) == [0, 0, 3]
