"""Peak FLOP/s of accelerators."""

import functools
import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp

# Peak dense bfloat16 FLOP/s of a device as JAX counts devices, by the vendors'
# data sheets: NVIDIA's are halves of the figures with sparsity. A TPU7x has
# 2,307e12 a chip, and two devices. A CPU's peak is measured, see `peak_flops`.
PEAK_FLOPS = {
  'TPU v2': 22.5e12,
  'TPU v3': 61.5e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'TPU7x': 1153.5e12,
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100 NVL': 835e12,
  'NVIDIA H200': 989e12,
  'NVIDIA H200 NVL': 835e12,
  'NVIDIA B200': 2250e12,
  'NVIDIA GB200': 2500e12,
}


@functools.cache
def peak_flops() -> float:
  """Returns the peak FLOP/s of all devices together; 0 if unknown."""
  # From PEAK_FLOPS by device kind; on the CPU the best of five float32 products
  # of two 1024 x 1024 matrices, for all simulated devices of a process
  # together, times the processes.
  device = jax.local_devices()[0]
  if device.platform != 'cpu':
    kind = find_kind(device.device_kind, PEAK_FLOPS)
    return PEAK_FLOPS.get(kind, 0.0) * jax.device_count()
  a = jax.device_put(jnp.ones((1024, 1024), jnp.float32), device)
  product = jax.jit(lambda x: x @ x)
  product(a).block_until_ready()  # compiled before it is timed
  best = float('inf')
  for _ in range(5):
    start = time.perf_counter()
    product(a).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * 1024**3 / best * jax.process_count()


def find_kind(device_kind: str, known: Iterable[str]) -> str:
  """Returns the known kind that a device is of, or ''."""
  # The longest that fits: an H100 is 'NVIDIA H100 80GB HBM3', and 'TPU v5' is
  # the beginning of 'TPU v5 lite'.
  kinds = [kind for kind in known if device_kind.startswith(kind)]
  return max(kinds, key=len, default='')
