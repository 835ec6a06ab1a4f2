"""Two processes of one run, on this machine: what stops one stops both.

Run as `hosts.py PORT NUMBER DIRECTORY`: goes on from the newest checkpoint with
steps that add up over both processes, and saves where they stop.
"""

import os
import sys
import time

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from atm.checkpoint import manager, reader, recovery
from atm.parallel import mesh as mesh_lib
from atm.train import preemption
from atm.train.step import State


def start(port: str, number: str) -> None:
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 2)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'localhost:{port}', 2, int(number))


def state_at(step: int, mesh) -> State:
  """A state whose parameters lie on both hosts."""
  whole = np.random.default_rng(step).normal(size=(8, 6)).astype(np.float32)
  placed = NamedSharding(mesh, P('data'))
  params = jax.make_array_from_callback(whole.shape, placed, lambda i: whole[i])
  count = jax.device_put(jnp.int32(step), NamedSharding(mesh, P()))
  return State(count, {'w': params}, {'count': count})


def main(port: str, number: str, directory: str) -> None:
  start(port, number)
  mesh = mesh_lib.make_mesh()
  total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))
  say = lambda text: print(text, flush=True)
  reader.VERIFIED_AT_ONCE = 8  # bytes: the hosts share out three groups
  made = manager.CheckpointManager(directory, keep=1, log=say)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state_at(0, mesh),
  )
  trees = shapes.to_trees()
  at, found = recovery.read_newest_intact(
    made, lambda n: made.restore(n, trees)
  )
  if found is not None:
    wanted = state_at(at, mesh).to_trees()
    same = jax.tree.map(lambda x, y: bool((x == y).all()), found, wanted)
    say(f'restored {at} {all(jax.tree.leaves(same))}')
  with preemption.SignalHandler() as signals:
    signals.listen()
    for step in range((at or 0) + 1, 10_000):
      state = state_at(step, mesh)
      float(total(state.params['w']))
      say(f'step {step}')
      time.sleep(0.02)
      if signals.stops_after(step):
        break
  made.save(step, state.to_trees(), {'data': {'step': step}})
  made.raise_if_unsaved()
  made.close()
  say(f'saved {step}')


if __name__ == '__main__':
  main(*sys.argv[1:])
