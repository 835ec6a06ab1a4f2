"""Steps that are not trained on, in the loop: not finite, or in SKIP_STEPS.

Faults seen: see each test.
"""

import functools
import json
import shutil

import numpy as np
import pytest

from atm.checkpoint import manager, paths, reader
from atm.data import batches
from atm.train import metric_writer

from tiny_runs import (
  EIGHT,
  comparable,
  parameters,
)

pytestmark = pytest.mark.processes

NAN = "the loss is nan and the gradient's norm is nan"


@pytest.fixture
def spoil(monkeypatch):
  """Makes the batches of some steps have a loss weight that is no number;
  returns the list of all steps whose batches were made."""
  make, made = batches.Batches.__call__, []

  def call(*steps):
    def spoilt(self, number, rows=slice(None)):
      made.append(number + 1)
      batch = make(self, number, rows)
      if number + 1 in steps:
        batch['decoder_loss_weights'][0, 0] = np.nan
      return batch

    monkeypatch.setattr(batches.Batches, '__call__', spoilt)
    return made

  return call


def assert_same_run(a, b, step: int):
  """To the bit, as far as metrics tell and in the parameters."""
  assert comparable(a) == comparable(b)
  x, y = parameters(a, step), parameters(b, step)
  assert x.keys() == y.keys()
  for name in x:
    np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def test_a_range_gives_the_same_run_however_interrupted(
  train, tmp_path, spoil
):  # fmt: skip
  """Stopped and resumed within a range, on eight devices; with a bad step.

  Faults seen: the step's number stands still, and with it dropout's key; data
  positions jump; the range one step late; the bad step's sums added.
  """
  made = spoil(6)
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  go = functools.partial(
    train, make_mesh=EIGHT, log_every=2, skip_steps=((3, 5), (7, 7))
  )
  lines = go(whole, 9).lines
  assert lines.count('SKIP_STEPS: steps 3 to 5 are not trained on') == 1
  assert lines.count(f'step 6: {NAN}: update skipped') == 1
  assert sum('skipped 1 ' in line for line in lines) == 1
  assert made == [1, 2, 6, 8, 9]
  rows = [
    row for row in metric_writer.read_metrics(str(whole)) if 'skipped' in row
  ]
  assert [row['step'] for row in rows] == [2, 6, 8, 9]
  assert [row['skipped'] for row in rows] == [0, 1, 0, 0]
  for line in (whole / metric_writer.METRICS_FILE).read_text().splitlines():
    json.loads(line, parse_constant=pytest.fail)
  go(parts, 4)
  go(parts, 9)
  assert made == [1, 2, 6, 8, 9] * 2
  assert_same_run(whole, parts, 9)
  meta = manager.CheckpointManager(str(whole)).meta(9)
  assert meta['skip_steps'] == [[3, 5], [7, 7]] and meta['data']['step'] == 9
  assert parameters(parts, 4, 'optimizer')["['step']"] == 4
  assert parameters(parts, 9, 'optimizer')["['step']"] == 9


def test_many_in_a_row_end_the_run_and_how_it_goes_on(
  train, tmp_path, spoil
):  # fmt: skip
  """Resumed in between; then from an earlier checkpoint, with a range: as a
  run that had the range from the start.

  Faults seen: the count starts anew when resumed; all counted, not in a row;
  the abort one step late.
  """
  made = spoil(2, 4, 5, 6, 7)
  parts, whole = tmp_path / 'parts', tmp_path / 'whole'
  go = functools.partial(train, abort_after_nonfinite=3, micro_batches=2)
  go(parts, 5)
  message = (
    r'steps 4 to 6: .* 3 times in a row \(ABORT_AFTER_NONFINITE = 3; at last '
    rf'{NAN}\).*step 4 or earlier.* add \(4, 6\).* to SKIP_STEPS.*LEARNING_RATE'
  )
  with pytest.raises(FloatingPointError, match=message):
    go(parts, 9)
  assert reader.latest_step(str(parts)) == 5
  more = r'step 4 was trained on, and the newest checkpoint is of step 5.*'
  nearest = r'or use SKIP_STEPS = \(\(6, 7\),\)'
  with pytest.raises(ValueError, match=more + nearest):
    go(parts, 9, skip_steps=((4, 7),))
  shutil.rmtree(parts / paths.CHECKPOINTS / '5')
  lines = go(parts, 9, skip_steps=((4, 7),)).lines
  assert any('resumed from step 3' in line for line in lines)
  assert made[-2:] == [8, 9]
  go(whole, 9, skip_steps=((4, 7),))
  trained = lambda path: [r for r in comparable(path) if 'skipped' in r]
  assert [row['step'] for row in trained(parts)] == [1, 2, 3, 8, 9]
  assert trained(parts) == trained(whole)
  a, b = parameters(parts, 9), parameters(whole, 9)
  assert all((a[name] == b[name]).all() for name in a)


def test_a_frozen_encoder_starts_behind_a_range(train, tmp_path):
  """The boundary lies in the range. Fault seen: the full step never made."""
  lines = train(
    tmp_path, 5, freeze_encoder_steps=3, skip_steps=((2, 4),), save_every=1
  ).lines
  assert lines.count('step 4: from here on the encoder trains too') == 1
  a, b, c = (parameters(tmp_path, n) for n in (1, 4, 5))
  assert all((a[name] == b[name]).all() for name in a)
  assert all((b[n] != c[n]).any() for n in a if "['embedding']" in n)
