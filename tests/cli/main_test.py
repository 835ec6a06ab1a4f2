"""The command line: what it refuses, and how it says so."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import atm as atm_package
from atm.cli import commands, main

from command_line import DIR, TINY, atm

SMALLER = (
  '--gin.BATCH_SIZE=8', '--gin.ROW_PASSES=1', '--gin.LOG_EVERY=1',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 32}",
  '--gin.optimizer.Config.warmup_steps=0', '--gin.model.Config.unroll=1',
  *(f'--gin.model.Config.{side}_layers=1' for side in ('encoder', 'decoder')),
  *(f'--gin.model.Config.{size}=16'
    for size in ('d_model', 'encoder_ff', 'decoder_ff')),
)  # fmt: skip


def test_a_bare_command_lists_the_runs(capsys):
  assert main.main([]) == 0
  out = capsys.readouterr().out
  for name in commands.RUNS:
    assert f'\n  {name} ' in out
  assert 'models/20b.gin' in out


def test_help_and_version(capsys):
  def say(*arguments):
    assert main.main([*arguments]) == 0
    return capsys.readouterr().out

  for asked in (['--help'], ['-h'], ['help'], ['help', '--help']):
    assert say(*asked) == say()
  for asked in (['infer', '--help'], ['infer', '-h'], ['help', 'infer'],
                ['infer', '--gin.LIMIT=1', '--help']):  # fmt: skip
    assert say(*asked).startswith('usage: atm infer ')
  assert say('--version') == say('-V') == f'atm {atm_package.__version__}\n'
  assert main.main(['help', 'infr']) == 2
  assert "Did you mean 'infer'" in capsys.readouterr().err


def test_a_folder_to_check_needs_no_name(tmp_path, capsys):
  _, _, bindings, _ = main.parse_arguments(
    ['check', "a 'folder", '--gin.LIMIT=1']
  )
  assert bindings == ['MODEL_DIR = "a \'folder"', 'LIMIT=1']
  assert main.main(['help', 'check']) == 0
  assert capsys.readouterr().out.startswith('usage: atm check [FOLDER] ')
  for wrong in (['infer', 'folder'], ['check', '-x'], ['check', '']):
    assert main.main(wrong) == 2
    assert 'unknown argument' in capsys.readouterr().err
  assert main.main(['check', str(tmp_path / 'none')]) == 2
  assert 'not there: expected a folder with config' in capsys.readouterr().err


def test_a_file_of_which_nothing_is_used_is_told(tmp_path):
  """And the module starts as the command does."""
  (tmp_path / 'mine.gin').write_text('LIMIT = 3\n')
  done = subprocess.run(
    [sys.executable, '-m', 'atm', 'report', DIR, '--gin_file=mine.gin'],
    cwd=tmp_path, capture_output=True, text=True,
  )  # fmt: skip
  told, error = done.stderr.splitlines()
  assert told == (
    'atm: ./mine.gin:1: LIMIT is not a setting of report: not used'
  )
  assert error.startswith('atm: error: ') and done.returncode == 2


def test_a_mistake_exits_2_without_a_traceback(tmp_path):
  for arguments in (
    ('pretrain', TINY, DIR, '--gin.BATCHSIZE=4'),
    ('infer', '--gin.MODEL_DIR="none"', '--gin.INPUT="none.txt"'),
  ):
    done = atm(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith('atm: error: ')
    assert 'Traceback' not in done.stderr and len(done.stderr) < 600
    assert not os.listdir(tmp_path)


@pytest.mark.processes
def test_a_store_that_fails_is_no_mistake(capsys):
  """Launchers start a run again, unless its exit status is 2."""
  from atm.storage.client import PassingError, StorageError

  save = OSError('step 3 was not saved')
  save.__cause__ = PassingError('gs://b/x: 503, 9 times')
  for error, status in (
    (PassingError('gs://b/x: 503, 9 times'), 75),
    (save, 75),
    (StorageError('gs://b/x: 403'), 2),
    (OSError('disk full'), 2),
    (RuntimeError('a fault'), 1),
  ):
    assert main.report_error(error, ['pretrain']) == status
  assert 'atm: error: gs://b/x: 503' in capsys.readouterr().err


def test_a_simulated_mesh_in_a_fresh_process(tmp_path):
  """Fault seen: the peak's measurement under the mesh of eight devices."""
  done = atm(
    'pretrain', TINY, '--gin_file=pods/cpu8.gin', '--gin.MODEL_DIR="run"',
    '--gin.TRAIN_STEPS=1', *SMALLER, cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert '8 cpu device(s) (slice 1 x data 2 x fsdp 2 x tensor 2)' in done.stdout


@pytest.mark.processes
def test_the_whole_way(tmp_path):
  """vocab, pretrain, again from config.gin alone, infer: as a user types."""
  made = atm(
    'vocab', '--gin.VOCABULARY_DIR="words"', '--gin.VOCABULARY_SIZE=1500',
    '--gin.TAGS=8', cwd=tmp_path,
  )  # fmt: skip
  assert made.returncode == 0, made.stderr
  assert 'vocabulary of 1,500 pieces' in made.stdout
  first = atm(
    'pretrain', TINY, '--gin.MODEL_DIR="run"', '--gin.VOCABULARY="words"',
    '--gin.VOCABULARY_SIZE=1500', '--gin.TRAIN_STEPS=2', *SMALLER,
    cwd=tmp_path,
  )  # fmt: skip
  assert first.returncode == 0, first.stderr
  for text in ('step 2/2', 'left', 'CLM:', 'Denoising:', 'loss.png', 'next:'):
    assert text in first.stdout
  assert (tmp_path / 'run' / 'loss.png').stat().st_size > 10_000
  none = atm(
    'pretrain', '--gin_file=run/config.gin', '--gin.TRAIN_STEPS=3',
    '--gin.KEEP=0', cwd=tmp_path,
  )  # fmt: skip
  assert none.returncode == 2
  assert 'KEEP = 0: expected a whole number of at least 1, or' in none.stderr
  assert (tmp_path / 'run' / 'checkpoints' / '2').is_dir()
  again = atm(
    'pretrain', '--gin_file=run/config.gin', '--gin.TRAIN_STEPS=3', cwd=tmp_path
  )
  assert again.returncode == 0, again.stderr
  assert 'resumed from step 2' in again.stdout and 'step 3/3' in again.stdout
  (tmp_path / 'prompts.txt').write_text('Everyone has\nJeder\n')
  done = atm(
    'infer', '--gin.MODEL_DIR="run"', '--gin.INPUT="prompts.txt"',
    '--gin.MAX_TOKENS=8', '--gin.MODE="denoise"', cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / 'prompts.out.jsonl').read_text().splitlines()
  assert len(lines) == 2 and '"output"' in lines[0]
  for more, said in (
    (['--gin.MIXTURE_OR_TASK_NAME="udhr"', '--gin.PAIRS="pairs.jsonl"'],
     "leave out PAIRS, or set MIXTURE_OR_TASK_NAME = 'pairs'"),
    (['--gin.INIT_FROM="run/checkpoints/3"'], "Did you mean 'run'?"),
    (['--gin.PAIRS=["a", "b", "c"]'], "PAIRS = ['a', 'b', 'c']: expected a "
     'file or folder, or two files'),
  ):  # fmt: skip
    (tmp_path / 'pairs.jsonl').touch()
    tuned = atm(
      'finetune', '--gin.INIT_FROM="run"', '--gin.MODEL_DIR="tuned"', *more,
      cwd=tmp_path,
    )  # fmt: skip
    assert tuned.returncode == 2 and said in tuned.stderr, tuned.stderr
    assert len(tuned.stderr.splitlines()) == 1
    assert not (tmp_path / 'tuned').exists()
  # And from it another, on pairs; its config.gin alone tells what it is.
  pairs = [
    {'input': f'everyone {a} {b}', 'target': b}
    for a in 'abcdefghijklmno'
    for b in 'abcdefghij'
  ]
  (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)))
  tuned = atm(
    'finetune', '--gin.INIT_FROM="run"', '--gin.MODEL_DIR="tuned"',
    '--gin.PAIRS="pairs.jsonl"', '--gin.TRAIN_STEPS=1', '--gin.BATCH_SIZE=4',
    cwd=tmp_path,
  )  # fmt: skip
  assert tuned.returncode == 0, tuned.stderr
  for text in ('from run, trained for 3 steps', 'Pairs:', 'pair: held-out'):
    assert text in tuned.stdout, tuned.stdout
  shutil.rmtree(tmp_path / 'run')
  again = atm(
    'pretrain', '--gin_file=tuned/config.gin', '--gin.TRAIN_STEPS=2',
    cwd=tmp_path,
  )  # fmt: skip
  assert again.returncode == 0, again.stderr
  assert 'resumed from step 1' in again.stdout
