"""GiB a chip of the 20B while it decodes, from its arrays' own shapes.

Parameters and caches as `generate.prefill` makes them, by dtype, mesh, batch;
what the programs need between is not in it. No array is made.

  python benchmarks/decode_memory.py
"""

import functools
import math
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

S = T = 1024
MESHES = [  # chips, usable GiB of each, what they are
  (8, 15.75, 'v5e 2x4'), (16, 15.75, 'v5e 4x4'), (4, 30.75, 'v4 2x2x1'),
  (8, 31.24, 'v6e 2x4'), (4, 95.73, 'v5p 2x2x1'),
]  # fmt: skip
BATCHES = (1, 8, 32, 128)


def shards(tree) -> int:
  """Elements of one device's shards."""
  import jax

  shapes = (x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(tree))
  return sum(map(math.prod, shapes))


def caches(net, params, mesh, rules, batch: int):
  """Shapes and shardings of the caches of all layers."""
  import jax

  from atm.model.transformer import AlexaTM
  from atm.parallel import sharding

  make = functools.partial(net.apply, length=T, method=AlexaTM.empty_cache)
  shape = (batch, S, net.config.d_model)
  encoded = jax.ShapeDtypeStruct(shape, net.config.dtype)
  with sharding.use_mesh(mesh, rules):
    made = jax.eval_shape(lambda p, x: make({'params': p}, x), params, encoded)
  placed = sharding.NamedSharding(mesh, rules.spec('batch', 'heads'))
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), made
  )


def main():
  import jax

  from atm.model import config, parameters, transformer
  from atm.parallel import distributed, sharding
  from atm.parallel import mesh as mesh_lib

  distributed.start_jax(cpu_devices=16)
  rules = sharding.Rules()
  heads = ''.join(f'{f"B = {B}":>10}' for B in BATCHES)
  print(f'S = T = {S}\n{"":28}{"params":>10}{heads}')
  for chips, usable, name in MESHES:
    mesh = mesh_lib.make_mesh(
      data=1, tensor=chips, devices=jax.devices()[:chips]
    )
    for dtype, size in (('float32', 4), ('bfloat16', 2)):
      net = transformer.AlexaTM(config.ModelConfig(dtype=dtype))
      params = parameters.abstract_params(net, mesh, rules)
      of_params = shards(params) * size / 2**30
      print(f'{f"{name}, {dtype}":28}{of_params:10.1f}', end='')
      for B in BATCHES:
        of_cache = shards(caches(net, params, mesh, rules, B)) * size / 2**30
        total = of_params + of_cache
        print(f'{total:9.1f}{" " if total < usable else "*"}', end='')
      print()
  print('* more than the chip has to give')


if __name__ == '__main__':
  main()
