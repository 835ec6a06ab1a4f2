"""Kernels of decoding on one CPU beside XLA's operations, in turn.

- products: of N rows with all matrices of a decoder and the LM head, by XLA, by
  the kernel, and by the kernel in int8;
- attention: of R rows, one query each, to caches of 512 positions, of which a
  row has filled 16 to 512, by XLA and by the kernel.

d512, 6 layers, ff 2048, 8 heads, a vocabulary of 32,000. Milliseconds, medians
of 9 in turn, and how many times as fast as XLA.

  python benchmarks/kernels.py
"""

import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

D, F, L, H, V, POSITIONS = 512, 2048, 6, 8, 32000, 512
ROWS = 1, 2, 4, 8, 16, 32, 64, 512
REPEATS = 4  # within a program


def take_turns(contestants: dict) -> dict[str, float]:
  """Returns median milliseconds of programs without arguments, by name."""
  import jax

  times = {name: [] for name in contestants}
  for turn in range(10):
    for name, compute in contestants.items():
      start = time.perf_counter()
      jax.block_until_ready(compute())
      if turn:  # the first compiles
        times[name].append((time.perf_counter() - start) / REPEATS * 1e3)
  return {name: statistics.median(x) for name, x in times.items()}


def show(name: str, times: dict[str, float]) -> None:
  base, *_ = times.values()
  cells = (f'{x:12.2f} {base / x:5.2f}x' for x in times.values())
  print(f'{name:14}' + ''.join(cells), flush=True)


def repeat(step, x):
  """Returns a program that takes steps x -> x, one after another."""
  import jax

  run = jax.jit(
    lambda x: jax.lax.fori_loop(0, REPEATS, lambda i, x: step(x), x)
  )
  return lambda: run(x)


def measure_products(draw) -> None:
  import jax.numpy as jnp

  from atm.model import matmul, packed, quantized

  shapes = ([(D, D)] * 6 + [(D, F), (F, D)]) * L + [(D, V)]
  matrices = [draw(*shape) for shape in shapes]
  quantize = lambda w: packed.pack_int8(quantized.quantize_rows(w.T))
  held = {'XLA': matrices}
  held['kernel'] = [packed.pack_matrix(w) for w in matrices]
  held['int8'] = [quantize(w) for w in matrices]

  def multiply(x, w):
    if isinstance(w, quantized.Matrix):
      return matmul.affine_matrix(x, w, jnp.zeros(w.outputs))
    return matmul.dot_float32(x, w, (1, 0))

  def step(matrices, x):
    for (A, _), w in zip(shapes, matrices):
      y = multiply(jnp.tile(x, (1, A // D)), w)
      x += 1e-3 * y[:, :D]  # each product waits for the one before
    return x

  for rows in ROWS:
    x = draw(rows, D)
    programs = {
      name: repeat(lambda x, ws=ws: step(ws, x), x) for name, ws in held.items()
    }
    show(f'N = {rows}', take_turns(programs))


def measure_attention(draw) -> None:
  import jax.numpy as jnp
  import numpy as np

  from atm.model import attention, kernels

  K = D // H
  for rows in (x for x in ROWS if x <= 64):
    keys = draw(rows, H, K, POSITIONS)
    values = draw(rows, H, POSITIONS, K)
    filled = np.geomspace(min(16, POSITIONS), POSITIONS, rows).astype(int)
    mask = jnp.asarray(np.arange(POSITIONS) < filled[:, None, None])

    def attend(x, keys=keys, values=values, mask=mask):
      return attention.attend_to_cache(x, keys, values, mask)

    programs = {}
    for name, has_kernels in (('XLA', False), ('kernel', True)):
      program = repeat(attend, draw(rows, 1, H, K))
      there = kernels.are_available
      kernels.are_available = lambda has=has_kernels: has
      program()  # it is traced here
      kernels.are_available = there
      programs[name] = program
    show(f'R = {rows}', take_turns(programs))


def main():
  import jax

  from atm.model import kernels
  from atm.parallel import distributed, xla_options

  xla_options.set_flags()
  distributed.start_jax(cpu_devices=1)
  if not kernels.are_available():
    sys.exit('there is no C compiler: expected cc, gcc, clang or $CC')
  keys = iter(jax.random.split(jax.random.key(0), 10_000))
  draw = lambda *shape: jax.random.normal(next(keys), shape)
  print(f'{"":14}' + ''.join(f'{x:>19}' for x in ('XLA', 'kernel', 'int8')))
  measure_products(draw)
  print('attention of a layer')
  measure_attention(draw)


if __name__ == '__main__':
  main()
