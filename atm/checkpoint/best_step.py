"""MODEL_DIR/best.json: which checkpoint of a run is the best, and by what."""

import dataclasses
import os

from atm import fileio, storage

BEST_FILE = 'best.json'
FORM = {
  'step': int, 'metric': str, 'value': float, 'stopped_at?': (int, None)
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BestStep:
  """The best checkpoint of a run.

  Attributes:
    step: the number of the checkpoint.
    metric: what it is best by, 'eval/loss/pair'.
    value: of the metric.
    stopped_at: the step that early stopping ended the run with, or None.
  """

  step: int
  metric: str
  value: float
  stopped_at: int | None = None

  def describe(self) -> str:
    """Returns 'eval/loss/pair = 1.234'."""
    return f'{self.metric} = {self.value:.4g}'


def read_best(model_dir: str) -> BestStep | None:
  """Returns what best.json says; None where there is none.

  Raises ValueError if it is not as a run writes it.
  """
  path = os.path.join(storage.absolute(model_dir), BEST_FILE)
  if not storage.exists(path):
    return None
  value = fileio.read_json(path)
  fileio.check_json(value, FORM, path)
  return BestStep(**{k: value[k] for k in ('step', 'metric', 'value')},
                  stopped_at=value.get('stopped_at'))  # fmt: skip


def write_best(model_dir: str, best: BestStep) -> None:
  """Writes best.json, whole or not at all."""
  path = os.path.join(storage.absolute(model_dir), BEST_FILE)
  fileio.write_json(path, dataclasses.asdict(best))
