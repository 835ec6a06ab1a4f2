"""What a run does between two steps: logs, saves, evaluations, signals."""

import functools
import os
import signal

import numpy as np
import pytest

from atm.checkpoint import manager
from atm.train import metric_writer

from tiny_runs import (
  ONE,
  Stop,
  comparable,
  parameters,
)


def test_resuming_within_a_log_interval_keeps_its_sums(train, tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  train(whole, 10, log_every=5)
  with pytest.raises(Stop):  # after the line of step 5, behind save 3
    train(parts, 10, log_every=5, stop_at=5)
  train(parts, 10, log_every=5)
  assert comparable(parts) == comparable(whole)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_and_nothing_is_lost(train, tmp_path, number):
  whole, parts = train.whole(8), tmp_path / 'parts'
  lines = []

  def say(text):
    lines.append(text)
    if text.startswith('step 4/'):
      os.kill(os.getpid(), number)

  with pytest.raises(KeyboardInterrupt):
    train(parts, 8, say=say)
  assert lines[-1].startswith('stopped and saved at step 4')
  run = train(parts, 8)
  assert any(line.startswith('resumed from step 4') for line in run.lines)
  assert comparable(parts) == comparable(whole)
  a, b = parameters(whole, 8), parameters(parts, 8)
  assert all((a[name] == b[name]).all() for name in a)


def test_keep_drops_old_checkpoints(train, tmp_path):
  train(tmp_path, 8, keep=2, save_every=2)
  assert manager.CheckpointManager(str(tmp_path)).all_steps() == [6, 8]


def test_questions_are_asked_while_it_trains(train, tmp_path):
  """The curve is that of the parameters, resumed or not, and changes none.

  Faults seen: asked in every evaluation; parameters of the step before.
  """
  import atm_tasks
  from atm.evals import during_training, runner
  from atm.inference import api

  tasks = lambda: atm_tasks.suite(['udhr_next_d*', 'udhr_next_en'])
  make = functools.partial(
    during_training.FewShotEvaluator, make_tasks=tasks, limit=4
  )
  asks = dict(ask_every=8, make_asker=make)
  whole, parts, none = (tmp_path / name for name in ('whole', 'parts', 'none'))
  train(whole, 9, **asks)
  train(parts, 5, **asks)
  train(parts, 9, **asks)
  train(none, 9)
  curve = {
    row['step']: row['few_shot/udhr_next']
    for row in metric_writer.read_metrics(str(whole))
    if 'few_shot/udhr_next' in row
  }
  assert list(curve) == [0, 8, 9]
  without = lambda rows: [
    {k: v for k, v in row.items() if not k.startswith('few_shot/')}
    for row in rows
  ]
  assert without(comparable(whole)) == comparable(none)
  tail = lambda d: [row for row in comparable(d) if row['step'] > 5]
  assert tail(parts) == tail(whole)
  evaluation = runner.SuiteEvaluation(
    str(whole), make_tasks=tasks, suite='s', output=str(tmp_path / 'out'),
    limit=4, say=lambda text: None,
  )  # fmt: skip
  model = api.load(str(whole), mesh=ONE())
  found, _ = evaluation.evaluate_tasks(model, tasks())
  values = [task['scores']['accuracy']['value'] for task in found]
  assert curve[9] == pytest.approx(np.mean(values))
