"""What is kept as the best of a run, and where early stopping ends it."""

import math
import os

import pytest

from atm.checkpoint import best_step, manager, reader
from atm.checkpoint.best_step import BestStep
from atm.train import metric_writer
from atm.train.best_tracker import BestTracker

from tiny_runs import Stop, comparable, parameters, small_config

ASKED = 'few_shot/x'
# Of each step: a run of 10 steps stops at 7, of which 3 is the best.
CURVE = [0.9, 0.1, 0.2, 0.5, 0.45, 0.501, 0.4, 0.3, 0.2, 0.1, 0.0]


class Asker:
  """Asks tasks whose scores are written in CURVE."""

  def __init__(self, *given):
    pass

  def metric_names(self):
    return {ASKED}

  def __call__(self, params, step):
    return {ASKED: CURVE[step]}


SETTINGS = dict(
  keep_best=ASKED, patience=4, min_delta=0.01, make_asker=Asker, ask_every=1,
  eval_every=1, save_every=5, keep=1,
)  # fmt: skip


def follow(values, name='eval/loss/pair', **settings):
  """Returns a tracker after evaluations of steps 0, 1, 2, ..."""
  settings = dict(keep_best=name, ask_every=4, **settings)
  tracker = BestTracker(small_config('none', **settings))
  tracker.replay(
    ({'step': i, name: x} for i, x in enumerate(values)), {*range(99)}
  )
  return tracker


@pytest.mark.parametrize(
  'name, values, best',
  [
    ('eval/loss/pair', [1, 3, 2, 2, math.nan, 4], 2),
    ('eval/accuracy/pair', [9, 3, 2, 3, math.nan, 1], 1),
    ('few_shot/x', [9, 1, 2, None], 2),
    ('eval/loss/pair', [9, math.nan, math.inf], None),
    ('eval/loss/pair', [9], None),
  ],
)
def test_the_least_loss_or_the_greatest_score_is_the_best(name, values, best):
  """Step 0 does not count; of equals the first is the best."""
  found = follow(values, name).best
  assert (found and found.step) == best


@pytest.mark.parametrize(
  'values, waited', [([9, 3, 3, 2], 0), ([9, 3, 3, 2.95, 3], 3),
                     ([9, 3, 2.95, 2.9, 2.85], 0), ([9, 3, None, 3], 1)],
)  # fmt: skip
def test_patience_counts_what_is_no_better_by_min_delta(values, waited):
  """Many small gains together are one: none of them moves the mark."""
  tracker = follow(values, min_delta=0.125, patience=3)
  assert (tracker.waited, tracker.is_over) == (waited, waited >= 3)


def test_a_step_without_a_checkpoint_is_not_the_best():
  tracker = BestTracker(small_config('none', keep_best='eval/loss/pair'))
  rows = [{'step': i, 'eval/loss/pair': x} for i, x in enumerate([9, 1, 2])]
  tracker.replay(rows, {2})
  assert tracker.best.step == 2 and tracker.waited == 1


@pytest.fixture(scope='module')
def stopped(words, runs, tmp_path_factory):
  """A run of 10 steps that early stopping ends at step 7."""
  import tiny_runs

  folder = tmp_path_factory.mktemp('stopped')
  run = tiny_runs.Trainer(words, runs)(folder, 10, **SETTINGS)
  return folder, run


def test_the_best_is_kept_and_read_and_the_run_says_where_it_stopped(stopped):
  folder, run = stopped
  assert run.step == 7 and run.stopped_early
  # Step 5 is better than step 3, but by less than MIN_DELTA.
  assert best_step.read_best(str(folder)) == BestStep(5, ASKED, 0.501, 7)
  assert 'step 5 is the best so far: few_shot/x = 0.501' in run.lines
  assert run.lines[-1] == (
    'step 7 of 10: stopped early: few_shot/x was no better in 4 evaluations in '
    'a row (PATIENCE): the best is step 5, 0.501'
  )
  with reader.open_step(str(folder), None) as (checkpoints, step):
    assert step == 5 and checkpoints.all_steps() == [5, 7]
  with reader.open_step(str(folder), 7) as (_, step):
    assert step == 7


@pytest.mark.parametrize(
  'stop_at',
  [
    pytest.param('step 4/10', marks=pytest.mark.slow),
    'step 5 is the best',
    pytest.param('step 6/10', marks=pytest.mark.slow),
    pytest.param('step 7 of 10', marks=pytest.mark.slow),
  ],
)
def test_a_killed_run_keeps_and_stops_as_one_that_went_on(
  stopped, train, tmp_path, stop_at
):
  """Cut off before an evaluation, behind it and before its checkpoint."""
  whole, _ = stopped

  def say(text):
    if text.startswith(stop_at):
      raise Stop

  with pytest.raises(Stop):
    train(tmp_path, 10, **SETTINGS | dict(say=say))
  run = train(tmp_path, 10, **SETTINGS)
  assert run.step == 7
  assert comparable(tmp_path) == comparable(whole)
  read = best_step.read_best
  assert read(str(tmp_path)) == read(str(whole))
  assert manager.CheckpointManager(str(tmp_path)).all_steps() == [5, 7]
  a, b = parameters(whole, 5), parameters(tmp_path, 5)
  assert all((a[name] == b[name]).all() for name in a)


@pytest.mark.slow
def test_more_patience_goes_on_and_the_best_stays(stopped, train, tmp_path):
  import shutil

  shutil.copytree(stopped[0], tmp_path, dirs_exist_ok=True)
  again = train(tmp_path, 10, **SETTINGS)
  assert again.step == 7 and 'stopped early' in again.lines[-1]
  run = train(tmp_path, 10, **SETTINGS | dict(patience=None))
  assert run.step == 10 and not run.stopped_early
  assert best_step.read_best(str(tmp_path)) == BestStep(5, ASKED, 0.501)
  assert manager.CheckpointManager(str(tmp_path)).all_steps() == [5, 10]
  # Without KEEP_BEST it stays, too, and the newest are kept as ever.
  train(tmp_path, 11)
  assert 5 in manager.CheckpointManager(str(tmp_path)).all_steps()


def test_an_unknown_metric_is_refused_before_a_step(train, tmp_path):
  with pytest.raises(ValueError, match="KEEP_BEST = 'eval/loss/cml'.*clm'"):
    train(tmp_path, 4, keep_best='eval/loss/cml')
  assert not metric_writer.read_metrics(str(tmp_path))


@pytest.mark.parametrize(
  'settings, error',
  [
    (dict(patience=2), 'PATIENCE = 2, but KEEP_BEST = None'),
    (dict(keep_best=ASKED), 'but ASK_EVERY = None'),
    (dict(keep_best=3), 'KEEP_BEST = 3: expected a text'),
    (dict(keep_best=ASKED, min_delta=-1), 'MIN_DELTA = -1'),
  ],
)
def test_settings_that_do_not_fit_are_refused(settings, error):
  with pytest.raises(ValueError, match=error):
    small_config('none', **settings)


def test_a_best_step_that_is_gone_is_named(stopped, tmp_path):
  import shutil

  shutil.copytree(stopped[0], tmp_path, dirs_exist_ok=True)
  shutil.rmtree(os.path.join(tmp_path, 'checkpoints', '5'))
  with pytest.raises(FileNotFoundError, match='step 5 .*best.json names it'):
    with reader.open_step(str(tmp_path), None):
      pass
