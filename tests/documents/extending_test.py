"""The changes of docs/extending.md apply to atm, and what they add works."""

import os
import shutil
import subprocess
import sys

import pytest

import document_blocks

COMMAND = (
  'import sys; from atm.cli import main; sys.exit(main.main(sys.argv[1:]))'
)


@pytest.mark.documents
def test_changes_add_an_option_a_setting_and_a_page(tmp_path):
  for folder in ('atm', 'gin', 'tasks'):
    shutil.copytree(
      f'{document_blocks.ROOT}/{folder}', tmp_path / folder,
      ignore=shutil.ignore_patterns('__pycache__'),
    )  # fmt: skip
  blocks = document_blocks.read_blocks('docs/extending.md')
  patches = [b for b in blocks if (b.title or '').endswith('.patch')]
  assert len(patches) == 2
  for patch in patches:
    (tmp_path / patch.title).write_text(f'{patch.code}\n')
    subprocess.run(['git', 'apply', patch.title], cwd=tmp_path, check=True)
  (setting,) = (b.code for b in blocks if b.title == 'setting.gin')
  with open(tmp_path / 'gin/runs/pretrain.gin', 'a') as f:
    f.write(f'{setting}\n')
  (tmp_path / 'runs/tiny').mkdir(parents=True)
  row = '{"step": 1500, "eval/loss/clm": 2.5}\n'
  (tmp_path / 'runs/tiny/metrics.jsonl').write_text(row)
  env = {**os.environ, 'PYTHONPATH': str(tmp_path), 'JAX_PLATFORMS': 'cpu'}
  for arguments in (
    ('losses', "--gin.MODEL_DIR='runs/tiny'"),
    ('pretrain', '--gin_file=models/tiny.gin', "--gin.MODEL_DIR='runs/scaled'",
     '--gin.TRAIN_STEPS=1', '--gin.model.Config.scaled_head=True',
     '--gin.EVAL_ROWS=8'),
  ):  # fmt: skip
    subprocess.run(
      [sys.executable, '-c', COMMAND, *arguments],
      cwd=tmp_path, env=env, check=True,
    )  # fmt: skip
  page = (tmp_path / 'runs/tiny/losses.html').read_text()
  assert '<td>1,500</td>' in page and '<td>2.500</td>' in page
  config = (tmp_path / 'runs/scaled/config.gin').read_text()
  assert 'scaled_head = True' in config and 'EVAL_ROWS = 8' in config
