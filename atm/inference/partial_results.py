"""Keeps results on disk as they are computed, so that a killed run continues.

Results go to a .part file beside the output, in an object store to a log of
that name (`storage.PartLog`). The output itself is written whole, in the order
of the input, at the end.
"""

import contextlib
import json
import os
import time
import zlib
from collections.abc import Sequence

from atm import fileio, messages, storage
from atm.parallel import distributed


class PartialResults:
  """Results by row number, appended to a .part file as they are computed.

  Attributes:
    done: row number -> the fields that are added to the row.
    left: numbers of the rows without results.
  """

  def __init__(
    self, output: str, settings: dict, count: int, overwrite: bool = False
  ):
    """Reads what an earlier run of the same settings left in `output`.part.

    Args:
      output: the path of the whole output.
      settings: all that results depend on.
      count: rows.
      overwrite: begin anew where the .part is of other settings.

    Raises:
      ValueError: it is of other settings, or is no such file.
    """
    self.output, self.part = output, output + '.part'
    self._log = storage.PartLog(self.part)  # of an object store alone
    self.done: dict[int, dict] = {}
    # What JSON does not know is hashed as `str` has it, so the names of
    # `sampling.Config` and of its fields are part of every .part file.
    mark = fileio.hash_json(settings)
    self._read(mark, count, overwrite)
    self.left = [i for i in range(count) if i not in self.done]
    distributed.wait_for_all()  # all hosts have read it before one writes
    if distributed.is_main_process():
      self._begin(_json_bytes({'settings': mark, 'sealed': True}) + b'\n')

  def _begin(self, head: bytes) -> None:
    """Writes the rows that are done, and no others, behind a first line."""
    lines = [head, *(_seal_row(i, row) for i, row in self.done.items())]
    if storage.is_remote(self.part):
      self._log.rewrite(b''.join(lines).decode())
      return
    with fileio.replacing(self.part, 'wb') as f:
      f.writelines(lines)

  def _read(self, mark: str, count: int, overwrite: bool) -> None:
    """Reads rows that are done; those of damaged lines are done again."""
    if not storage.exists(self.part):
      return
    content = b''
    for part in storage.list_parts(self.part):
      fileio.check_regular(part)
      content += storage.read_bytes(part)
    if not content:
      return
    head, *lines = content.split(b'\n')
    head = parse_part_line(head)
    if head.get('settings') != mark:
      if overwrite and isinstance(head.get('settings'), str):
        return
      raise ValueError(
        f'{self.part} is of a run with other settings or inputs, or is none of '
        'ours: OVERWRITE=True begins a run of ours anew; or give another OUTPUT'
      )
    for line in lines[:-1]:  # a kill may have torn the last
      row = parse_part_line(line)
      crc, number = row.pop('crc32', None), row.pop('row', None)
      if 'sealed' in head and crc != _checksum({'row': number, **row}):
        continue  # before there were seals, no row had one
      if number in range(count):
        self.done[number] = row

  def add(self, results: dict[int, dict]) -> None:
    """Keeps the results of some rows, on disk when this returns."""
    self.done |= results
    if not distributed.is_main_process():
      return
    lines = b''.join(_seal_row(number, row) for number, row in results.items())
    if storage.is_remote(self.part):
      self._log.append(lines)
      self._log.flush()
      return
    with open(self.part, 'ab') as f:
      f.write(lines)
      f.flush()
      os.fsync(f.fileno())

  def _remove(self) -> None:
    remote = storage.is_remote(self.part)
    (storage.remove_folder if remote else os.remove)(self.part)

  def discard_empty(self) -> None:
    """Removes the .part file while it holds no results."""
    if not self.done and distributed.is_main_process():
      self._remove()

  def finish(self, rows: Sequence[dict]) -> None:
    """Writes all rows with their results, in order, and removes the .part."""
    if not distributed.is_main_process():
      return
    with fileio.replacing(self.output, 'wb') as f:
      for number, row in enumerate(rows):
        f.write(_json_bytes({**row, **self.done[number]}) + b'\n')
    self._remove()


def read_mark(part: str) -> str | None:
  """Returns the hash of settings that a .part file is of, if one is there."""
  if not storage.exists(part):
    return None
  part = storage.list_parts(part)[0]
  fileio.check_regular(part)
  with storage.open_binary(part) as f:
    return parse_part_line(f.readline()).get('settings')


def _json_bytes(row: dict) -> bytes:
  return json.dumps(row, ensure_ascii=False).encode('utf-8')


def _seal_row(number: int, row: dict) -> bytes:
  """Returns the line of a row's results, with a checksum of them."""
  row = {'row': number, **row}
  return _json_bytes({**row, 'crc32': _checksum(row)}) + b'\n'


def _checksum(row: dict) -> int:
  return zlib.crc32(_json_bytes(row))


def parse_part_line(line: bytes) -> dict:
  """Returns the object of a line of JSON; {} where it holds none."""
  with contextlib.suppress(ValueError):
    if isinstance(row := fileio.parse_json(line, ''), dict):
      return row
  return {}


def compute_missing(
  rows, lengths, results: PartialResults, chunk: int, compute, log
) -> None:
  """Computes rows without results, `chunk` at a time, and writes the output.

  `compute` takes row numbers and returns (results by number, tokens).
  """
  # Rows of like lengths go together, so that little of a batch is padding.
  order = sorted(results.left, key=lambda i: lengths[i])
  if len(order) < len(rows):
    log(f'{len(rows) - len(order):,} of {len(rows):,} were done before')
  start, tokens = time.perf_counter(), 0
  describe_left = lambda: (
    f'{len(results.done):,} of {len(rows):,} are in {results.part}; the same '
    'command goes on'
  )
  for at in range(0, len(order), chunk):
    with messages.note_work(describe_left):
      try:
        new, count = compute(order[at : at + chunk])
      except ValueError:  # a setting that only the model can refuse
        results.discard_empty()
        raise
      results.add(new)
    tokens += count
    done = min(at + chunk, len(order))
    seconds = time.perf_counter() - start
    left = seconds / done * (len(order) - done)
    log(
      f'{done:,}/{len(order):,}  {tokens / seconds:,.0f} tokens/s  '
      f'{messages.clock_text(left)} left'
    )
  results.finish(rows)
