"""What the command prints of an error that ends it: one line, or one screen.

A user's mistake is one line. Any other error is a screen: where it was, in
which versions, and the file that holds the whole traceback. Imports nothing
heavy, for the error may be that of an import.
"""

import importlib.metadata
import os
import platform
import re
import select
import shlex
import sys
import tempfile
import traceback

from atm import __version__
from atm.messages import CrashNote, MissingExtraError, list_frames, one_line

LINE_WIDTH = 480  # of an error's line; `atm: error: ` stands in front
VERSIONS = 'jax', 'jaxlib', 'numpy', 'orbax-checkpoint'
MEMORY_HINTS = {
  'RESOURCE_EXHAUSTED': 'the device has too little memory: use a smaller '
  'BATCH_SIZE, shorter TASK_FEATURE_LENGTHS, or another remat or mesh; '
  '`atm plan` tells what fits',
  'MemoryError': 'the machine has too little memory: use a smaller BATCH_SIZE '
  'or fewer PROCESSES, or look for a file that is far too large',
}


# How XLA begins an error of a computation that other hosts are part of.
_RUNTIME = re.compile(
  '(UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|INTERNAL): '
)
# A key for clients of `atm serve`, as a macro or as a parameter.
_KEY = re.compile(r'(--gin\.(?:[\w./]*\.)?api_key\s*=)\s*(.*)', re.I | re.S)
HIDDEN = '***'


def hide_keys(text: str, command: list[str]) -> str:
  """Returns a text without the keys that a command's arguments hold."""
  for argument in command:
    if (match := _KEY.fullmatch(argument)) is None:
      continue
    text = text.replace(argument, match[1] + HIDDEN)
    key = match[2].strip().strip('\'"')
    if len(key) > 3:  # shorter ones are parts of words
      text = text.replace(key, HIDDEN)
  return text


def get_note(error: BaseException) -> str | None:
  """Returns the note that a training run added, if it did; JAX adds others."""
  notes = getattr(error, '__notes__', [])
  return next((note for note in notes if isinstance(note, CrashNote)), None)


def is_mistake(error: BaseException) -> bool:
  """Tells whether an error is one of those that say what to do otherwise."""
  from atm.cli.gin_text import UserError

  return isinstance(
    error,
    UserError | ValueError | FloatingPointError | OSError | MissingExtraError,
  )


def may_pass(error: BaseException | None) -> bool:
  """Tells whether an object store failed, which may not fail the next time."""
  client = sys.modules.get('atm.storage.client')
  while client and error is not None:
    if isinstance(error, client.PassingError):
      return True
    error = error.__cause__  # a save that failed says of what
  return False


def is_of_runtime(error: BaseException | None) -> bool:
  """Tells whether an error is one of XLA's runtime, or follows from one."""
  while error is not None:
    # As `JaxRuntimeError` or `ValueError`: by its text.
    if _RUNTIME.match(str(error)):
      return True
    error = error.__cause__
  return False


def format_error(error: BaseException, command: list[str]) -> str:
  """Formats an error as printed: a line, and what else is to be known of it."""
  lines = [_head(error)]
  if note := get_note(error):
    lines.append(note)
  if not is_mistake(error):
    lines += [f'  {k:<10} {v}' for k, v in _describe(error, command).items()]
  return hide_keys('\n'.join(lines), command)


def _head(error: BaseException) -> str:
  """Returns an error's type, unless it is a mistake, and its text."""
  # gin adds lines about the call it came through.
  text = re.split(r'\n\s*In call to configurable', str(error))[0]
  if not is_mistake(error):
    text = f'{type(error).__name__}: {text}'
  text = text.encode('utf-8', 'backslashreplace').decode()
  return one_line(text if text.strip() else type(error).__name__, LINE_WIDTH)


def _describe(error: BaseException, command: list[str]) -> dict[str, str]:
  """Returns what a report of a fault needs, by name."""
  facts = {}
  if get_note(error) is None:
    places = list_frames(error)[:4] or ['outside of atm']
    facts['where'] = ('\n' + ' ' * 13).join(places)
    facts['traceback'] = _write_traceback(error, command)
  facts['command'] = one_line(_format_command(command), 300)
  facts['versions'] = _list_versions()
  known = (h for k, h in MEMORY_HINTS.items() if k in _head(error)[:600])
  fault = 'a fault of atm or of its surroundings: report it, with the traceback'
  facts['hint'] = next(known, fault)
  return facts


def _format_command(command: list[str]) -> str:
  return shlex.join(['atm', *(hide_keys(x, command) for x in command)])


def _list_versions() -> str:
  """Returns the versions of Python and of what computes, and the machine."""
  versions = [f'python {platform.python_version()}', f'atm {__version__}']
  for name in VERSIONS:
    try:
      versions.append(f'{name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      versions.append(f'no {name}')
  return ', '.join([*versions, f'{sys.platform} {platform.machine()}'])


def _write_traceback(error: BaseException, command: list[str]) -> str:
  """Writes a traceback to a file of its own; returns the path."""
  try:
    # Readable by its owner alone: a command may name what is private.
    number, path = tempfile.mkstemp('.txt', 'atm-crash-')
    with open(number, 'w', encoding='utf-8', errors='backslashreplace') as f:
      f.write(f'{_format_command(command)}\n{_list_versions()}\n\n')
      for part in traceback.format_exception(error):
        f.write(hide_keys(part, command))
  except Exception as e:  # a full disk, say, or no memory for it
    return f'not written: {one_line(e, 100)}; ATM_TRACEBACK=1 prints it'
  return f'{path}; ATM_TRACEBACK=1 prints it'


def is_output_closed() -> bool:
  """Tells whether standard output is a pipe that nobody reads any more."""
  try:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
  except (AttributeError, OSError, ValueError):  # there is none, or no file
    return False


def drop_output() -> None:
  """Drops what is still to be written to standard output."""
  # Python would flush it when it ends, and print a second error.
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
