"""The note on an error that ends a run: where it was, and how to resume."""

import contextlib
import dataclasses
import logging
import os
import re
import shlex
import sys
import traceback

import jax

from atm import messages
from atm.checkpoint import paths, reader

FAILURE_FILE = 'failure.txt'
ATM = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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
      error.add_note(self.text(error))

  def text(self, error: Exception) -> str:
    folder = paths.find_checkpoint_dir(self.model_dir)
    good = None
    with contextlib.suppress(Exception):
      good = reader.latest_step(self.model_dir)
    config = shlex.quote(os.path.join(self.model_dir, 'config.gin'))
    lines = {
      'where': f'after step {self.done:,} of {self.last:,}, {_place(error)}',
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
      with open(path, 'w') as f:
        f.writelines(traceback.format_exception(error))
    except OSError as e:  # a full disk, say
      return f'not written: {e}'
    return path


def _place(error: Exception) -> str:
  """Names the innermost line of ours that the error went through."""
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    is_ours = frame.filename.startswith(ATM + os.sep)
    if is_ours and not frame.name.startswith('_'):
      name = os.path.relpath(frame.filename, ATM)
      return f'in {frame.name}, atm/{name}:{frame.lineno}'
  return 'outside of atm'


def has_note(error: BaseException) -> bool:
  """Tells whether a CrashReport has added its note."""
  return bool(getattr(error, '__notes__', []))


def format_error(error: BaseException) -> str:
  """Formats an error and its notes, as printed."""
  # gin adds lines about the call it came through.
  text = re.split(r'\n\s*In call to configurable', str(error))[0].strip()
  if has_note(error):
    text = messages.one_line(text)
  if type(error).__module__ == 'builtins' and not isinstance(
    error, ValueError | OSError
  ):
    text = f'{type(error).__name__}: {text}'
  return '\n'.join([text, *getattr(error, '__notes__', [])])


def silence_orbax() -> None:
  """Drops what Orbax prints of an error that it raises as well."""
  # Of the thousand writes that fail on a full disk one is raised; the others
  # are logged or collected, each with a traceback.
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  logging.getLogger('absl').addFilter(lambda r: '/orbax/' not in r.pathname)
  before = sys.unraisablehook

  def hook(found):
    if str(found.exc_value) != 'Event loop is closed':
      before(found)

  sys.unraisablehook = hook
