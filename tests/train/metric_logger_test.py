"""What a log line says of the steps since the last."""

import json
import math

import numpy as np
import pytest

from atm.model import flops as flops_lib
from atm.train.metric_logger import MetricLogger

from conftest import tiny
from tiny_runs import small_config


def values(n: int, bad: bool = False) -> dict:
  """The metrics of a step."""
  made = {'sum/loss': 6.0 * n, 'sum/accuracy': 1.0, 'sum/z_loss': 0.0}
  made |= {'tokens/target': 2.0 * n, 'tokens/input': 5.0, 'skipped': 0.0}
  made |= {f'{kind}/loss/clm': 1.0 * n for kind in ('sum', 'weight')}
  made |= dict(grad_norm=n, param_norm=1.0, learning_rate=0.1)
  if bad:
    made |= {'sum/loss': math.inf, 'grad_norm': math.nan, 'skipped': 1.0}
  return {name: np.float32(x) for name, x in made.items()}


def new_log(lines: list) -> MetricLogger:
  log = MetricLogger(
    small_config(
      'run', 9, batch_size=4, lengths={'inputs': 8, 'targets': 8},
      abort_after_nonfinite=3, say=lines.append,
    )
  )  # fmt: skip
  log.begin(0)
  return log


def test_the_log_leaves_bad_steps_out_of_its_means():
  """Also of a log that was saved within: all bad, and some.

  Faults seen: a bad step's sums added; its gradient's norm shown; padding by
  all steps; a saved log without the count, and without the last good step.
  """
  lines, rows = [], []
  log = new_log(lines)
  for n, bad in ((1, False), (2, True), (3, False), (4, True), (5, True)):
    log.add(n, values(n, bad))
    resumed = new_log(lines)
    resumed.restore(json.loads(json.dumps(log.partial())))
    log = resumed
    if n in (3, 5):
      rows.append(log.emit(n))
  first, second = rows
  assert (first['loss'], first['skipped'], first['grad_norm']) == (3.0, 1, 3.0)
  assert first['padding/target'] == 1 - (2 + 6) / (2 * 4 * 8)
  assert second['skipped'] == 2 and 'loss' not in second
  assert all(map(math.isfinite, (*first.values(), *second.values())))
  assert log.emit(6) == {} and len([x for x in lines if '/9' in x]) == 2
  assert 'skipped 2 ' in lines[-1] and 'loss' not in lines[-1]
  assert lines[0].startswith("step 2: the loss is inf and the gradient's norm")
  assert lines[0].endswith('is nan: update skipped')
  log.add(6, values(6, True))
  with pytest.raises(FloatingPointError, match='steps 4 to 6: .* 3 times'):
    log.partial()


def test_flops_between_weighs_the_frozen_steps():
  log = MetricLogger(
    small_config(
      'run', model_config=tiny(), batch_size=4, freeze_encoder_steps=3,
      lengths={'inputs': 12, 'targets': 10},
    )
  )  # fmt: skip
  flops = log.flops_between
  frozen, full = (
    flops_lib.train_flops(tiny(), 4, 12, 10, frozen=f) for f in (True, False)
  )
  assert flops(0, 2) == 2 * frozen
  assert flops(2, 5) == frozen + 2 * full
  assert flops(3, 5) == flops(5, 7) == 2 * full
