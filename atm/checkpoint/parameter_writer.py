"""Writes the parameters of a checkpoint one at a time, in bounded memory."""

import functools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from atm import fileio
from atm.checkpoint import checksums
from atm.checkpoint.hf_folder import is_stacked
from atm.checkpoint.paths import CHECKPOINTS
from atm.checkpoint.staged_steps import COMMIT_FILE
from atm.messages import clock_text
from atm.model import quantized

# A parameter's path, and the arrays that are written of it by their own paths.
Parts = tuple[tuple[str, ...], Mapping[tuple[str, ...], jax.Array]]
GIB = 2**30
TOGETHER = 2**24  # bytes; parameters below this are written several at a time


def split_arrays(
  arrays: Iterable[tuple[tuple[str, ...], jax.Array]], weights: str | None
) -> Iterator[Parts]:
  """Yields what is written of each parameter: itself, or values and scale.

  Args:
    arrays: (path, parameter), each made when it is due.
    weights: 'int8' quantises those that `quantized` names; None: as they are.
  """
  # No local name holds a parameter while the next one is made.
  for path, array in arrays:
    parts = {path: array}
    del array
    if weights == 'int8' and quantized.is_quantized(path):
      matrix = _quantize(path, parts.pop(path))
      parts = {(*path, k): v for k, v in vars(matrix).items()}
      del matrix
    yield path, parts
    parts = None


def _quantize(path, array) -> quantized.QuantizedMatrix:
  """Returns a parameter in int8, whose layers are quantised one by one."""
  # All at once XLA would hold a float32 copy, twice the bytes of bfloat16.
  make = functools.partial(_quantize_jit, path)
  if not is_stacked(path):
    return make(array)
  layers = [make(array[i]) for i in range(len(array))]
  return jax.tree.map(lambda *parts: jnp.stack(parts), *layers)


_quantize_jit = jax.jit(quantized.quantize_parameter, static_argnums=0)


def write_checkpoint(
  directory: str,
  step: int,
  arrays: Iterable[Parts],
  sizes: Mapping[tuple[str, ...], int],
  meta: dict,
  say: Callable[[str], None],
) -> None:
  """Writes checkpoints/STEP: parameters, and metadata with their checksums.

  Args:
    directory: gets the checkpoint.
    step: its number.
    arrays: made one after the other, each when it is due.
    sizes: path of a parameter -> bytes to read.
    meta: a JSON object.
    say: prints a line.
  """
  place = os.path.join(directory, CHECKPOINTS, str(step))
  sums = _write_parameters(directory, place, arrays, sizes, say)
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
    sealed = ocp.args.JsonSave(checksums.seal_meta(meta, sums))
    writer.save(os.path.join(place, 'meta'), sealed)
  # As Orbax's own steps have it: a copy in an object store is listed by it.
  fileio.write_atomically(os.path.join(place, COMMIT_FILE), 'whole\n')


def _write_parameters(directory, place, arrays, sizes, say) -> dict:
  """Writes PLACE/params in parts; returns the checksums."""
  from orbax.checkpoint.experimental import v1 as orbax

  total = sum(sizes.values())
  path = os.path.join(directory, 'parameters')
  start = logged = time.perf_counter()
  done, sums, group = 0, {}, {}
  for name, parts in arrays:
    for part, array in parts.items():
      alone = array.sharding.num_devices == 1
      whole = np.asarray(array) if alone else array  # on a CPU without a copy
      sums |= checksums.compute_checksums({'/'.join(('params', *part)): whole})
      del whole, array
    group |= parts
    del parts
    done += sizes[name]
    waiting = sum(array.nbytes for array in group.values())
    if done == total or waiting >= TOGETHER:
      orbax.partial.save(path, traverse_util.unflatten_dict(group))
      group.clear()
    now = time.perf_counter()
    if now - logged > 2 or done == total:
      rate = done / (now - start)
      say(
        f'{done / GIB:.2f}/{total / GIB:.2f} GiB  {rate / 2**20:,.0f} MiB/s  '
        f'{clock_text((total - done) / rate)} left'
      )
      logged = now
  orbax.partial.finalize(path)
  os.makedirs(place)
  for old, new in ('state', 'params'), ('_CHECKPOINT_METADATA',) * 2:
    os.rename(os.path.join(path, old), os.path.join(place, new))
  shutil.rmtree(path)
  return sums
