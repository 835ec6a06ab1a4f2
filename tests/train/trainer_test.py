"""A stopped and resumed run is the run that was not stopped, bit for bit."""

import shutil

import numpy as np
import pytest

from atm.checkpoint import manager
from atm.train import (
  goodput,
  metric_writer,
  run_folder,
  trainer,
)

from tiny_runs import (
  EIGHT,
  ONE,
  Stop,
  comparable,
  parameters,
  small_model,
)


@pytest.mark.parametrize('make_mesh', [ONE, EIGHT], ids=['1', '8'])
def test_resumed_equals_uninterrupted(train, tmp_path, make_mesh):
  """Faults seen: data counted from the restart; Adam's state not restored; the
  step, and with it dropout's key, not restored; metrics of lost steps kept."""
  whole, parts = train.whole(8, make_mesh), tmp_path / 'parts'
  with pytest.raises(Stop):
    train(parts, 8, make_mesh, stop_at=5)  # two steps behind a checkpoint
  assert (
    metric_writer.read_metrics(str(parts))[-1]['step'] > 3
  )  # to be done again
  resumed = train(parts, 8, make_mesh)
  assert any(line.startswith('resumed from step 3') for line in resumed.lines)
  assert comparable(parts) == comparable(whole)
  a, b = parameters(whole, 8), parameters(parts, 8)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_one_device_and_eight_learn_alike(train):
  a, b = (
    metric_writer.read_metrics(str(train.whole(8, mesh)))
    for mesh in (ONE, EIGHT)
  )
  for x, y in zip(a, b, strict=True):
    for key in x:
      if key.startswith(('loss', 'eval', 'grad')):
        assert x[key] == pytest.approx(y[key], abs=1e-4), key


def test_another_seed_is_another_run(train, tmp_path):
  first = lambda history: next(row for row in history if 'loss' in row)
  a = first(metric_writer.read_metrics(str(train.whole(8))))
  b = first(train(tmp_path, 1, seed=1).history)
  assert a['step'] == b['step'] == 1 and a['loss'] != b['loss']


def test_what_a_run_writes(train):
  folder = train.whole(4)
  history = metric_writer.read_metrics(str(folder))
  rows = [r for r in history if 'loss' in r]
  assert [r['step'] for r in rows] == [1, 2, 3, 4]
  for name in (
    'loss/denoise', 'loss/clm', 'accuracy', 'grad_norm', 'param_norm',
    'learning_rate', 'tokens/target', 'tokens/input', 'padding/target',
    'padding/input', 'tokens_per_second', 'mfu',
  ):  # fmt: skip
    assert any(name in row for row in rows), name
  assert rows[0]['learning_rate'] == pytest.approx(1e-3)
  assert rows[0]['padding/target'] == pytest.approx(
    1 - rows[0]['tokens/target'] / (16 * 32)
  )
  first = history[0]
  assert first['step'] == 0
  for name in ('loss/denoise', 'loss/clm/te', 'unigram/denoise'):
    assert f'eval/{name}' in first
  assert (folder / 'config.gin').read_text() == '# the config\n'
  assert list((folder / 'tensorboard').iterdir())
  meta = manager.CheckpointManager(str(folder)).meta(4)
  assert len(meta['data'].pop('rows')) == 64
  assert meta['data'] == {
    'mixture': 'udhr', 'seed': 0, 'batch_size': 16, 'step': 4
  }  # fmt: skip
  assert meta['config'] == '# the config\n'


def test_all_of_the_time_is_of_some_kind(train, tmp_path):
  """Two processes of one run; the second repeats nothing."""
  folder = shutil.copytree(train.whole(4), tmp_path / 'run')
  run = train(folder, 6)
  first, second = goodput.read_goodput(str(folder))
  assert (first['first'], first['step']) == (0, 4)
  assert (second['first'], second['step']) == (4, 6)
  spent = goodput.sum_by_kind([first, second])
  assert sum(spent.values()) == pytest.approx(second['now'] - first['began'])
  assert min(spent.values()) >= 0 and spent['repeated'] == 0
  for kind in ('step', 'setup', 'compile', 'checkpoint', 'evaluation'):
    assert spent[kind] > 0, kind
  rows = [r for r in run.history if 'loss' in r]
  assert all(0 < row['goodput'] < 1 for row in rows)


@pytest.mark.parametrize('keep', [0, -1, 1.5, True, '3'])
def test_to_keep_none_is_refused_and_touches_nothing(train, tmp_path, keep):
  """Fault seen: with 0 the first save removed every checkpoint of the run."""
  run = shutil.copytree(train.whole(4), tmp_path / 'run')
  files = lambda: sorted(
    (str(p), p.read_bytes())
    for p in run.rglob('*')
    if p.is_file() and p.name != run_folder.LOCK_FILE
  )
  before = files()
  with pytest.raises(ValueError, match=f'KEEP = {keep!r}: expected a whole nu'):
    train(run, 5, keep=keep, save_every=1)
  assert files() == before
  assert 4 in manager.CheckpointManager(str(run)).all_steps()


def test_an_empty_name_is_not_taken_for_none(train, tmp_path, monkeypatch):
  """Faults seen: VOCABULARY = '' and CACHE_DIR = '' passed for the run's own;
  INIT_FROM = '', the working directory, was not compared with MODEL_DIR."""
  run = shutil.copytree(train.whole(4), tmp_path / 'run')
  monkeypatch.chdir(run)
  with pytest.raises(ValueError, match="INIT_FROM = '': expected a text"):
    train(run, 5, init_from='')
  monkeypatch.chdir(tmp_path)
  for name in ('vocabulary', 'cache_dir'):
    with pytest.raises(ValueError, match=f"{name.upper()} = '': expected"):
      train(run, 5, **{name: ''})


def test_a_finished_run_only_reports(train, tmp_path):
  folder = shutil.copytree(train.whole(4), tmp_path / 'run')
  before = comparable(folder)
  assert train(folder, 4).step == 4
  assert comparable(folder) == before


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      dict(batch_size=6, make_mesh=EIGHT),
      'BATCH_SIZE = 6 does not divide by 4',
    ),
    (dict(steps=0), 'TRAIN_STEPS = 0: expected a whole number of at least 1'),
    (dict(lengths={'inputs': 32}), "TASK_FEATURE_LENGTHS = {'inputs': 32}"),
    (dict(lengths={'inputs': 99, 'targets': 32}), 'inputs.*99.*positions = 64'),
    (dict(mixture='udhr_en_clmm'), "Did you mean 'udhr_en_clm'"),
  ],
)
def test_settings_that_do_not_fit_change_nothing(
  train, tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    train(tmp_path / 'run', **{'steps': 2, **changes})
  assert not (tmp_path / 'run' / 'config.gin').exists()


@pytest.mark.parametrize('resumes', [False, True])
def test_what_a_model_says_of_itself_is_bound(train, tmp_path, resumes):
  """Faults seen: a macro of a macro; a damaged step, an older one sound."""
  import gin
  from atm.cli import commands, gin_config, gin_files

  model_dir = str(tmp_path / 'run')
  if resumes:
    shutil.copytree(train.whole(4), model_dir)
    with open(f'{model_dir}/checkpoints/4/meta/metadata', 'r+') as f:
      f.truncate(40)
  source = 'gone' if resumes else str(train.whole(4))
  bindings = [
    f'BASE = {source!r}', 'INIT_FROM = %BASE', f'MODEL_DIR = {model_dir!r}',
    'model.Config.dropout = 0.25',
  ]  # fmt: skip
  try:
    with gin.unlock_config():
      gin_config.apply_config(
        [gin_files.find_file('runs/finetune.gin')], bindings, set()
      )
      commands.adopt_source_model()
      made = gin.get_configurable('model.Config')()
      lengths = gin_config.get_setting('TASK_FEATURE_LENGTHS')
      assert gin_config.get_setting('INIT_FROM') == source
      assert 'finetune' not in commands.next_steps(model_dir, 4)
  finally:
    gin.clear_config()
  assert (made.d_model, made.encoder_ff, made.dropout) == (32, 64, 0.25)
  assert lengths == {'inputs': 64, 'targets': 64}


def test_what_export_will_refuse_is_told_before_the_first_step(
  train, tmp_path, monkeypatch
):
  """Fault seen: learned after training."""

  def stop(loop, step, state):
    raise Stop

  monkeypatch.setattr(trainer.Loop, 'run', stop)
  for number, (offset, told) in enumerate(((0, False), (2, True))):
    said = []
    with pytest.raises(Stop):
      train(
        tmp_path / f'run{number}', 1, say=said.append,
        model_config=small_model(position_offset=offset),
      )  # fmt: skip
    assert any('`atm export` will refuse' in line for line in said) == told
