"""A run refuses the settings that it would ignore."""

import pytest

from atm.cli import gin_files, gin_reader, settings_check
from atm.cli.gin_text import UserError


def check(run, *arguments, files=(), trusted=()):
  """Returns the notes on what a run ignores of files and arguments."""
  paths = [gin_files.run_file(run), *map(gin_files.find_file, files)]
  made = gin_reader.read_configuration(paths, arguments)
  return settings_check.check_run(run, made, {*trusted})


@pytest.mark.parametrize(
  'run, argument, message',
  [
    ('infer', 'LIMIT=1', 'LIMIT is not a setting of infer; check, eval, '
     "finetune, lm_eval and pretrain have it. Did you mean 'SPLIT'?"),
    ('infer', 'TRAIN_STEPS=7', 'mixture, plan and pretrain have it.'),
    ('chat', 'SEED=3', 'SEED is not a setting of chat; eval,'),
    ('pretrain', 'TOPOLOGY=None', 'pretrain; plan has it.'),
    ('pretrain', 'train_steps=3', "Did you mean 'TRAIN_STEPS'?"),
    ('infer', 'train_steps=3', 'pretrain have TRAIN_STEPS; infer has not.'),
    ('infer', 'xyzzy=3', "is called 'xyzzy'. See `atm infer --help`."),
    ('infer', 'optimizer.Config.learning_rate=1', 'is not a setting of infer;'),
    ('score', 'model.Config.d_model=3', 'score reads the model from MODEL_DIR'),
    ('export', 'sharding.mesh.fsdp=2', 'is not a setting of export; chat'),
    ('infer', 'choosing.Confg.top_k=2', "Did you mean 'choosing.Config'?"),
    ('plan', 'DECODE_BATCH_SIZE=2', 'it is for another PROGRAM'),
    ('plan', 'WEIGHTS="bfloat16"', 'WEIGHTS does nothing here'),
  ],
)  # fmt: skip
def test_what_a_run_would_ignore_is_refused(run, argument, message):
  """Fault seen: names of all runs were allowed in every run."""
  with pytest.raises(UserError) as error:
    check(run, argument)
  assert message in str(error.value) and len(str(error.value)) < 300


def test_a_plan_of_decoding_takes_what_counts_then():
  decode = "PROGRAM='decode'"
  assert not check('plan', decode, 'DECODE_BATCH_SIZE=2', "WEIGHTS='bfloat16'")
  assert not check('plan', 'P="decode"', 'PROGRAM=%P', 'DECODE_BATCH_SIZE=2')
  assert not check('plan', 'BATCH_SIZE=2', files=['models/tiny.gin'])
  for name in ('BATCH_SIZE', 'SEARCH', 'optimizer.Config.b1'):
    with pytest.raises(UserError):
      check('plan', decode, f'{name}=2')


def test_a_setting_that_another_one_replaces_is_refused():
  with pytest.raises(UserError, match='=4 binds trainer.train.batch_size to'):
    check('pretrain', 'BATCH_SIZE=8', 'trainer.train.batch_size=4')
  check('pretrain', 'BATCH_SIZE=8', 'trainer.train.batch_size=%BATCH_SIZE')


def test_macros_that_are_referred_to_are_settings(tmp_path):
  """Those of a config.gin that an earlier version wrote, too."""
  (tmp_path / 'config.gin').write_text(
    'WIDTH = 8\nmodel.Config.d_model = %WIDTH'
  )
  file = str(tmp_path / 'config.gin')
  assert not check('pretrain', 'WIDTH=16', files=[file])
  with pytest.raises(UserError, match="no setting is called 'WIDTH'"):
    check('pretrain', 'WIDTH=16', files=['models/20b.gin'])
  assert not check('infer', 'A=3', 'B=%A', 'MAX_TOKENS=%B')
  with pytest.raises(UserError, match="no setting is called 'A'"):
    check('infer', 'A=3', 'B=%A')


def test_scopes_and_modules_of_a_user():
  assert not check(
    'infer', 'a/choosing.Config.beams=3',
    'infer_file.config=@a/atm.choosing.Config()',
  )  # fmt: skip
  mine = ('poems.mesh.config=1', 'chat.chat.make_mesh=@poems.mesh')
  assert not check('chat', *mine, trusted=['poems'])
  assert not check(
    'chat', 'poems.mesh.config=@model.Config()', 'model.Config.d_model=8',
    'chat.chat.make_mesh=@poems.mesh', trusted=['poems'],
  )  # fmt: skip
  with pytest.raises(UserError, match='is not a setting of chat'):
    check('chat', 'model.Config.d_model=8', trusted=['poems'])
  with pytest.raises(UserError, match="'poems.mesh' is nothing gin may bind"):
    check('chat', *mine)


def test_files_that_runs_share_are_taken(tmp_path, monkeypatch):
  """A shipped file, and the config.gin of a run, whatever the run uses."""
  monkeypatch.chdir(tmp_path)
  text = 'LIMIT = 3\nSEED = 1\noptimizer.Config.b1 = 0.5\n'
  (tmp_path / 'config.gin').write_text(text)
  for run in ('infer', 'pretrain', 'eval'):
    assert not check(run, files=['config.gin', 'models/tiny.gin'])
  assert check('export', files=['config.gin', 'pods/cpu.gin']) == [
    './config.gin: export uses nothing of this file'
  ]
  (told,) = check('infer', files=['suites/xnli.gin'])
  assert told.endswith('suites/xnli.gin: infer uses nothing of this file')


def test_a_line_tells_what_is_not_used_of_a_users_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  mine = tmp_path / 'mine.gin'
  mine.write_text('SEED = 1\n\nLIMIT = 3\n')
  assert check('infer', files=['mine.gin']) == [
    './mine.gin:3: LIMIT is not a setting of infer: not used'
  ]
  mine.write_text('SIZE = 8\nmodel.Config.d_model = %SIZE\nLIMIT = 3\n')
  assert check('infer', files=['mine.gin']) == [
    './mine.gin: 3 lines set what infer does not use: SIZE (line 1), '
    'model.Config.d_model (line 2), LIMIT (line 3)'
  ]
  assert check('plan', files=['mine.gin'])[0].endswith('plan: not used')
  mine.write_text('\n'.join(f'A{i} = 1\nDATA_DIR = %A{i}' for i in range(200)))
  (line,) = check('infer', files=['mine.gin'])
  assert len(line) < 400
  mine.write_text('LIMT = 3\n')
  with pytest.raises(UserError, match='mine.gin, line 1: no setting is called'):
    check('infer', files=['mine.gin'])
