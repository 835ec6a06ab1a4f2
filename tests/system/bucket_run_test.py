"""Commands on a run whose MODEL_DIR is in an object store."""

import pytest
from survive_test import command, rows  # noqa: F401, a fixture

from atm import storage
from atm.checkpoint import best_step, reader
from atm.train import metric_writer

from survive import Nursery

pytestmark = pytest.mark.processes


def test_a_run_is_made_and_used_in_a_store(make_bucket, rows, tmp_path):  # noqa: F811
  """Trained, gone on with by its own config.gin, shown, and asked."""
  bucket = make_bucket('gs')
  run = f'{bucket}/a'
  with Nursery(str(tmp_path), rows) as nursery:

    def atm(*arguments):
      ended = nursery.run(command=[*arguments], cache=0.1)
      assert ended.code == 0, ended.lines
      return '\n'.join(ended.lines)

    atm(
      *command(run, rows, '--gin.TRAIN_STEPS=4', '--gin.SAVE_EVERY=2'),
      '--gin.KEEP_BEST="eval/loss/clm"', '--gin.EVAL_EVERY=3', '--gin.KEEP=1',
    )  # fmt: skip
    # Between two saves that are due, and kept as the only one, if it is best.
    assert best_step.read_best(run).step in (3, 4)
    said = atm(
      'pretrain', f'--gin_file={run}/config.gin', '--gin.TRAIN_STEPS=6'
    )
    assert f'resumed from step 4 in {run}/checkpoints' in said
    assert metric_writer.read_metrics(run)[-1]['step'] == 6
    best = best_step.read_best(run)
    steps = reader.CheckpointReader(run).all_steps()
    assert steps == sorted({best.step, 6})
    atm('report', f'--gin.MODEL_DIR="{run}"')
    assert 'finished' in atm('runs', bucket)
    atm('card', run)
    (tmp_path / 'inputs.txt').write_text('a text\n')
    output = tmp_path / 'outputs.jsonl'
    atm(
      'infer', f'--gin.MODEL_DIR="{run}"',
      f'--gin.INPUT="{tmp_path}/inputs.txt"', f'--gin.OUTPUT="{output}"',
      '--gin.MAX_TOKENS=2',
    )  # fmt: skip
    assert output.read_text().startswith('{')
  for name in (
    'loss.png', 'report.html', 'config.gin', 'samples.json', 'README.md'
  ):  # fmt: skip
    assert storage.get_size(f'{run}/{name}')
  assert storage.get_size(f'{bucket}/runs.html')
