"""Logs that grow: lines appended to a file, or parts of a log in a store.

Nothing can be appended to an object. So a log NAME in an object store is a
folder of parts, NAME/<number>-<time>-<host>-<process><suffix>. A part is
written whole each time that it grows, and a new one is begun at PART_SIZE. A
reader joins the parts in the order of their names. A part that ends on
WHOLE_MARK holds all that was written before it, and those before it no longer
count: that is how a log is rewritten, whenever the process that does it ends.
"""

import datetime
import os
import re
import socket
import time

from atm.storage import files
from atm.storage.client import is_remote

PART_SIZE = 1 << 20
# A store takes about one write a second of one object.
LEAST_BETWEEN = 1.0  # seconds between two writes of a part
WHOLE_MARK = '.whole'


class PartLog:
  """A log that this process appends to.

  Lines of the last LEAST_BETWEEN seconds may be kept back until the next
  `append`, `flush` or `close`; a local file has them at once.
  """

  def __init__(self, path: str, suffix: str = '.jsonl', header: bytes = b''):
    """Opens a log; nothing is written yet.

    Args:
      path: the file, or the folder of parts in a store.
      suffix: of the parts' names.
      header: what each part begins with.
    """
    self.path, self._suffix, self._header = path, suffix, header
    self._part, self._content, self._mark = '', header, ''
    self._is_written, self._written_at = True, -LEAST_BETWEEN

  def append(self, text: str | bytes) -> None:
    """Adds whole lines, or whole records."""
    content = text.encode() if isinstance(text, str) else text
    if not is_remote(self.path):
      with open(self.path, 'ab') as f:
        f.write(content)
      return
    self._content += content
    self._is_written = False
    if time.monotonic() - self._written_at >= LEAST_BETWEEN:
      self.flush()

  def flush(self) -> None:
    """Writes what was kept back."""
    if self._is_written:
      return
    if not self._part:
      self._part = f'{self.path}/{self._make_name()}'
    files.write_bytes(self._part, self._content)
    self._is_written, self._written_at = True, time.monotonic()
    if len(self._content) >= PART_SIZE:
      self._part, self._content, self._mark = '', self._header, ''

  def rewrite(self, text: str) -> None:
    """Replaces all that the log holds, on a local path in place of the file.

    Whoever reads it finds the old content or the new.
    """
    old = _list_names(self.path)
    self._part, self._mark = '', WHOLE_MARK
    self._content, self._is_written = self._header + text.encode(), False
    self.flush()
    for name in old:
      files.remove(f'{self.path}/{name}')

  def close(self) -> None:
    """Writes what was kept back."""
    self.flush()

  def _make_name(self) -> str:
    # Clocks of hosts differ, so the number makes the order.
    numbers = [_get_number(name) for name in _list_names(self.path)]
    host = re.sub(r'[^\w.]', '_', socket.gethostname())
    number = max(numbers, default=-1) + 1
    who = f'{number:08d}-{_format_now()}-{host}-{os.getpid()}'
    return f'{who}{self._mark}{self._suffix}'


def _format_now() -> str:
  return datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%S')


def _get_number(name: str) -> int:
  match = re.match(r'(\d{8})-', name)
  return int(match[1]) if match else -1


def _list_names(path: str) -> list[str]:
  return [n for n in files.list_names(path) if _get_number(n) >= 0]


def list_parts(path: str) -> list[str]:
  """Returns the paths of a log's parts, in order; of a file its own."""
  if not is_remote(path):
    return [path]
  names = _list_names(path)
  whole = [i for i, name in enumerate(names) if WHOLE_MARK in name]
  if not names:
    return [path]
  return [f'{path}/{name}' for name in names[whole[-1] if whole else 0 :]]
