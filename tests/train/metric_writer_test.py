"""metrics.jsonl, as a killed run leaves it."""

import json

from atm.train import metric_writer


def test_a_torn_metrics_line_is_dropped(tmp_path):
  path = tmp_path / metric_writer.METRICS_FILE
  path.write_text(json.dumps({'step': 1, 'loss': 2.0}) + '\n{"step": 2, "lo')
  assert metric_writer.read_metrics(str(tmp_path)) == [{'step': 1, 'loss': 2.0}]


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
  dropped = list(metric_writer.read_intact_lines(path))
  assert [row['step'] for row in dropped] == [3]
  write(-1, ())  # anew, as where the checkpoints were taken away
  dropped = list(metric_writer.read_intact_lines(path))
  assert [row['step'] for row in dropped] == [3, 0, 1, 2, 3, 4]
