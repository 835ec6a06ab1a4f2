"""Which steps of a run are intact."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from atm.checkpoint.checksums import Damaged
from atm.checkpoint.manager import Checkpoints


def newest_intact(checkpoints: Checkpoints, read: Callable[[int], object]):
  """(step, read(step)) of the newest step that is not damaged; (None, None).

  Damaged steps that are newer are said and renamed to STEP.damaged.

  Raises:
    Damaged: all steps are; nothing is changed.
  """
  damaged = []
  for step in reversed(checkpoints.steps()):
    try:
      found = read(step)
    except Damaged as e:
      checkpoints.say(str(e))
      damaged.append(step)
      continue
    if damaged:
      names = ', '.join(checkpoints.set_aside(damaged))
      checkpoints.say(
        f'falling back to step {step:,}, the newest intact one; kept for you '
        f'to look at or remove: {names}'
      )
    return step, found
  if damaged:
    raise Damaged(
      f'no step in {checkpoints.directory} is intact: all of '
      f'{sorted(damaged)} are damaged. Nothing was changed. Put a copy there, '
      'or use another MODEL_DIR to begin anew.'
    )
  return None, None


@contextlib.contextmanager
def naming_intact(checkpoints: Checkpoints):
  """Adds to a Damaged raised inside the steps whose parameters are intact."""
  try:
    yield
  except Damaged as e:
    intact = []
    for step in checkpoints.steps():
      with contextlib.suppress(Damaged):
        for path in checkpoints.dtypes(step):  # one at a time
          checkpoints.parameter(step, path)
        intact.append(step)
    raise Damaged(f'{e}. Steps that are intact: {intact or "none"}') from e
