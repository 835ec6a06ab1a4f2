"""Falls back to the newest intact step where newer ones are damaged."""

import itertools
from collections.abc import Callable

import jax

from atm import storage
from atm.checkpoint import reader
from atm.checkpoint.checksums import DamageError
from atm.checkpoint.manager import CheckpointManager
from atm.checkpoint.staged_steps import rename_step


def read_newest_intact(
  checkpoints: CheckpointManager, read: Callable[[int], object]
):
  """Returns (step, read(step)) of the newest intact step, or (None, None).

  Damaged steps that are newer are logged and renamed to STEP.damaged.

  Raises:
    DamageError: all steps are damaged; nothing is changed.
  """
  damaged = []
  for step in reversed(checkpoints.all_steps()):
    try:
      value = read(step)
    except DamageError as e:
      checkpoints.log(str(e))
      damaged.append(step)
      continue
    if damaged:
      names = ', '.join(rename_damaged(checkpoints, damaged))
      checkpoints.log(
        f'falling back to step {step:,}, the newest intact one; kept for you '
        f'to look at or remove: {names}'
      )
    return step, value
  if damaged:
    raise DamageError(
      f'no step in {checkpoints.directory} is intact: all of '
      f'{sorted(damaged)} are damaged. Nothing was changed. Put a copy there, '
      'or use another MODEL_DIR to begin anew.'
    )
  return None, None


def rename_damaged(
  checkpoints: CheckpointManager, steps: list[int]
) -> list[str]:
  """Renames steps so that they can be saved again; returns their new names."""
  folder, names = checkpoints.directory, []
  for step in steps:
    name, number = f'{step}.damaged', itertools.count(2)
    while storage.exists(f'{folder}/{name}'):
      name = f'{step}.damaged-{next(number)}'
    if jax.process_index() == 0:
      rename = rename_step if storage.is_remote(folder) else storage.rename
      rename(f'{folder}/{step}', f'{folder}/{name}')
    names.append(name)
  reader.is_true_everywhere(True)  # none lists the steps before the renames
  checkpoints.orbax.reload()
  return names
