"""Matrix products by the forms that XLA's CPU backend runs them in.

GFLOP/s of A B, A B' and A' B, of A' B with A' written out first, and of A B
with its result in A's dtype, for float32 and bfloat16; medians of 9, in turn.
This is what atm/model/matmul.py stands on.

  python benchmarks/products.py
"""

import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

SHAPES = [(4096, 512, 2048), (4096, 512, 512), (512, 512, 32000)]  # N, A, B


def seconds(compute, *given) -> float:
  import jax

  compute = jax.jit(compute)
  jax.block_until_ready(compute(*given))
  times = []
  for _ in range(9):
    start = time.perf_counter()
    jax.block_until_ready(compute(*given))
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def main():
  import jax
  import jax.numpy as jnp

  from atm.model import matmul
  from atm.parallel import distributed, xla_options

  xla_options.set_flags()
  distributed.start_jax(cpu_devices=1)
  dot, heads = (
    matmul.dot_float32,
    ('A B', "A B'", "A' B", "A' written", 'own dtype'),
  )
  print(f'{"N, A, B":28}' + ''.join(f'{head:>12}' for head in heads))
  for N, A, B in SHAPES:
    for dtype in (jnp.float32, jnp.bfloat16):
      draw = lambda i, *shape, dtype=dtype: jax.random.normal(
        jax.random.key(i), shape, dtype
      )
      x, w, slope = draw(0, N, A), draw(1, A, B), draw(2, N, B)
      times = (
        seconds(lambda x, w: dot(x, w, (1, 0)), x, w),
        seconds(lambda slope, w: dot(slope, w, (1, 1)), slope, w),
        seconds(lambda x, slope: dot(x, slope, (0, 0)), x, slope),
        seconds(matmul.weight_gradient, x, slope),
        seconds(lambda x, w: x @ w, x, w),
      )
      row = f'{N}, {A}, {B} {jnp.dtype(dtype).name}'
      rates = (2e-9 * N * A * B / s for s in times)
      print(f'{row:28}' + ''.join(f'{rate:12.0f}' for rate in rates))


if __name__ == '__main__':
  main()
