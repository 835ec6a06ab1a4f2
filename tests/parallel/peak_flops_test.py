"""Peak FLOP/s by the kind of device."""

import types

import jax
import pytest

from atm.parallel import peak_flops


@pytest.mark.parametrize(
  'kind, expected',
  [
    ('TPU v5', 459e12),
    ('TPU v5 lite', 197e12),
    ('TPU7x', 1153.5e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA H200 NVL', 835e12),
    ('NVIDIA B200', 2250e12),
    ('TPU v99', 0),
  ],
)
def test_the_longest_name_that_fits_counts(monkeypatch, kind, expected):
  """Fault seen: v5's peak for a v5 lite."""
  device = types.SimpleNamespace(platform='tpu', device_kind=kind)
  monkeypatch.setattr(jax, 'local_devices', lambda: [device])
  monkeypatch.setattr(jax, 'device_count', lambda: 4)
  assert peak_flops.peak_flops.__wrapped__() == 4 * expected
