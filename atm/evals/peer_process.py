"""Starts transformers in a process of its own, and reads what it computed."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable

from atm.evals import peer_outputs
from atm.messages import missing_extra, one_line

SECONDS_BETWEEN_LINES = 5


LIBRARIES = ('transformers', 'torch')  # of the comparison


def list_versions() -> dict[str, str]:
  """Returns the versions of those of LIBRARIES that are installed."""
  found = {}
  for name in LIBRARIES:
    if importlib.util.find_spec(name) is not None:
      found[name] = importlib.metadata.version(name)
  return found


def explain_missing() -> str:
  """Returns which library of the comparison is missing, '' if none is."""
  for name in LIBRARIES:
    if name not in list_versions():
      return missing_extra(f'{name} is not installed', 'hf')
  return ''


def ask_peer(folder: str, say: Callable[[str], None]) -> str:
  """Runs `peer_outputs` on the request in a folder; prints its progress.

  Args:
    folder: has the request; the answers are written to it.
    say: prints a line.

  Returns:
    '' or what ended the process.
  """
  path = os.path.join(folder, 'errors.txt')
  command = [sys.executable, '-m', peer_outputs.__name__, folder]
  with (
    open(path, 'w', encoding='utf-8') as errors,
    subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=errors, text=True,
      encoding='utf-8', errors='replace',
    ) as process,
  ):  # fmt: skip
    try:
      told = time.monotonic()
      for line in process.stdout:
        if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
          say(f'  {line.rstrip()}')
          told = time.monotonic()
    except BaseException:
      process.kill()
      raise
  if process.returncode == 0:
    return ''
  if process.returncode < 0:
    return (
      f'transformers was ended by signal {-process.returncode}, as where the '
      'memory is too small'
    )
  with open(path, encoding='utf-8', errors='replace') as f:
    lines = [line for line in f.read().splitlines() if line.strip()]
  return f'transformers failed: {one_line(lines[-1] if lines else "", 200)}'
