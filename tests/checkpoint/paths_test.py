"""Checkpoints beside MODEL_DIR: trained, resumed, read and refused there."""

import pytest

from atm.checkpoint import paths, reader
from atm.inference import api
from atm.train import metric_writer

from tiny_runs import comparable


@pytest.mark.processes
def test_checkpoints_may_lie_elsewhere(train, tmp_path):
  """Resumed from there, also by a new MODEL_DIR; inference finds them.

  Fault seen: the file not read.
  """
  run, bucket = tmp_path / 'run', tmp_path / 'bucket'
  train(run, 4, checkpoint_dir=str(bucket))
  assert (run / paths.CHECKPOINTS).read_text() == f'{bucket}\n'
  assert (bucket / '4' / 'params').is_dir()
  again = train(run, 8)  # the folder is remembered
  assert any(line == f'resumed from step 4 in {bucket}' for line in again.lines)
  assert comparable(run) == comparable(train.whole(8))
  assert api.load(str(run)).step == 8
  with pytest.raises(ValueError, match=f'CHECKPOINT_DIR = .*are in {bucket}'):
    train(run, 9, checkpoint_dir=str(tmp_path / 'other'))
  new = train(tmp_path / 'new', 9, checkpoint_dir=str(bucket))
  assert any(line.startswith('resumed from step 8') for line in new.lines)
  assert metric_writer.read_metrics(str(tmp_path / 'new'))[-1]['step'] == 9
  assert reader.latest_step(str(run)) == 9


def test_a_place_of_object_storage_keeps_its_name(bucket, tmp_path):
  run = tmp_path / 'run'
  paths.set_checkpoint_dir(str(run), f'{bucket}/run')
  assert str(paths.find_checkpoint_dir(str(run))) == f'{bucket}/run'


def test_a_place_that_cannot_be_written_is_not_noted(bucket, tmp_path):
  """Fault seen: the right one was refused then, as another than the run's."""
  run = str(tmp_path / 'run')
  missing = bucket.replace('://bucket/', '://no-such-bucket/')
  with pytest.raises(ValueError, match='CHECKPOINT_DIR = .*no such bucket'):
    paths.set_checkpoint_dir(run, missing)
  paths.set_checkpoint_dir(run, f'{bucket}/run')
