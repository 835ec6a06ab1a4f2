"""What commands import: seconds would be noise, modules are not."""

import shutil
import subprocess
import sys

import pytest

SIZES = (
  '--gin_file=models/tiny.gin', '--gin.TRAIN_STEPS=1', '--gin.SAVE_EVERY=1',
  '--gin.BATCH_SIZE=8', '--gin.model.Config.vocab_size=2048', '--gin.KEEP=1',
  '--gin.TASK_FEATURE_LENGTHS={"inputs": 32, "targets": 32}',
  '--gin.ROW_PASSES=1',
)  # fmt: skip


@pytest.mark.processes
def test_pretrain_of_rows_and_infer_import_no_tensorflow(
  train, words, runs, tmp_path
):
  """Faults seen: seqio for its registry, TensorFlow for an event file."""
  if not (runs / 'rows').exists():
    train(tmp_path / 'first', 1)
  shutil.copytree(runs / 'rows', tmp_path / 'run/rows')
  (tmp_path / 'prompts.txt').write_text('All human beings\n')
  run = f'--gin.MODEL_DIR="{tmp_path}/run"'
  vocabulary = f'--gin.VOCABULARY="{words.path}"'
  prompts = f'--gin.INPUT="{tmp_path}/prompts.txt"'
  commands = (
    ['infer', run, prompts, '--gin.MAX_TOKENS=2'],
    ['pretrain', run, vocabulary, *SIZES],
  )
  code = (
    'import sys; from atm.cli.main import main; '
    'status = main(sys.argv[1:]); '
    'found = {"tensorflow", "seqio", "clu"} & sys.modules.keys(); '
    'sys.exit(f"imports {found}" if found else status)'
  )
  for command in reversed(commands):
    done = subprocess.run(
      [sys.executable, '-c', code, *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
