"""The note on an error that ends a run: where it was, and how to resume."""

import contextlib
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


class CrashReport:
  """Adds to an error that leaves it a note that fits one screen.

  The whole traceback goes to MODEL_DIR/failure.txt. Python prints an error's
  notes below it; `main` prints the error's own line and the notes alone.
  """

  def __init__(self, model_dir: str, last: int):
    """Takes the run's folder and its last step."""
    self.model_dir, self.last, self.done = model_dir, last, 0

  def __enter__(self):
    return self

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
    number = jax.process_index()
    name = FAILURE_FILE if not number else f'{number}-{FAILURE_FILE}'
    path = os.path.join(self.model_dir, name)
    try:
      with open(path, 'w') as f:
        f.writelines(traceback.format_exception(error))
    except OSError as e:  # a full disk, say
      return f'not written: {e}'
    return path


def _place(error: Exception) -> str:
  """Names the innermost line of ours that the error went through."""
  ours = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename.startswith(ATM + os.sep)
    and not frame.name.startswith('_')
  ]
  if not ours:
    return 'outside of atm'
  name = os.path.relpath(ours[-1].filename, ATM)
  return f'in {ours[-1].name}, atm/{name}:{ours[-1].lineno}'


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
  """Drops what Orbax prints of an error that it raises as well.

  Of the thousand writes that fail on a full disk one is raised; the others are
  logged or collected, each with a traceback.
  """
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  logging.getLogger('absl').addFilter(lambda r: '/orbax/' not in r.pathname)
  before = sys.unraisablehook

  def hook(found):
    if str(found.exc_value) != 'Event loop is closed':
      before(found)

  sys.unraisablehook = hook
