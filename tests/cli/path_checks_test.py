"""A path that is not there is told before anything is imported."""

import re

import pytest

from atm import storage
from atm.cli import commands, gin_files, gin_reader, path_checks, run_settings
from atm.cli.gin_text import UserError


def check(run, *arguments):
  path_checks.check_inputs_exist(
    run, gin_reader.read_configuration([gin_files.run_file(run)], arguments)
  )


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The working directory, with a run and a file."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs' / 'tiny' / 'checkpoints').mkdir(parents=True)
  (tmp_path / 'prompts.txt').touch()
  return tmp_path


@pytest.mark.parametrize('run', path_checks.PATHS)
def test_settings_are_those_of_the_run(run):
  assert run in commands.RUNS
  assert path_checks.PATHS[run].keys() <= run_settings.list_own_macros(run)


@pytest.mark.parametrize(
  'run, argument, message',
  [
    ('infer', 'MODEL_DIR="runs/tny"', "'runs/tny': not there: expected a MODEL_"
     "DIR with a checkpoint, .*weights. Did you mean 'runs/tiny'?"),
    ('score', 'INPUT="promts.txt"', "Did you mean 'prompts.txt'?"),
    ('report', 'MODEL_DIR="no/such"', 'with metrics.jsonl, .*writes.$'),
    ('compare', 'RUNS=("runs/tiny", "runs/b")', "RUNS = 'runs/b': not there"),
    ('compare', "RUNS={'a': ('runs/tiny',), 'b': ('runs/tny',)}",
     "RUNS.'b'. = 'runs/tny': not there: .*Did you mean 'runs/tiny'?"),
    ('compare', 'RUNS="runs.jsonl"', "RUNS = 'runs.jsonl': not there"),
    ('finetune', 'INIT_FROM="gone"', "INIT_FROM = 'gone'"),
    ('pretrain', 'TEXT_DIR="~/no such"', 'TEXT_DIR = .* LANG.txt'),
    ('chat', 'MODEL_DIR="runs/tiny/x\\n"', 'not there'),
    ('runs', 'FOLDER="gcs://b"', "FOLDER = 'gcs://b': .*Did you mean 'gs'"),
    ('finetune', "PAIRS={'a': 'prompts.txt', 'b': ('prompts.txt', 'prmpts')}",
     "PAIRS.'b'. = 'prmpts': not there: expected JSONL .*'prompts.txt'"),
    ('serve', 'MODEL_DIR="gs:///a"', "MODEL_DIR = .*expected gs://BUCKET"),
  ],
)  # fmt: skip
def test_what_is_not_there(folder, run, argument, message):
  with pytest.raises(UserError, match=message):
    check(run, argument)


def test_what_is_not_there_in_a_bucket(bucket):
  store = bucket.rpartition('/')[0]
  storage.write_bytes(f'{bucket}/tiny/checkpoints/1/x', b'')
  for argument, message in (
    (f'MODEL_DIR="{bucket}/tny"', f"Did you mean '{bucket}/tiny'?"),
    (f'MODEL_DIR="{bucket}/other"', 'not there: expected a MODEL_DIR'),
    (f'MODEL_DIR="{store}s/a"', f"There is no bucket '{store}s', or it is"),
  ):
    with pytest.raises(UserError, match=re.escape(message)):
      check('chat', argument)
  check('chat', f'MODEL_DIR="{bucket}/tiny/"')
  gone = f'INIT_FROM="{bucket}/gone"'
  check('finetune', gone, f'MODEL_DIR="{bucket}/tiny"')


def test_what_is_left_to_those_who_read(folder):
  there = 'MODEL_DIR="runs/tiny"'
  for arguments in (
    ('infer', there, 'INPUT="prompts.txt"'),
    ('infer', there, 'INPUT="-"'),
    ('infer', 'MODEL_DIR=5'),
    ('infer', 'MODEL_DIR=""'),
    ('infer', 'X="runs/tiny"', 'MODEL_DIR=%X'),
    ('infer', 'MODEL_DIR=%MODEL_DIR'),
    ('compare', 'RUNS=[%A]'),
    ('finetune', 'PAIRS=["a", "b"]', 'INIT_FROM="runs/tiny"'),
    ('eval',),
    ('finetune', 'INIT_FROM="gone"', there),
    ('chat', 'MODEL_DIR="x"', 'sharding.start.distributed="auto"'),
  ):
    check(*arguments)
