"""Small checkpoints and ways to damage them, or to stop their writing."""

import contextlib
import json
import os
import random
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from atm import fileio
from atm.checkpoint import checksums, manager, paths

# Orbax leaves the other futures of a failed read or write to the collector.
IGNORE_LEFTOVERS = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning',
  'ignore::pytest.PytestUnhandledThreadExceptionWarning',
)


def make_trees(step: int = 5, size: int = 24) -> dict:
  """Returns arrays of every dtype there is, few: Orbax takes 1 ms for each."""
  rng = np.random.default_rng(step)
  draw = lambda dtype, *shape: jnp.asarray(rng.normal(size=shape), dtype)
  params = {
    'encoder': {'layers': {'kernel': draw('float32', 2, size, 16)}},
    'lm_head': draw('bfloat16', 16, size),
  }
  count = jnp.asarray(step, jnp.int32)
  state = {'mu': draw('float32', size)}, {'count': count}
  return {'params': params, 'optimizer': {'step': count, 'state': state}}


def abstract_like(trees: dict) -> dict:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trees
  )


def save_steps(directory, steps, **options) -> manager.CheckpointManager:
  """Saves `make_trees` at some steps; returns the open manager."""
  made = manager.CheckpointManager(str(directory), **options)
  for n in steps:
    made.save(n, make_trees(n), {'data': {'step': n}})
  made.wait_until_finished()
  return made


def list_files(directory) -> list[str]:
  found = (
    os.path.join(d, f) for d, _, names in os.walk(directory) for f in names
  )
  return sorted(path for path in found if os.path.getsize(path))


def bytes_of(trees: dict) -> list[bytes]:
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(trees)]


@contextlib.contextmanager
def damage_file(path: str, draw: random.Random):
  """Flips one bit of a file, or cuts it short; makes it whole afterwards."""
  with open(path, 'rb') as f:
    whole = f.read()
  how = draw.choice(['flip', 'flip', 'cut'])
  broken = bytearray(whole)
  if how == 'flip':
    broken[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
  else:
    del broken[draw.randrange(len(whole)) :]
  with open(path, 'wb') as f:
    f.write(broken)
  yield how
  with open(path, 'wb') as f:
    f.write(whole)


def change_a_value(directory, step: int) -> None:
  """Changes the values of a step's parameters, as Orbax sees nothing of."""
  folder = os.path.join(directory, paths.CHECKPOINTS, str(step), 'params')
  with ocp.StandardCheckpointer() as orbax:
    tree = orbax.restore(folder)
    tree['lm_head'] = tree['lm_head'].at[3, 3].add(1)
    shutil.rmtree(folder)
    orbax.save(folder, tree)


def remove_checksums(directory, step: int) -> None:
  """Makes a step look as before there were checksums."""
  path = os.path.join(directory, 'checkpoints', str(step), 'meta', 'metadata')
  with open(path) as f:
    meta = json.load(f)
  for key in (checksums.SUMS, fileio.SEAL):
    del meta[key]
  with open(path, 'w') as f:
    json.dump(meta, f)


@contextlib.contextmanager
def full_disk(room: int = 2048):
  """Lets no file grow beyond `room` bytes, as on a disk that is full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
