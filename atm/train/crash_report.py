"""The note on an error that ends a run: where it was, and how to resume."""

import contextlib
import dataclasses
import os
import shlex
import traceback

import jax

from atm import fileio
from atm.checkpoint import paths, reader
from atm.messages import CrashNote, list_frames

FAILURE_FILE = 'failure.txt'


@dataclasses.dataclass
class CrashReport(contextlib.AbstractContextManager):
  """Adds to an error that leaves it a note that fits one screen.

  The whole traceback goes to MODEL_DIR/failure.txt. Python prints an error's
  notes below it; `main` prints the error's own line and the notes alone.
  """

  model_dir: str
  last: int  # step of the run
  done: int = 0

  def __exit__(self, kind, error, trace) -> None:
    if isinstance(error, Exception):
      error.add_note(CrashNote(self.text(error)))

  def text(self, error: Exception) -> str:
    folder = paths.find_checkpoint_dir(self.model_dir)
    good = None
    with contextlib.suppress(Exception):
      good = reader.latest_step(self.model_dir)
    config = shlex.quote(os.path.join(self.model_dir, 'config.gin'))
    # Those without a name of their own say little.
    named = (f for f in list_frames(error) if not f.startswith('in _'))
    place = next(named, 'outside of atm')
    lines = {
      'where': f'after step {self.done:,} of {self.last:,}, {place}',
      'last good': 'none' if good is None else f'step {good:,} in {folder}',
      'traceback': self._keep(error),
      'resume': f'atm pretrain --gin_file={config}',
    }
    return '\n'.join(f'  {name:<10} {text}' for name, text in lines.items())

  def _keep(self, error: Exception) -> str:
    """Writes the traceback; returns its path."""
    prefix = f'{number}-' if (number := jax.process_index()) else ''
    path = os.path.join(self.model_dir, prefix + FAILURE_FILE)
    try:
      with fileio.replacing(path) as f:
        f.writelines(traceback.format_exception(error))
    except OSError as e:  # a full disk, say
      return f'not written: {e}'
    return path
