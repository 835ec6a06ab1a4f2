"""Suites: the same answers in any batch, order and mesh, and after a kill.

Tasks are those of the small files in testdata/evaluation; the model is random.
"""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from small_models import init

import gin
from atm.checkpoint import manager
from atm.cli import main
from atm.evals import metrics, predict, runner, text_metrics
from atm.evals import results as results_lib
from atm.evals.task import Question
from atm.inference import api, prompts
from atm.model import parameters
from atm.model.config import Config
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.train.step import State

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(HERE, 'testdata', 'evaluation')
CHOICES = ('superglue_*', 'xnli_*', 'xcopa_*', 'pawsx_*', 'xwinograd_*')
WRITTEN = ('squadv2', 'flores101_en_de', 'webnlg')
quiet = lambda text: None


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
  """spBLEU's model is out of reach, whatever this machine has."""

  def unreachable(*_):
    raise OSError('no network')

  spm = 'sacrebleu.tokenizers.tokenizer_spm'
  monkeypatch.setattr(f'{spm}.SACREBLEU_DIR', str(tmp_path / 'sacrebleu'))
  monkeypatch.setattr(f'{spm}.download_file', unreachable)
  text_metrics._spbleu.cache_clear()
  yield
  text_metrics._spbleu.cache_clear()


@pytest.fixture(scope='module')
def model(words) -> api.Model:
  config = Config(
    vocab_size=words.size, d_model=32, encoder_layers=1, decoder_layers=2,
    encoder_heads=4, decoder_heads=4, encoder_ff=64, decoder_ff=64,
    positions=256, dtype='float32', init_std=0.3,
  )  # fmt: skip
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return api.Model(config, init(config), words, mesh, Rules(), 7)


def tasks(*names, **options):
  import atm_tasks

  return atm_tasks.suite(names, DATA, **options)


def run(model, some, folder, **changes):
  evaluation = runner.SuiteEvaluation(
    'model', make_tasks=list, suite='s', output=str(folder), say=quiet,
    **{'batch_size': 8, **changes},
  )  # fmt: skip
  found, missing = evaluation.evaluate_tasks(model, some)
  assert not missing
  return found


def rows(folder, name: str) -> list[dict]:
  with open(f'{folder}/predictions/{name}.jsonl') as f:
    return list(map(json.loads, f))


# --- Choices


@pytest.mark.parametrize('mode', prompts.MODES)
def test_the_likeliest_choice_by_logits_alone(model, tmp_path, mode):
  """Sums over Model.logits, a pair at a time. Faults seen: positions that go
  on from choice to choice; a choice that sees the one before it; the mean's
  argmin; an end token scored."""
  some = tasks('xnli_de', 'superglue_copa', 'xwinograd_*', mode=mode)
  run(model, some, tmp_path)
  words, P = model.vocabulary, model.config.positions
  pad = lambda ids: [*ids, *[model.config.pad_id] * (P - len(ids))]
  for task in some:
    for row in rows(tmp_path, task.name):
      means = []
      for (source, target), total in zip(
        row['pairs'], row['log_probabilities'], strict=True
      ):
        ids, source = words.encode(target), model.encode(source, mode)
        decoder = pad([model.config.start_id, *ids[:-1]])
        mask = np.arange(P) < len(source)
        logits = model.logits([pad(source)], [decoder], mask[None])[0]
        logits = logits[: len(ids)].astype(np.float64)
        logs = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
        mine = logs[np.arange(len(ids)), ids]
        np.testing.assert_allclose(total, mine.sum(), rtol=1e-5)
        means.append(mine.mean())
      # Texts that the vocabulary cannot tell apart are alike.
      alike = np.isclose(means, max(means), rtol=predict.TIE_TOLERANCE, atol=0)
      assert row['answer'] == np.argmax(alike)


def test_the_harness_sums_alike(model, tmp_path):
  """lm-evaluation-harness's own adapter, on the pairs of a suite."""
  from lm_eval.api.instance import Instance

  from atm.lm_eval import AtmLM

  (task,) = tasks('xnli_en')
  run(model, [task], tmp_path)
  (row, *_) = rows(tmp_path, 'xnli_en')
  asked = [
    Instance('loglikelihood', {}, (source, f' {target}'), i)
    for i, (source, target) in enumerate(row['pairs'])
  ]
  theirs = [total for total, _ in AtmLM(model).loglikelihood(asked, True)]
  np.testing.assert_allclose(theirs, row['log_probabilities'], rtol=1e-5)
  (summed,) = run(model, tasks('xnli_en', normalize='sum'), tmp_path / 'sum')
  assert summed['predictions'][0]['answer'] == np.argmax(theirs)


def test_long_texts_lose_their_beginning(model):
  words, P = model.vocabulary, model.config.positions
  long = 'All human beings are born free. ' * 60
  ids, cut = predict.encode_prompt(model, long + 'And so', 'clm')
  assert cut and len(ids) == P and ids[1] == words.clm_id
  assert words.decode(ids[2:-1]).endswith('free. And so')
  kept, cut = predict.encode_prompt(model, 'And so' + long, 'clm', 'beginning')
  assert cut and len(kept) == len(ids)
  assert kept[:4] == model.encode('And so', 'clm')[:4]
  assert predict.encode_prompt(model, 'And so', 'clm') == (
    model.encode('And so'),
    False,
  )
  texts = long + 'And so', long + 'And so No'
  pair = predict.encode_pair(model, texts, 'denoise')
  assert pair.cut and len(pair.source) <= P and len(pair.target) <= P
  ours, theirs = words.decode(pair.source[1:-1]), words.decode(pair.target)
  assert theirs.startswith(ours[:100])  # both begin at the same place
  assert theirs.endswith('And so No')
  short = predict.encode_pair(model, ('a', 'b'), 'denoise')
  assert not short.cut and short.target == words.encode('b')


# --- The same answers


def test_neither_batch_nor_order_nor_mesh_changes_an_answer(model, tmp_path):
  """Faults seen: answers in the order of lengths."""
  names = ('superglue_*', 'xnli_de', 'squadv2', 'flores101_en_de')
  first = run(model, tasks(*names), tmp_path / 'a')
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  shapes = parameters.abstract_params(AlexaTM(model.config), mesh, Rules())
  placed = jax.tree.map(
    lambda x, to: jax.device_put(x, to.sharding), model.params, shapes
  )
  spread = dataclasses.replace(model, mesh=mesh, params=placed)
  backwards = [
    dataclasses.replace(
      task, make_questions=lambda v, make=task.make_questions: make(v)[::-1]
    )
    for task in tasks(*names)
  ]
  for changed, some, size in (
    (model, tasks(*names), 1),
    (model, backwards, 3),
    (spread, tasks(*names), 8),
  ):
    folder = tmp_path / f'{size}'
    made = run(changed, some, folder, batch_size=size)
    for a, b in zip(first, made, strict=True):
      answers = [
        {p['id']: p['answer'] for p in x['predictions']} for x in (a, b)
      ]
      assert answers[0] == answers[1]
      for name, figure in a['scores'].items():
        assert b['scores'][name]['value'] == pytest.approx(figure['value'])


class Stop(Exception):
  """Raised where a run is to be cut off."""


@pytest.mark.parametrize('name', ['xnli_de', 'squadv2'])
def test_what_is_answered_is_not_asked_again(
  model, tmp_path, monkeypatch, name
):
  """Cut off in a task, then between two tasks; a changed model begins anew.

  Faults seen: answers of another step taken; a finished task asked again.
  """
  monkeypatch.setattr(runner, 'BATCHES_PER_CHUNK', 1)
  whole = run(model, tasks(name), tmp_path / 'whole', batch_size=1)
  asked, answer = [], predict.predict

  def counted(model, task, questions, size):
    if len(asked) == 1:
      asked.append(None)
      raise Stop
    asked.extend(question.id for question in questions)
    return answer(model, task, questions, size)

  monkeypatch.setattr(predict, 'predict', counted)
  parts = tmp_path / 'parts'
  with pytest.raises(Stop):
    run(model, tasks(name), parts, batch_size=1)
  made = run(model, tasks(name), parts, batch_size=1)
  asked.remove(None)
  assert sorted(asked) == sorted(x['id'] for x in whole[0]['predictions'])
  assert made == whole
  count = len(asked)
  assert run(model, tasks(name), parts) == whole and len(asked) == count
  run(dataclasses.replace(model, step=8), tasks(name), parts)
  assert len(asked) == 2 * count


def test_a_sample_keeps_groups_whole_and_order():
  asked = [Question(str(i), 0, group=f'g{i // 3}') for i in range(30)]
  made = predict.sample_questions(asked, 4, 1)
  assert len(made) == 12 and made == predict.sample_questions(asked, 4, 1)
  assert [int(q.id) for q in made] == sorted(int(q.id) for q in made)
  assert made != predict.sample_questions(asked, 4, 2)
  assert predict.sample_questions(asked, 10, 0) == asked
  with pytest.raises(
    ValueError, match='LIMIT = 0: expected a whole number of at least 1'
  ):
    predict.sample_questions(asked, 0, 0)


# --- The command


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
  assert command(*arguments[:-2], *bound(LIMIT=2, DRY_RUN=True)) == 0
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
  assert command(*arguments) == 0
  said = capsys.readouterr().out
  assert 'x-final/de/test_2k.tsv' in said and 'missing' in said
