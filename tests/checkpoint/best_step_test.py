"""The file that names a run's best checkpoint."""

import pytest

from atm.checkpoint import best_step
from atm.checkpoint.best_step import BestStep


def test_it_is_read_as_it_was_written(tmp_path):
  assert best_step.read_best(str(tmp_path)) is None
  best = BestStep(300, 'eval/loss/pair', 0.1 + 0.2, 500)
  best_step.write_best(str(tmp_path), best)
  assert best_step.read_best(str(tmp_path)) == best
  assert best.describe() == 'eval/loss/pair = 0.3'


def test_a_damaged_one_is_named(tmp_path):
  (tmp_path / 'best.json').write_text('{"step": "x"}')
  with pytest.raises(ValueError, match='best.json'):
    best_step.read_best(str(tmp_path))
