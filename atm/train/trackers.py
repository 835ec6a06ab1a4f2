"""Sends a run's metrics to Weights & Biases or to MLflow, too.

Their own environment variables say where to (WANDB_PROJECT, WANDB_MODE, ...;
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...). MODEL_DIR/tracker.json keeps
the id of the run there, so that a resumed run goes on in it. All is sent by a
thread: a tracker that is slow or fails costs a line of the log, and what it
missed is sent when it answers again.
"""

import collections
import contextlib
import importlib.util
import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from atm import fileio, storage
from atm.messages import missing_extra, one_line

TRACKER_FILE = 'tracker.json'
PROJECT = 'atm'  # where the environment names none
CLOSE_S = 30  # for what is not sent yet when a run ends
MOST_ROWS = 10_000  # that wait for a tracker which does not answer
MOST_PARAMETER = 500  # characters of a parameter of MLflow
_MACRO = re.compile(r'^([A-Z][A-Z0-9_]*) = (.+)$', re.M)


class WandbRun:
  """A run of Weights & Biases."""

  def __init__(self, key: str | None, model_dir: str, settings: Mapping):
    """Goes on with the run of a key, or begins one."""
    import wandb

    self.key = key or secrets.token_hex(4)
    folder = None if storage.is_remote(model_dir) else model_dir
    self.run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', PROJECT),
      id=self.key, name=_name_run(model_dir), resume='allow',
      dir=os.environ.get('WANDB_DIR', folder),
      settings=wandb.Settings(console='off', silent=True, login_timeout=30),
    )  # fmt: skip
    self.run.config.update(dict(settings), allow_val_change=True)

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Sends a row; of steps that were done again the first rows stand."""
    self.run.log(dict(values), step=step)

  def finish(self, status: str) -> None:
    """Ends the run there as it ended here."""
    self.run.finish(exit_code=0 if status == 'FINISHED' else 1)


class MlflowRun:
  """A run of an MLflow experiment."""

  def __init__(self, key: str | None, model_dir: str, settings: Mapping):
    """Goes on with the run of a key, or begins one."""
    from mlflow import entities, exceptions, tracking

    logging.getLogger('mlflow').setLevel(logging.WARNING)
    self.metric, self.client = entities.Metric, tracking.MlflowClient()
    self.key = key
    if key is not None:
      try:
        self.client.update_run(key, status='RUNNING')
        return
      except exceptions.MlflowException as e:
        if e.error_code != 'RESOURCE_DOES_NOT_EXIST':
          raise  # else another server, or the run was deleted there
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    found = self.client.get_experiment_by_name(name)
    experiment = (
      found.experiment_id if found else self.client.create_experiment(name)
    )
    run = self.client.create_run(experiment, run_name=_name_run(model_dir))
    self.key = run.info.run_id
    self.client.log_batch(
      self.key,
      params=[
        entities.Param(name, value[:MOST_PARAMETER])
        for name, value in settings.items()
      ],
    )

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Sends a row."""
    now = int(time.time() * 1000)
    # A task's name may have other characters than MLflow lets a metric's have.
    self.client.log_batch(
      self.key,
      metrics=[
        self.metric(re.sub(r'[^\w\-. /:]', '_', name), value, now, step)
        for name, value in values.items()
      ],
    )

  def finish(self, status: str) -> None:
    """Ends the run there as it ended here."""
    self.client.set_terminated(self.key, status)


TRACKERS = {'wandb': WandbRun, 'mlflow': MlflowRun}


def check_tracker_package(name: str | None) -> None:
  """Raises ValueError where a tracker's package is not installed."""
  if name is not None and importlib.util.find_spec(name) is None:
    raise ValueError(missing_extra(f'TRACKER = {name!r} needs {name}', name))


class Tracker(contextlib.AbstractContextManager):
  """Sends rows of metrics to a tracker, in a thread; never raises."""

  def __init__(
    self,
    name: str | None,
    model_dir: str,
    config_text: str,
    say: Callable[[str], None],
  ):
    """Opens nothing yet.

    Args:
      name: of TRACKERS; None: rows go nowhere.
      model_dir: the folder of the run.
      config_text: the content of its config.gin, whose macros are sent.
      say: prints a line.
    """
    self.name, self.say = name, say
    self.path = os.path.join(model_dir, TRACKER_FILE)
    self._open = lambda key: TRACKERS[name](
      key, model_dir, dict(_MACRO.findall(config_text))
    )
    self._run: Any = None
    self._rows: queue.Queue = queue.Queue()
    self._fails = False
    self._thread = threading.Thread(target=self._work, daemon=True)
    if name is not None:
      self._thread.start()

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Takes the metrics of a step."""
    if self.name is not None:
      known = {k: float(v) for k, v in values.items() if v is not None}
      self._rows.put((step, known))

  def __exit__(self, kind, *error) -> None:
    if self.name is None:
      return
    stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
    ends = 'FINISHED' if kind is None else 'KILLED' if stopped else 'FAILED'
    self._rows.put(ends)
    self._thread.join(CLOSE_S)
    if self._thread.is_alive():
      self._tell(f'does not answer for {CLOSE_S} s; the last rows are not sent')

  def _work(self) -> None:
    waiting: collections.deque = collections.deque(maxlen=MOST_ROWS)
    ends = False
    while not ends:
      item = self._rows.get()
      ends = isinstance(item, str)
      waiting += [] if ends else [item]
      try:
        self._send(waiting)
        if ends and self._run is not None:
          self._run.finish(item)
      except BaseException as e:  # SystemExit, say, of their own
        self._tell(
          f'{one_line(e)}: the run goes on; {len(waiting):,} row(s) are not '
          'sent yet'
        )
        self._fails = True

  def _send(self, waiting: collections.deque) -> None:
    """Sends what waits, the oldest first; opens the tracker's run if need be.

    Raises what the tracker does; what was not sent still waits then.
    """
    if not waiting:
      return
    if self._run is None:
      keys = fileio.read_json(self.path) if storage.exists(self.path) else {}
      self._run = self._open(keys.get(self.name))
      fileio.write_json(self.path, {**keys, self.name: self._run.key})
    while waiting:
      self._run.log(*waiting[0])
      waiting.popleft()
    if self._fails:
      self._fails = False
      self._tell('answers again, and has all rows')

  def _tell(self, text: str) -> None:
    """Says something, but not again that the tracker fails."""
    if not self._fails:
      self.say(f'TRACKER = {self.name!r}: {text}')


def _name_run(model_dir: str) -> str:
  return os.path.basename(storage.absolute(model_dir).rstrip('/'))
