"""Bytes of arrays, and of what devices have left."""

from atm.parallel import device_memory
from atm.parallel import mesh as mesh_lib


def test_bytes_have_a_unit_that_suits_them():
  """Fault seen: a tenth of a GiB as MiB, which is five digits in a table."""
  sizes = 2**33, 2**29, 3 * 2**20, 1024
  shown = [device_memory.format_bytes(n) for n in sizes]
  assert shown == ['8.00 GiB', '0.50 GiB', '3.00 MiB', '1.00 KiB']


def test_devices_of_a_processor_share_what_is_left(monkeypatch):
  monkeypatch.setattr(device_memory, 'read_available_bytes', lambda: 800)
  assert device_memory.count_free_bytes(mesh_lib.make_mesh()) == 100
  monkeypatch.undo()
  assert device_memory.read_available_bytes() > 2**20
