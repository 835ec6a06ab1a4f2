"""One of several processes of hosts_test.py, as SLURM would start them.

`python hosts_child.py FOLDER`; prints a JSON object of what it saw.
"""

import json
import os
import sys
import time

import jax
import numpy as np

from atm.parallel import distributed, sharding
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

MESHES = (
  dict(data=8),
  dict(data=1, fsdp=8),
  dict(data=2, fsdp=1, tensor=4),  # two processes hold the same rows
  dict(slice=2, data=1, fsdp=2, tensor=2),
  dict(data=1, tensor=8),  # all do
)
ROWS = 16


def fed(sizes: dict) -> dict:
  """Which rows this process feeds, and what of the batch arrives wrong."""
  mesh, rules = mesh_lib.make_mesh(**sizes), Rules()
  rows = sharding.host_rows(mesh, rules, ROWS)
  whole = 1.0 + np.arange(ROWS * 3).reshape(ROWS, 3)
  batch = sharding.shard_batch({'x': whole[rows]}, mesh, rules, ROWS)['x']
  wrong = sum(
    not np.array_equal(shard.data, whole[shard.index])
    for shard in batch.addressable_shards
  )
  total = jax.jit(lambda x: (x * x).sum())(batch)
  right = batch.shape == whole.shape and float(total) == (whole**2).sum()
  return {'rows': rows.tolist(), 'wrong': wrong, 'right': bool(right)}


def files(folder: str) -> str:
  """What process 0 writes, late, and all read."""
  path = os.path.join(folder, 'made')

  def make():
    if distributed.is_main_process():
      time.sleep(0.5)
      with open(path, 'w') as f:
        f.write('once')
    with open(path) as f:
      return f.read()

  return distributed.run_main_process_first(make)


def error(call, *args, **named) -> str:
  try:
    call(*args, **named)
  except Exception as e:
    return f'{type(e).__name__}: {e}'
  return 'none'


def fails_in(process: int):
  ran.append(process)
  if jax.process_index() == process:
    raise OSError(f'no disk in {process}')


if __name__ == '__main__':
  distributed.start_jax(cpu_devices=2, distributed='auto', timeout=60)
  me, ran = jax.process_index(), []
  seen = {
    'me': me,
    'made': files(sys.argv[1]),
    'share': distributed.process_share(),
    'first_fails': error(
      distributed.run_main_process_first, lambda: fails_in(0)
    ),
    'third_fails': error(
      distributed.run_main_process_first, lambda: fails_in(2)
    ),
    'ran': ran,
    'same': error(distributed.check_processes_agree, data=[1, 2], seed=0),
    'another': error(
      distributed.check_processes_agree, data=[1, 2], seed=me == 3
    ),
    'fed': [fed(sizes) for sizes in MESHES],
  }
  with open(os.path.join(sys.argv[1], f'seen-{me}.json'), 'w') as f:
    json.dump(seen, f)
