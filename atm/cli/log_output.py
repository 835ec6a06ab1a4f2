"""Standard output as a log, whose loss does not end the run that writes it.

And what libraries print that is no part of it.
"""

import contextlib
import logging
import os
import sys


def open_standard_streams() -> None:
  """Opens those of the standard streams that were closed at the start.

  What their encoding lacks, as ASCII does, will be written escaped.
  """
  # Else a file of ours would get the number 1 or 2, and what libraries print.
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, 'w', closefd=False))
    if hasattr(stream := getattr(sys, name), 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')


class LogOutput:
  """A text stream whose lines are dropped while they cannot be written."""

  def __init__(self, stream):
    self.stream, self.failed = stream, False

  def __getattr__(self, name):
    return getattr(self.stream, name)

  def write(self, text: str) -> int:
    """Writes a text, at once where a line ends."""
    try:
      self.stream.write(text)
      if '\n' in text:
        self.stream.flush()
    except (OSError, ValueError) as e:  # a ValueError: the stream is closed
      self._fail(e)
    return len(text)

  def flush(self) -> None:
    """Flushes what can be written."""
    try:
      self.stream.flush()
    except (OSError, ValueError) as e:
      self._fail(e)

  def _fail(self, error: Exception) -> None:
    if not self.failed:
      self.failed = True
      # Standard error may be gone, too.
      with contextlib.suppress(OSError, ValueError):
        print(
          f'atm: standard output cannot be written ({error}): the run goes on '
          'without it',
          file=sys.stderr,
          flush=True,
        )


@contextlib.contextmanager
def keep_going(is_log: bool):
  """Makes sys.stdout a `LogOutput` while open, if it is a log at all."""
  stream = sys.stdout
  if not is_log or stream is None:
    yield
    return
  sys.stdout = log = LogOutput(stream)
  try:
    yield
  finally:
    log.flush()
    sys.stdout = stream
    if log.failed:
      # Python would try once more at its end, and exit with 120.
      with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def silence_orbax() -> None:
  """Drops what Orbax prints of an error that it raises as well."""
  # Of the thousand writes that fail on a full disk one is raised; the others
  # are logged or collected, each with a traceback.
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  logging.getLogger('absl').addFilter(lambda r: '/orbax/' not in r.pathname)
  before = sys.unraisablehook

  def hook(found):
    code = getattr(found.object, 'cr_code', None)  # of a coroutine
    is_orbax = code is not None and '/orbax/' in code.co_filename
    if not is_orbax and str(found.exc_value) != 'Event loop is closed':
      before(found)

  sys.unraisablehook = hook


def silence_gloo() -> None:
  """Drops what C++ code prints to standard output; Python's goes on.

  Gloo connects the CPUs of several processes, and prints a line for every
  connection of each: about fifty in a short run. Its errors are not among them.
  """
  # It is std::cout, which no setting of Gloo's or of JAX's reaches.
  stream = sys.stdout
  stream.flush()
  sys.stdout = open(
    os.dup(1), 'w', encoding=stream.encoding, errors=stream.errors
  )
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
