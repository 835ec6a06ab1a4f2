"""Which evaluation of a run is the best so far, and when patience is over."""

import dataclasses
import math
from collections.abc import Iterable

from atm.checkpoint.best_step import BestStep
from atm.checkpoint.manager import CheckpointManager
from atm.messages import check_choice
from atm.train.config import TrainConfig
from atm.train.held_out_loss import HeldOutLoss
from atm.train.run_folder import RunFolder


@dataclasses.dataclass
class BestTracker:
  """Follows the metric of KEEP_BEST through the evaluations of a run.

  All that it knows follows from the rows of metrics.jsonl and from which steps
  have a checkpoint. So a run that is resumed decides as one that went on.

  Attributes:
    config: keep_best, patience, min_delta.
    best: the best evaluation of which there is a checkpoint.
    waited: evaluations since one was better than all before by `min_delta`.
  """

  config: TrainConfig
  best: BestStep | None = None
  waited: int = 0
  _mark: float | None = None  # the value that patience measures by

  @property
  def is_over(self) -> bool:
    """Tells whether early stopping ends the run."""
    patience = self.config.patience
    return patience is not None and self.waited >= patience

  def replay(self, rows: Iterable[dict], kept: set[int]) -> None:
    """Takes the evaluations of the steps before, of which some are kept."""
    for row in rows:
      self.add(row['step'], row, row['step'] in kept)

  def add(self, step: int, row: dict, kept: bool = True) -> bool:
    """Takes an evaluation; tells whether it is the best so far.

    That of step 0 does not count: it is of the model to start from.

    Args:
      step: of the evaluation.
      row: metrics, of which that of KEEP_BEST may be missing.
      kept: whether there is, or will be, a checkpoint of the step.
    """
    value = row.get(self.config.keep_best)
    if not step or value is None:
      return False
    if self._is_better(value, self._mark, self.config.min_delta):
      self._mark, self.waited = value, 0
    else:
      self.waited += 1
    is_best = kept and self._is_better(value, self.best and self.best.value)
    if is_best:
      self.best = BestStep(step, self.config.keep_best, value)
    return is_best

  def adopt(self, recorded: BestStep | None) -> None:
    """Takes what is recorded: the save of a better one may have failed."""
    if recorded is None or recorded.metric != self.config.keep_best:
      self.best = None
    else:
      self.best = dataclasses.replace(recorded, stopped_at=None)

  def _is_better(self, value: float, than: float | None, by: float = 0) -> bool:
    """Tells whether a value is better than another; NaN never is."""
    if not math.isfinite(value):
      return False
    # Losses fall; accuracies and the scores of tasks rise.
    falls = self.config.keep_best.startswith('eval/loss/')
    gain = 0 if than is None else than - value if falls else value - than
    return than is None or gain > by


class BestKeeper:
  """Has the best checkpoint of a run recorded, and tells where the run ends."""

  def __init__(self, config: TrainConfig, checkpoints: CheckpointManager):
    """Takes the settings of a run, and its checkpoints."""
    self.config, self.checkpoints = config, checkpoints
    self.tracker = BestTracker(config)

  @property
  def is_over(self) -> bool:
    """Tells whether early stopping ends the run."""
    return self.tracker.is_over

  def stops_early(self, step: int) -> bool:
    """Tells whether early stopping ends the run before its last step."""
    return self.is_over and step < self.config.train_steps

  def begin(self, start: int, folder: RunFolder) -> None:
    """Takes the evaluations up to step `start`, of which there are rows."""
    if self.config.keep_best is not None:
      rows = (row for row in folder.metrics() if row['step'] <= start)
      self.tracker.replay(rows, {*self.checkpoints.all_steps()})
      self.record(start)

  def take(self, step: int, row: dict) -> bool:
    """Takes an evaluation; tells whether it is the best so far."""
    if self.config.keep_best is None:
      return False
    self.checkpoints.wait_until_finished()  # the save of the best before
    self.tracker.adopt(self.checkpoints.best)
    is_best = self.tracker.add(step, row)
    if is_best:
      text = self.tracker.best.describe()
      self.config.say(f'step {step:,} is the best so far: {text}')
    return is_best

  def get(self, step: int) -> BestStep | None:
    """Returns what is to be recorded at a step."""
    stopped_at = step if self.stops_early(step) else None
    best = self.tracker.best
    return best and dataclasses.replace(best, stopped_at=stopped_at)

  def record(self, step: int) -> None:
    """Writes which checkpoint is the best; it is there."""
    self.checkpoints.record_best(self.get(step))

  def finish(self, step: int) -> bool:
    """Says and records that early stopping ends the run; tells whether."""
    if not self.stops_early(step):
      return False
    self.tracker.adopt(self.checkpoints.best)
    self.record(step)
    best = self.tracker.best
    self.config.say(
      f'step {step:,} of {self.config.train_steps:,}: stopped early: '
      f'{self.config.keep_best} was no better in {self.tracker.waited} '
      'evaluations in a row (PATIENCE)'
      + (f': the best is step {best.step:,}, {best.value:.4g}' if best else '')
    )
    return True


def check_best_metric(config: TrainConfig, held_out: HeldOutLoss, ask) -> None:
  """Raises ValueError unless KEEP_BEST is what evaluations, or asking, give."""
  if config.keep_best is not None:
    known = held_out.metric_names() | (ask.metric_names() if ask else set())
    check_choice('KEEP_BEST', config.keep_best, sorted(known))
