"""The machine of a process: its devices, and their rated power."""

import jax

from atm.parallel.peak_flops import find_kind

# Watts of a device as JAX counts devices: NVIDIA's greatest board power by its
# data sheets; for TPU v4 the greatest measured (Jouppi et al. 2023, table 4).
# Of later TPUs and of CPUs none is known here.
RATED_WATTS = {
  'TPU v4': 192,
  'NVIDIA A100-SXM': 400,
  'NVIDIA A100-PCIE': 300,
  'NVIDIA A100 80GB PCIe': 300,
  'NVIDIA H100 80GB HBM3': 700,
  'NVIDIA H100 PCIe': 350,
  'NVIDIA H100 NVL': 400,
  'NVIDIA H200': 700,
  'NVIDIA H200 NVL': 600,
  'NVIDIA B200': 1000,
}


def describe_machine() -> dict:
  """Returns the kind and number of all processes' devices.

  On CPUs the kind is the processor's name, and a process counts as one device:
  those that XLA simulates share the processor.
  """
  device = jax.local_devices()[0]
  if device.platform == 'cpu':
    return {'kind': _find_processor(), 'devices': jax.process_count()}
  return {'kind': device.device_kind, 'devices': jax.device_count()}


def find_rated_watts(kind: str) -> int | None:
  """Returns the rated power of a device of a kind; None: not known."""
  return RATED_WATTS.get(find_kind(kind, RATED_WATTS))


def _find_processor() -> str:
  """Returns the name of this machine's processor, or 'cpu'."""
  try:
    with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as f:
      names = (line for line in f if line.startswith('model name'))
      return next(names, '').partition(':')[2].strip() or 'cpu'
  except OSError:
    return 'cpu'
