"""metrics.jsonl, as a killed run leaves it."""

import json

import pytest

from atm.train import metric_writer


def test_tensorboard_reads_the_scalars(tmp_path):
  """Those of a resumed run stand behind the others."""
  from tensorboard.backend.event_processing import event_accumulator

  for step in (1, 2):
    log = metric_writer.TensorBoardLog(str(tmp_path / 'log'))
    log.write(step, {'loss': step / 2, 'eval/loss/de': 3})
    log.close()
  read = event_accumulator.EventAccumulator(str(tmp_path / 'log'))
  read.Reload()
  for tag, values in {'loss': [0.5, 1.0], 'eval/loss/de': [3.0, 3.0]}.items():
    scalars = read.Scalars(tag)
    assert [x.step for x in scalars] == [1, 2]
    assert [x.value for x in scalars] == values


def test_a_torn_metrics_line_is_dropped(tmp_path):
  path = tmp_path / metric_writer.METRICS_FILE
  path.write_text(json.dumps({'step': 1, 'loss': 2.0}) + '\n{"step": 2, "lo')
  assert metric_writer.read_metrics(str(tmp_path)) == [{'step': 1, 'loss': 2.0}]


def test_a_line_that_is_no_row_is_named(tmp_path):
  """Faults seen: dropped without a word; a traceback of its reader."""
  path, row = tmp_path / metric_writer.METRICS_FILE, b'{"step": 1, "x": NaN}\n'
  torn = b'{"step": 2, "lo' + row + b'\0\0\n'  # a killed run's and the next's
  path.write_bytes(torn + row)
  assert len(metric_writer.read_metrics(str(tmp_path))) == 1
  for line in (
    b'garbage', b'\xff\xfe', b'5', b'null', b'[]', b'[' * 100_000, b'{}',
    b'{"step": null}', b'{"step": "1"}', b'{"step": 1, "loss": "2"}',
    b'{"step": %d}' % 2**70, b'{"step": true}', b'{"step": 1, "loss": [1]}',
  ):  # fmt: skip
    path.write_bytes(row + line + b'\n' + row)
    with pytest.raises(ValueError) as caught:
      metric_writer.read_metrics(str(tmp_path))
    assert f'{path}, line 2: ' in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_resumed_run_drops_the_steps_that_it_does_again(tmp_path):
  """They are kept beside it. Fault seen: rows beyond the checkpoint kept."""
  write = lambda rewind, steps: [
    log.write(step, {'loss': 1.0})
    for log in [metric_writer.MetricWriter(str(tmp_path), rewind)]
    for step in steps
  ]
  write(-1, (0, 1, 2, 3))
  write(2, (3, 4))
  assert [r['step'] for r in metric_writer.read_metrics(str(tmp_path))] == [
    0,
    1,
    2,
    3,
    4,
  ]
  path = str(tmp_path / metric_writer.DROPPED_FILE)
  dropped = list(metric_writer.read_intact_lines(path, metric_writer.ROW))
  assert [row['step'] for row in dropped] == [3]
  write(-1, ())  # anew, as where the checkpoints were taken away
  dropped = list(metric_writer.read_intact_lines(path, metric_writer.ROW))
  assert [row['step'] for row in dropped] == [3, 0, 1, 2, 3, 4]
