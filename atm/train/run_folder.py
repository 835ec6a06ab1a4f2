"""The folder of a training run: its files, and one run at a time in it."""

import contextlib
import datetime
import fcntl
import functools
import json
import os
import socket
import time
from collections.abc import Mapping

import jax

from atm import fileio, storage
from atm.checkpoint import generation_config, paths, reader
from atm.data import vocabulary as vocabulary_lib
from atm.data.vocabulary import Vocabulary
from atm.parallel import distributed
from atm.train import goodput, metric_writer

LOCK_FILE = 'lock'
# Of a run that reads rows: what it reads, see `mixture_stats.describe_parts`.
DATA_FILE = 'data.json'
DATA_PART = {
  **dict.fromkeys(('task', 'source', 'language', 'form', 'objective'), str),
  **dict.fromkeys(('tokens', 'rows', 'passes'), int),
  'share': fileio.Finite,
}


class RunFolder:
  """MODEL_DIR, made once for a run and handed on.

  Gets config.gin, checkpoints/, metrics.jsonl, goodput.jsonl, tensorboard/, and
  vocabulary/ and rows/ where a run is given none.
  """

  def __init__(self, path: str):
    self.path = path
    self.vocabulary = os.path.join(path, 'vocabulary')
    self.rows = os.path.join(path, 'rows')

  # --- Lock

  @contextlib.contextmanager
  def lock(self):
    """Yields this folder; while open, no other process may lock it.

    The lock is the kernel's (flock) on MODEL_DIR/lock, so it ends with its
    process however that ends; the file stays and says who took it last. In an
    object store it is a `storage.Lease`. Of several hosts the first takes it.

    Raises:
      ValueError: another run holds it; says which.
    """
    if jax.process_index():
      yield self
      return
    if storage.is_remote(self.path):
      with _leasing(self.path, f'MODEL_DIR = {self.path!r}'):
        yield self
      return
    is_new = not os.path.exists(self.path)
    with _open_lock(self.path, f'MODEL_DIR = {self.path!r}') as file:
      _sign(file)
      try:
        yield self
      finally:
        if is_new:
          self._remove_if_empty()

  @contextlib.contextmanager
  def lock_checkpoints(self):
    """Locks the folder of the checkpoints, too, where that is another.

    Runs may share it in turn; at a time, they would remove each other's.
    """
    folder = os.fspath(paths.find_checkpoint_dir(self.path))
    inside = os.path.dirname(folder) == storage.absolute(self.path).rstrip('/')
    if jax.process_index() or inside:
      yield
      return
    if storage.is_remote(folder):
      with _leasing(folder, f'CHECKPOINT_DIR = {folder!r}'):
        yield
      return
    with _open_lock(folder, f'CHECKPOINT_DIR = {folder!r}') as file:
      _sign(file)
      yield

  def _remove_if_empty(self) -> None:
    """Removes what a run leaves that was refused before it began."""
    if os.listdir(self.path) == [LOCK_FILE]:
      with contextlib.suppress(OSError):
        os.remove(os.path.join(self.path, LOCK_FILE))
        os.rmdir(self.path)

  # --- Files

  def save_setup(
    self,
    config_text: str,
    vocabulary: Vocabulary,
    generation: Mapping | None = None,
    own: Mapping | None = None,
  ) -> None:
    """Writes config.gin, and what is not there yet of a run's other files.

    A config.gin that no run has written is kept as config.gin.given.

    Args:
      config_text: the content of config.gin.
      vocabulary: goes to vocabulary/.
      generation: the content of generation_config.json, if there is one.
      own: what the run itself says there; is written over what is there.
    """
    if not distributed.is_main_process():
      return
    config = os.path.join(self.path, 'config.gin')
    began = os.path.join(self.path, metric_writer.METRICS_FILE)
    if storage.exists(config) and not storage.exists(began):
      storage.rename(config, f'{config}.given')
    fileio.write_atomically(config, config_text.encode())
    if not vocabulary_lib.has_vocabulary(self.vocabulary):
      vocabulary_lib.store_files(vocabulary.files, self.vocabulary)
    path = os.path.join(self.path, generation_config.FILE)
    is_there = storage.exists(path)
    content = fileio.read_json(path) if is_there else dict(generation or {})
    if own or (content and not is_there):
      fileio.write_json(path, content | dict(own or {}))

  def save_data(self, mixture: str, parts: list[dict]) -> None:
    """Writes data.json; not of a stream, of which no part is counted."""
    if parts and distributed.is_main_process():
      path = os.path.join(self.path, DATA_FILE)
      fileio.write_json(path, {'mixture': mixture, 'parts': parts})

  @functools.cached_property
  def step_found(self) -> int | None:
    """The step of the newest checkpoint when the run began, or None."""
    return reader.latest_step(self.path)

  def describe_progress(self) -> str:
    """Returns what an interrupted run has saved and how to go on."""
    step = reader.latest_step(self.path)
    saved = f'step {step:,}' if step else 'no step yet'
    return f'{self.path} has saved {saved}; the same command goes on'

  def open_metrics(self, start: int) -> metric_writer.MetricWriter:
    """Opens the log of metrics; drops what it holds beyond step `start`."""
    if not distributed.is_main_process():
      return metric_writer.NullWriter()
    # A fresh run writes its evaluation at step 0 anew.
    return metric_writer.MetricWriter(self.path, start or -1)

  def metrics(self) -> list[dict]:
    """Returns the rows of metrics.jsonl."""
    return metric_writer.read_metrics(self.path)

  def was_evaluated(self, step: int) -> bool:
    """Tells whether metrics.jsonl has the held-out losses of a step."""
    return any(
      row['step'] == step and any(key.startswith('eval/') for key in row)
      for row in self.metrics()
    )


def read_data(model_dir: str) -> dict | None:
  """Returns data.json of a run; None where there is none.

  Raises ValueError if it is not as `RunFolder.save_data` writes it.
  """
  path = os.path.join(model_dir, DATA_FILE)
  if not storage.exists(path):
    return None
  data = fileio.read_json(path)
  fileio.check_json(data, {'mixture': str, 'parts': [DATA_PART]}, path)
  return data


def has_lock(names: list[str]) -> bool:
  """Tells whether a run's lock is among the names in a folder."""
  return any(
    name == LOCK_FILE or name.startswith(f'{LOCK_FILE}.') for name in names
  )


def get_change_time(path: str) -> float:
  """Returns when a run last wrote, in seconds since 1970; 0 if never."""
  logs = [
    part
    for name in (metric_writer.METRICS_FILE, goodput.GOODPUT_FILE)
    for part in storage.list_parts(os.path.join(path, name))[-1:]
  ]
  # An owner renews its lock in a store, so that this tells nothing there.
  locks = [] if storage.is_remote(path) else [os.path.join(path, LOCK_FILE)]
  times = map(storage.get_time, filter(storage.exists, [*logs, *locks]))
  return max(times, default=0.0)


@contextlib.contextmanager
def _leasing(folder: str, name: str):
  """Holds the lease of a folder in an object store."""
  lease = storage.Lease(folder, name)
  lease.acquire()
  try:
    yield
  finally:
    lease.release()


def _open_lock(folder: str, name: str):
  """Returns a folder's lock, locked; child processes do not inherit it."""
  path = os.path.join(folder, LOCK_FILE)
  asked = 0
  while True:
    os.makedirs(folder, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
      fileio.check_regular(path)
    file = open(path, 'a+')  # noqa: SIM115, the caller closes it
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
          return file
    except BlockingIOError as e:
      file.close()
      asked += 1
      if asked < 3:  # `is_locked` may have asked at this moment
        time.sleep(0.05)
        continue
      raise ValueError(
        f'{name} is in use by {_holder(path)}: wait for it, stop it, or use '
        'another'
      ) from e
    file.close()  # its name was removed before we had the lock


def is_locked(path: str) -> bool:
  """Tells whether a run goes on in a folder.

  One of an object store that was killed less than LEASE seconds ago, too, but
  for one of this machine.
  """
  if storage.is_remote(path):
    return storage.is_leased(path)
  try:
    with open(os.path.join(path, LOCK_FILE)) as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except FileNotFoundError:
    return False
  return False


def _sign(file) -> None:
  """Writes into the lock's file who holds it."""
  now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
  who = {'host': socket.gethostname(), 'pid': os.getpid(), 'since': now}
  file.truncate(0)
  file.write(json.dumps(who) + '\n')
  file.flush()


def _holder(path: str) -> str:
  """Returns a text about the process that holds a lock."""
  try:
    who = fileio.read_json(path)
    return f'process {who["pid"]} on {who["host"]}, since {who["since"]}'
  except (ValueError, KeyError, TypeError):  # it is just being written
    return 'another process'
