"""Runs look where they will write before they work."""

import pytest

from atm.checkpoint import convert
from atm.data import cache, vocabulary_training
from atm.evals import runner
from atm.pages import inspect_data

LENGTHS = {'inputs': 8, 'targets': 8}
RUNS = {
  'CACHE_DIR': lambda path: cache.build('none', 'none', LENGTHS, path),
  'VOCABULARY_DIR': lambda path: vocabulary_training.train_vocabulary(
    'none', path, 9
  ),
  'OUTPUT': lambda path: convert.export_weights('none', path),
  'OUTPUT_DIR': lambda path: inspect_data.inspect('none', path, LENGTHS),
  'OUTPUT = ': lambda path: runner.SuiteEvaluation(
    'none', make_tasks=list, suite='none', output=path
  ).run(),
}


@pytest.mark.parametrize('setting', RUNS)
def test_a_folder_that_cannot_be_comes_before_all_else(tmp_path, setting):
  """Nothing that a run reads is there; it does not come so far."""
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match=f'^{setting}.*file is none'):
    RUNS[setting](str(tmp_path / 'file' / 'inner'))
