"""A stopped and resumed run is the run that was not stopped, bit for bit."""

import functools
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from atm.checkpoint import manager, pretrained
from atm.data import cache
from atm.model import config as config_lib
from atm.model import flops, transformer
from atm.parallel import sharding
from atm.train import (
  goodput,
  metric_writer,
  optimizer,
  run_folder,
)
from atm.train import step as step_lib

from conftest import batch
from tiny_runs import (
  EIGHT,
  ONE,
  Stop,
  comparable,
  metrics_at,
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


def test_resuming_within_a_log_interval_keeps_its_sums(train, tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  train(whole, 10, log_every=5)
  with pytest.raises(Stop):  # after the line of step 5, behind save 3
    train(parts, 10, log_every=5, stop_at=5)
  train(parts, 10, log_every=5)
  assert comparable(parts) == comparable(whole)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_and_nothing_is_lost(train, tmp_path, number):
  whole, parts = train.whole(8), tmp_path / 'parts'
  lines = []

  def say(text):
    lines.append(text)
    if text.startswith('step 4/'):
      os.kill(os.getpid(), number)

  with pytest.raises(KeyboardInterrupt):
    train(parts, 8, say=say)
  assert lines[-1].startswith('stopped and saved at step 4')
  run = train(parts, 8)
  assert any(line.startswith('resumed from step 4') for line in run.lines)
  assert comparable(parts) == comparable(whole)
  a, b = parameters(whole, 8), parameters(parts, 8)
  assert all((a[name] == b[name]).all() for name in a)


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


def test_what_a_run_writes(train, tmp_path):
  run = train(tmp_path, 4, config_text='# the config\n')
  rows = [r for r in run.history if 'loss' in r]
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
  first = run.history[0]
  assert first['step'] == 0
  for name in ('loss/denoise', 'loss/clm/te', 'unigram/denoise'):
    assert f'eval/{name}' in first
  assert (tmp_path / 'config.gin').read_text() == '# the config\n'
  assert list((tmp_path / 'tensorboard').iterdir())
  meta = manager.CheckpointManager(str(tmp_path)).meta(4)
  assert len(meta['data'].pop('rows')) == 64
  assert meta['data'] == {
    'mixture': 'udhr', 'seed': 0, 'batch_size': 16, 'step': 4
  }  # fmt: skip
  assert meta['config'] == '# the config\n'


def test_packed_rows_train_on_any_mesh(train, words, tmp_path):
  """Several CLM documents a row: the losses do not depend on the mesh."""
  import atm_tasks

  packs = functools.partial(atm_tasks.configure, paper_packing=False)
  made = tmp_path / 'rows'
  cache.build(
    'udhr', words.path, {'inputs': 32, 'targets': 32}, str(made),
    configure_tasks=packs, say=lambda text: None,
  )  # fmt: skip
  changes = {'configure_tasks': packs, 'cache_dir': str(made)}
  one = train(tmp_path / 'one', 3, **changes)
  eight = train(tmp_path / 'eight', 3, make_mesh=EIGHT, **changes)
  losses = lambda run: [r['loss'] for r in run.history if 'loss' in r]
  assert losses(one) == pytest.approx(losses(eight), abs=1e-5)
  atm_tasks.configure(vocabulary=words.path)


def test_a_profile_of_some_steps(train, tmp_path):
  run = train(tmp_path, 4, profile_steps=(2, 3))
  assert any('profile of steps 2 to 3' in line for line in run.lines)
  found = [path.name for path in (tmp_path / 'profile').rglob('*')]
  assert any(name.endswith('.xplane.pb') for name in found)
  assert any(name.endswith('.trace.json.gz') for name in found)


def test_all_of_the_time_is_of_some_kind(train, tmp_path):
  """Two processes of one run; the second repeats nothing."""
  train(tmp_path, 3)
  run = train(tmp_path, 6)
  first, second = goodput.read_goodput(str(tmp_path))
  assert (first['first'], first['step']) == (0, 3)
  assert (second['first'], second['step']) == (3, 6)
  spent = goodput.sum_by_kind([first, second])
  assert sum(spent.values()) == pytest.approx(second['now'] - first['began'])
  assert min(spent.values()) >= 0 and spent['repeated'] == 0
  for kind in ('step', 'setup', 'compile', 'checkpoint', 'evaluation'):
    assert spent[kind] > 0, kind
  rows = [r for r in run.history if 'loss' in r]
  assert all(0 < row['goodput'] < 1 for row in rows)


def test_keep_drops_old_checkpoints(train, tmp_path):
  train(tmp_path, 8, keep=2, save_every=2)
  assert manager.CheckpointManager(str(tmp_path)).all_steps() == [6, 8]


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
  with pytest.raises(ValueError, match="INIT_FROM = '' is MODEL_DIR"):
    train(run, 5, init_from='')
  monkeypatch.chdir(tmp_path)
  for name in ('vocabulary', 'cache_dir'):
    with pytest.raises(FileNotFoundError):
      train(run, 5, **{name: ''})


def test_a_finished_run_only_reports(train, tmp_path):
  train(tmp_path, 2)
  before = comparable(tmp_path)
  assert train(tmp_path, 2).step == 2
  assert comparable(tmp_path) == before


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


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(seed=5), 'SEED = 5, but this MODEL_DIR was trained with 0'),
    (dict(batch_size=8), 'BATCH_SIZE = 8, but this MODEL_DIR'),
    (dict(d_model=64), 'is of another model.*config.gin'),
  ],
)
def test_resuming_something_else_is_refused(train, tmp_path, changes, message):
  run = shutil.copytree(train.whole(8), tmp_path / 'run')
  if 'd_model' in changes:
    changes = dict(model_config=small_model(**changes))
  with pytest.raises(ValueError, match=message):
    train(run, 9, **changes)


def test_training_goes_on_from_exported_and_imported_weights(train, tmp_path):
  from atm.checkpoint import convert

  config = small_model(
    norm='uncentred', position_offset=2, token_types=1, logits_bias=True
  )
  a, b, folder = (str(tmp_path / name) for name in ('a', 'b', 'folder'))
  before = train(a, 2, model_config=config)
  convert.export_weights(a, folder, say=lambda text: None)
  convert.import_weights(folder, b, ONE, say=lambda text: None)
  with pytest.raises(ValueError, match='has weights to start from: leave out'):
    train(b, 1, model_config=config, vocabulary=None, init_from=a)
  after = train(b, 1, model_config=config, vocabulary=None)
  assert any('starting from the weights in' in line for line in after.lines)
  last, first = before.history[-1], after.history[0]
  assert first['step'] == 0
  for name in ('denoise', 'clm/en'):
    assert first[f'eval/loss/{name}'] == last[f'eval/loss/{name}']
  shutil.rmtree(f'{b}/vocabulary')
  with pytest.raises(ValueError, match='has weights but no vocabulary'):
    train(b, 1, model_config=config, vocabulary=None)
  # And from the folder itself, whose config.json it keeps for the next export.
  c = str(tmp_path / 'c')
  tuned = train(c, 1, model_config=config, vocabulary=None, init_from=folder)
  assert metrics_at(tuned, 0) == metrics_at(before, 2)
  convert.export_weights(c, f'{folder}-2', say=lambda text: None)


def test_a_model_to_train_on(train, tmp_path):
  """Fault seen: the fresh parameters were kept."""
  source = str(tmp_path / 'source')
  before = train(source, 4)
  settings = dict(init_from=source, vocabulary=None)
  whole = train(tmp_path / 'whole', 4, **settings)
  assert f'starting from {source}, trained for 4 steps' in whole.lines
  assert metrics_at(whole, 0) == metrics_at(before, 4)
  assert metrics_at(whole, 4) != metrics_at(whole, 0)
  train(tmp_path / 'parts', 3, **settings)
  found, saved = pretrained.open_pretrained(source), parameters(source, 4)
  sharded = found.read_params(EIGHT(), as_saved=False)
  for path, value in jax.tree_util.tree_flatten_with_path(sharded)[0]:
    assert len(value.sharding.device_set) == 8 and value.dtype == np.float32
    assert (np.asarray(value) == saved[jax.tree_util.keystr(path)]).all()
  shutil.rmtree(source)
  train(tmp_path / 'parts', 4, **settings)
  mine, wanted = (parameters(tmp_path / x, 4) for x in ('parts', 'whole'))
  for name, value in wanted.items():
    assert mine[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(d_ff=1), r"Config.encoder_ff = 32, but 64 in INIT_FROM = '.*': leave "
     'out what binds model.Config.encoder_ff'),
    (dict(vocabulary='other'), 'is not the one that INIT_FROM = .* was tr'),
    (dict(vocabulary=None, lost=1), 'INIT_FROM = .* has no vocabulary: set VO'),
    (dict(init_encoder='x'), "INIT_ENCODER = 'x': expected one of them"),
    (dict(init_from='run'), 'is MODEL_DIR: use another MODEL_DIR'),
    (dict(vocabulary=None, left=1), 'run/vocabulary is not the vocabulary '),
    (dict(init_from='none'), 'no checkpoints/ in'),
  ],
)  # fmt: skip
def test_a_model_to_train_on_must_fit(train, words, tmp_path, changes, message):
  source = tmp_path / 'source'
  shutil.copytree(train.whole(4), source)
  if changes.pop('lost', False):
    shutil.rmtree(source / 'vocabulary')
  if changes.get('init_from') == 'run':
    changes['init_from'] = str(tmp_path / 'run')
  if changes.pop('left', False):  # by a run that died before it saved
    folder = tmp_path / 'run' / 'vocabulary'
    folder.mkdir(parents=True)
    (folder / 'sentencepiece.model').write_bytes(words.model + b'\xa0\x1f\x01')
  if changes.get('vocabulary'):
    changes['vocabulary'] = str(tmp_path / 'other.model')
    other = words.model + b'\xa0\x1f\x01'  # a field that nobody reads
    (tmp_path / 'other.model').write_bytes(other)
  if changes.pop('d_ff', False):
    changes['model_config'] = small_model(encoder_ff=32, remat='full')
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train(tmp_path / 'run', 1, **{'init_from': str(source), **changes})
  assert not (tmp_path / 'run' / 'config.gin').exists()


def test_an_encoder_to_start_from_frozen(train, tmp_path):
  """INIT_ENCODER with FREEZE_ENCODER_STEPS: the encoder stays the source's."""
  a, b = str(tmp_path / 'a'), str(tmp_path / 'b')
  train(a, 2)
  run = train(b, 2, init_encoder=a, freeze_encoder_steps=2, seed=9)
  assert any('rows' in line for line in run.lines)
  first, second = parameters(a, 2), parameters(b, 2)
  for name in first:
    same = (first[name] == second[name]).all()
    assert same == name.startswith(("['encoder']", "['encoder_")), name
  with pytest.raises(FileNotFoundError):
    train(str(tmp_path / 'c'), 1, init_encoder=str(tmp_path / 'none'))
  assert not (tmp_path / 'c' / 'config.gin').exists()


@pytest.mark.parametrize('resumes', [False, True])
def test_what_a_model_says_of_itself_is_bound(train, tmp_path, resumes):
  """Faults seen: a macro of a macro; a damaged step, an older one sound."""
  import gin
  from atm.cli import commands, gin_config

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
        [gin_config.find_file('runs/finetune.gin')], bindings, set()
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


def test_flops_are_those_of_the_steps_matrix_products():
  """The formula against a count over the traced step, backward included."""
  B, S, T = 2, 40, 28
  config = config_lib.Config(
    vocab_size=512, d_model=64, encoder_layers=2, decoder_layers=3,
    encoder_heads=4, decoder_heads=2, encoder_ff=512, decoder_ff=256,
    positions=64, dtype='float32', attention='einsum',  # makes nothing again
  )  # fmt: skip
  net = transformer.AlexaTM(config)
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  state = step_lib.abstract_state(net, tx, ONE(), sharding.Rules())
  b = batch(np.random.default_rng(0), B, S, T)
  traced = jax.make_jaxpr(functools.partial(step_lib.train_step, net, tx))(
    state, b
  )
  counted = flops.jaxpr_flops(traced.jaxpr)
  assert counted == pytest.approx(flops.train_flops(config, B, S, T), rel=1e-9)


def test_questions_are_asked_while_it_trains(train, tmp_path):
  """The curve is that of the parameters, resumed or not, and changes none.

  Faults seen: asked in every evaluation; parameters of the step before.
  """
  import atm_tasks
  from atm.evals import during_training, runner
  from atm.inference import api

  tasks = lambda: atm_tasks.suite(['udhr_next_d*', 'udhr_next_en'])
  make = functools.partial(
    during_training.FewShotEvaluator, make_tasks=tasks, limit=4
  )
  asks = dict(ask_every=8, make_asker=make)
  whole, parts, none = (tmp_path / name for name in ('whole', 'parts', 'none'))
  train(whole, 9, **asks)
  train(parts, 5, **asks)
  train(parts, 9, **asks)
  train(none, 9)
  curve = {
    row['step']: row['few_shot/udhr_next']
    for row in metric_writer.read_metrics(str(whole))
    if 'few_shot/udhr_next' in row
  }
  assert list(curve) == [0, 8, 9]
  without = lambda rows: [
    {k: v for k, v in row.items() if not k.startswith('few_shot/')}
    for row in rows
  ]
  assert without(comparable(whole)) == comparable(none)
  tail = lambda d: [row for row in comparable(d) if row['step'] > 5]
  assert tail(parts) == tail(whole)
  evaluation = runner.SuiteEvaluation(
    str(whole), make_tasks=tasks, suite='s', output=str(tmp_path / 'out'),
    limit=4, say=lambda text: None,
  )  # fmt: skip
  model = api.load(str(whole), mesh=ONE())
  found, _ = evaluation.evaluate_tasks(model, tasks())
  values = [task['scores']['accuracy']['value'] for task in found]
  assert curve[9] == pytest.approx(np.mean(values))
