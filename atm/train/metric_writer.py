"""Writes and reads metrics.jsonl and the TensorBoard log of a run."""

import json
import os
import socket
import time

from atm import fileio, storage

METRICS_FILE = 'metrics.jsonl'
DROPPED_FILE = 'metrics_dropped.jsonl'
# Of events in a store: seconds between two writes, bytes of an object.
EVENTS_EVERY, EVENTS_SIZE = 30.0, 1 << 22
ROW = {'step': int, str: (float, None)}


class NullWriter:
  """A no-op `MetricWriter`, for every host except the first."""

  def write(self, step: int, values: dict[str, float]) -> None: ...
  def flush(self) -> None: ...
  def close(self) -> None: ...


class MetricWriter:
  """metrics.jsonl, one object a line, and a TensorBoard log beside it."""

  def __init__(self, directory: str, rewind_to: int):
    """Opens the log of a run; moves what is beyond step `rewind_to` out of it.

    The steps are done again; their rows are kept in DROPPED_FILE.
    """
    self.path = os.path.join(directory, METRICS_FILE)
    every = read_metrics(directory)
    rows = [row for row in every if row['step'] <= rewind_to]
    dropped = [row for row in every if row['step'] > rewind_to]
    join = lambda rows: ''.join(json.dumps(row) + '\n' for row in rows)
    if dropped:
      log = storage.PartLog(os.path.join(directory, DROPPED_FILE))
      log.append(join(dropped))
      log.close()
    self._log = storage.PartLog(self.path)
    if not storage.is_remote(self.path):
      fileio.write_atomically(self.path, join(rows))
    elif dropped:
      self._log.rewrite(join(rows))
    self.tensorboard = TensorBoardLog(os.path.join(directory, 'tensorboard'))

  def write(self, step: int, values: dict[str, float]) -> None:
    self._log.append(json.dumps({'step': step, **values}) + '\n')
    self.tensorboard.write(step, values)

  def flush(self) -> None:
    """Writes what was kept back, see `PartLog`."""
    self._log.flush()

  def close(self) -> None:
    self._log.close()
    self.tensorboard.close()


class TensorBoardLog:
  """An event file of scalars, a new one each time that a run starts.

  TensorFlow's writer would take seconds to import; TensorBoard's own package
  has the protocol buffers and the records.
  """

  def __init__(self, directory: str):
    """Opens a new event file in a folder, which is made if needed."""
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    storage.make_folder(directory)
    # TensorBoard reads files in the order of their names.
    name = f'{time.time():.6f}.{socket.gethostname()}.{os.getpid()}'
    path = os.path.join(directory, f'events.out.tfevents.{name}.v2')
    if storage.is_remote(path):
      file = _EventObjects(path)
    else:
      file = open(path, 'xb')  # noqa: SIM115, `close` closes it
    self._records = RecordWriter(file)
    self._put(file_version='brain.Event:2')

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes the scalars of a step."""
    scalar = self._summary.Value
    summary = self._summary(
      value=[scalar(tag=tag, simple_value=x) for tag, x in values.items()]
    )
    self._put(step=step, summary=summary)

  def close(self) -> None:
    self._records.close()

  def _put(self, **fields) -> None:
    event = self._event(wall_time=time.time(), **fields)
    self._records.write(event.SerializeToString())
    self._records.flush()


class _EventObjects:
  """A file of events in a store: objects, each written whole as it grows."""

  def __init__(self, path: str):
    self._path, self._count = path, 0
    self._content, self._written_at = b'', 0.0

  def write(self, content: bytes) -> None:
    self._content += content

  def flush(self) -> None:
    if time.monotonic() - self._written_at < EVENTS_EVERY:
      return
    path = self._path.removesuffix('.v2') + f'.{self._count}.v2'
    storage.write_bytes(path, self._content)
    self._written_at = time.monotonic()
    if len(self._content) >= EVENTS_SIZE:
      self._content, self._count = b'', self._count + 1

  def close(self) -> None:
    self._written_at = 0.0
    if self._content:
      self.flush()


def read_metrics(directory: str) -> list[dict]:
  """Reads the rows of a run's metrics.jsonl, if there is one.

  Torn lines are dropped; raises ValueError for one that is no row.
  """
  return read_intact_lines(os.path.join(directory, METRICS_FILE), ROW)


def read_intact_lines(path: str, form: dict) -> list[dict]:
  """Reads the objects of a file, if there is one, without torn lines."""
  if not storage.exists(path):
    return []
  return list(fileio.read_own_lines(path, form, torn=True))
