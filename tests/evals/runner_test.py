"""The command `atm eval`: results, samples, data that is missing, and kills.

Tasks are those of the small files in testdata/evaluation; the model is random.
"""

import dataclasses
import json
import os

import numpy as np
import pytest

import gin
from atm.checkpoint import manager
from atm.cli import main
from atm.evals import metrics
from atm.evals import results as results_lib
from atm.train.step import State

from eval_runs import DATA, go_offline, random_model, rows
from goldens import HERE


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
  yield from go_offline(tmp_path, monkeypatch)


@pytest.fixture(scope='module')
def model(words):
  return random_model(words)


@pytest.fixture(scope='module')
def model_dir(model, tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp('run'))
  checkpoints = manager.CheckpointManager(folder)
  state = State(np.zeros((), np.int32), model.params, {'x': np.zeros(1)})
  meta = {'model': dataclasses.asdict(model.config)}
  checkpoints.save(7, state.to_trees(), meta)
  checkpoints.close()
  os.symlink(os.path.dirname(model.vocabulary.path), f'{folder}/vocabulary')
  return folder


def command(*arguments) -> int:
  with gin.unlock_config():
    status = main.main(list(arguments))
  gin.clear_config()
  return status


def bound(**values) -> list[str]:
  return [f'--gin.{name}={value!r}' for name, value in values.items()]


def test_a_suite_from_the_command_line(model, model_dir, tmp_path, capsys):
  """Every set that is there is asked, what is not is named with its place."""
  names = ('superglue_*', 'squadv2', 'flores101_en_*', 'xnli_*')
  output = str(tmp_path / 'out')
  arguments = [
    'eval', '--gin_file=suites/xnli.gin',
    *bound(TASKS=names, DATA_DIR=DATA, MODEL_DIR=model_dir, OUTPUT=output,
           LIMIT=2),
  ]  # fmt: skip
  assert command(*arguments) == 2
  said = capsys.readouterr().err
  assert 'tasks have no data: flores101_en_' in said
  assert 'CHECK_DATA=True says where' in said and not os.path.exists(output)
  arguments += bound(ALLOW_MISSING=True)
  assert command(*arguments) == 0
  said = capsys.readouterr().out
  assert 'flores101_en_fr' in said and 'left out: ' in said
  results = results_lib.read_results(output)
  assert {t['name'] for t in results['tasks']} >= {
    'superglue_boolq', 'superglue_record', 'squadv2', 'flores101_en_de',
    'xnli_hi',
  }  # fmt: skip
  absent = {m['name']: m for m in results['missing']}
  assert 'fra.devtest' in absent['flores101_en_fr']['why']
  assert 'http' in absent['flores101_en_fr']['where']
  (german,) = [t for t in results['tasks'] if t['name'] == 'flores101_en_de']
  assert list(german['scores']) == ['spbleu_own', 'chrf']  # a stand-in, named
  assert 'put it at' in german['notes'][0]
  assert results['step'] == 7 and 'suite.evaluate' in results['config']
  for task in results['tasks']:
    for name, figure in task['scores'].items():
      if figure['value'] is not None:
        metric, made = metrics.get_metric(name), task['statistics'][name]
        assert metric.total(np.sum(made, 0)) == pytest.approx(figure['value'])
        assert figure['low'] <= figure['value'] <= figure['high']
  with open(f'{output}/report.html') as f:
    page = f.read()
  assert 'superglue' in page and 'flores101_en_fr' in page
  assert command(*arguments) == 0
  assert 'answered before' in capsys.readouterr().out
  # What a dry run prints is what was sent.
  assert command(*arguments, *bound(DRY_RUN=True)) == 0
  printed = map(json.loads, capsys.readouterr().out.splitlines())
  sent = {(row['task'], row.get('id')): row for row in printed}
  for task in results['tasks']:
    for row in rows(output, task['name']):
      found = sent[task['name'], row['id']]
      assert found.get('prompt') == row['prompt']
      assert found.get('pairs', []) == row['pairs']


@pytest.mark.parametrize('changes, message', [
  (dict(TASKS=('xnli_ed',)), "TASKS = 'xnli_ed'. Did you mean 'xnli_"),
  (dict(MODEL_DIR=None), 'MODEL_DIR is required'),
  (dict(MODE='cml'), "Did you mean 'clm'?"),
  (dict(LIMIT=0), 'LIMIT = 0: expected a whole number of at least 1'),
])  # fmt: skip
def test_a_mistake_is_one_line(model_dir, tmp_path, capsys, changes, message):
  given = dict(DATA_DIR=DATA, MODEL_DIR=model_dir, OUTPUT=str(tmp_path / 'x'))
  status = command(
    'eval', '--gin_file=suites/xnli.gin', *bound(**{**given, **changes})
  )
  assert status == 2
  said = capsys.readouterr().err
  assert message in said and 'Traceback' not in said


def test_data_is_checked_without_a_model(capsys):
  arguments = ['eval', '--gin_file=suites/pawsx.gin',
               *bound(DATA_DIR=DATA, CHECK_DATA=True)]  # fmt: skip
  assert command(*arguments) == 2
  said = capsys.readouterr()
  assert 'x-final/de/test_2k.tsv' in said.out and 'missing' in said.out
  assert 'files are missing or broken, see the table above' in said.err
  assert command(*arguments, *bound(ALLOW_MISSING=True)) == 0
  assert command(*arguments[:-1], *bound(DRY_RUN=True)) == 2
  assert 'tasks have no data: pawsx_' in capsys.readouterr().err


def test_results_of_other_settings_are_not_replaced(
  model_dir, tmp_path, capsys
):
  """Refused before parameters are read; the same settings go on."""
  output = str(tmp_path / 'out')
  given = dict(
    TASKS=('xnli_de',), DATA_DIR=DATA, MODEL_DIR=model_dir, OUTPUT=output
  )
  arguments = ['eval', '--gin_file=suites/xnli.gin', *bound(**given)]
  assert command(*arguments) == 0 and command(*arguments) == 0
  capsys.readouterr()
  for changes, message in (
    (dict(SEED=1), '(SEED = 0)'),
    (dict(TASKS=('xnli_hi',)), '(the task xnli_de)'),
    (dict(NORMALIZE='sum'), 'of another step or other settings'),
  ):
    assert command(*arguments, *bound(**changes)) == 2
    said = capsys.readouterr().err
    assert message in said and 'OVERWRITE=True replaces it' in said
  changes = bound(NORMALIZE='sum', OVERWRITE=True)
  assert command(*arguments, *changes) == 0
  assert results_lib.read_results(output)['tasks'][0]['normalize'] == 'sum'


def test_a_translation_model_is_asked_by_language_codes(tmp_path, capsys):
  """And tasks of languages that it lacks are named before it is read."""
  folder, output = f'{HERE}/public/m2m_100', str(tmp_path / 'out')
  pairs = ('flores101_en_de', 'flores101_en_te')
  settings = bound(
    MODEL_DIR=folder, DATA_DIR=DATA, OUTPUT=output, TASKS=pairs, LIMIT=1
  )
  ask = lambda *rest: command(
    'eval', '--gin_file=suites/flores101.gin', *settings, *bound(**dict(rest))
  )
  assert ask() == 2
  error = capsys.readouterr().err
  assert (
    '1 of 2 tasks cannot be asked of this model: flores101_en_te. '
    "flores101_en_te: target = 'te': Telugu is no language of this model. "
    'ALLOW_MISSING=True leaves such tasks out'
  ) in error
  assert not os.path.exists(output)
  allow = ('ALLOW_MISSING', True)
  assert ask(allow, ('DRY_RUN', True)) == 0
  asked, missing = map(json.loads, capsys.readouterr().out.splitlines())
  assert (asked['source'], asked['target']) == ('en', 'de')
  assert 'Translation in' not in asked['prompt']
  assert 'Telugu' in missing['missing']
  assert ask(allow) == 0
  assert 'by language codes en -> de' in capsys.readouterr().out
  results = results_lib.read_results(output)
  (task,) = results['tasks']
  assert task['asked'] == 'by language codes en -> de'
  assert task['shots'] == 0 and task['mode'] == 'own'
  assert 'Telugu' in results['missing'][0]['why']
  with open(f'{output}/report.html', encoding='utf-8') as f:
    assert 'Asked by language codes en -&gt; de' in f.read()
