"""Pods: their names, links and devices."""

import functools
import sys

import pytest

from atm.cli import gin_files
from atm.parallel import mesh as mesh_lib
from atm.plan import hardware

POD = hardware.parse_pod('v5p:4x4x8')


def test_every_pods_file_names_its_topology():
  for name in gin_files.shipped_files():
    if name.startswith(('pods/v', 'pods/tpu')):
      with open(gin_files.find_file(name)) as f:
        text = f.read()
      (line,) = [x for x in text.splitlines() if x.startswith('TOPOLOGY')]
      pod = hardware.parse_pod(line.split("'")[1])
      many = f'_x{pod.slices}' if pod.slices > 1 else ''
      shape = 'x'.join(map(str, pod.shape))
      assert name == f'pods/{pod.kind}_{shape}{many}.gin'
      assert f': {pod.chips} chips' in text
      assert f'{pod.chip.usable / 2**30:.2f} GiB a ' in text


@pytest.mark.parametrize(
  'name, expected',
  [
    ('v5p-128', "'v5p:4x4x8'"),
    ('v5q:4x4x8', "Did you mean 'v5p:4x4x8'"),
    ('v5p:4x4x7', "nearest in size: 'v5p:4x4x8'"),
    ('v5e:4x4x4', "nearest in size: 'v5e:8x8'"),
    ('0 * v5e:4x4', 'TOPOLOGY'),
  ],
)
def test_an_impossible_pod_is_refused(name, expected):
  with pytest.raises(ValueError, match=expected) as e:
    hardware.parse_pod(name)
  assert '\n' not in str(e.value)


def test_links_of_the_sides_that_a_group_spans():
  """Fault seen: a line's two links taken for a ring's."""
  link = POD.chip.link
  row = [(0, 0, z) for z in range(8)]
  assert POD.link_speeds(row) == (2 * link, 2 * link)
  plane = [(0, y, z) for y in range(4) for z in range(8)]
  assert POD.link_speeds(plane) == (2 * link, 4 * link)
  flat = hardware.parse_pod('v5e:8x8')
  assert flat.link_speeds([(x, 0) for x in range(8)]) == (4.5e10, 4.5e10)
  assert flat.link_speeds([(3, 3)]) == (4.5e10, 4.5e10)


def test_a_chip_of_two_devices():
  """Fault seen: a mesh over half of the devices."""
  pod = hardware.parse_pod('2 * tpu7x:4x4x4')
  assert (pod.chips, pod.size) == (128, 256)
  assert pod.chip.peak == 2307e12 / 2
  assert POD.chips == POD.size == 128


def test_a_missing_libtpu_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(ValueError, match=r"pip install 'atm-jax\[plan\]'") as e:
    hardware.find_target('v5p:4x4x8', mesh_lib.make_mesh)
  assert '\n' not in str(e.value)


def test_skew_of_versions(monkeypatch):
  import importlib.metadata as found

  need = ['libtpu==0.0.42.*; extra == "tpu"', 'numpy']
  monkeypatch.setattr(found, 'requires', lambda name: need)
  for version, wrong in (('0.0.42.1', False), ('0.0.5', True)):
    monkeypatch.setattr(found, 'version', lambda name, v=version: v)
    assert bool(hardware.find_version_skew()) == wrong


@pytest.mark.libtpu
def test_a_mesh_that_does_not_divide_is_one_line():
  make = functools.partial(mesh_lib.make_mesh, data=3, fsdp=2)
  with pytest.raises(ValueError, match='does not fit 8 devices'):
    hardware.find_target('v5e:2x4', make)
