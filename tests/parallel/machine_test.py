"""The machine of a run, and the power that devices are rated at."""

import jax
import pytest

from atm.parallel import machine


def test_simulated_devices_are_one_processor():
  found = machine.describe_machine()
  assert found['devices'] == 1 < len(jax.devices())
  with open('/proc/cpuinfo') as f:
    assert found['kind'] == 'cpu' or found['kind'] in f.read()


@pytest.mark.parametrize(
  'kind, watts',
  [
    ('NVIDIA H200', 700),
    ('NVIDIA H200 NVL', 600),
    ('NVIDIA A100-SXM4-80GB', 400),
    ('TPU v4', 192),
    ('TPU v5 lite', None),
    ('Intel(R) Xeon(R) Processor', None),
  ],
)
def test_rated_watts(kind, watts):
  assert machine.find_rated_watts(kind) == watts
