"""A public model is tuned on pairs of several directions, end to end."""

import dataclasses
import functools
import json
import os

import numpy as np
import pytest

import atm_tasks
from atm.checkpoint import pretrained
from atm.evals import predict
from atm.evals.model_tasks import fit_tasks
from atm.inference import api
from atm.pages import train_summary
from atm.train import metric_writer, optimizer, trainer

from tiny_runs import Stop, comparable, parameters, small_config

pytestmark = pytest.mark.processes

NLLB = os.path.join(os.path.dirname(__file__), '../golden/public/nllb')
WORDS = ('free', 'equal', 'born', 'alive')
STEPS = 12


@pytest.fixture(scope='module')
def pairs(tmp_path_factory) -> str:
  """Pairs of two directions, one of which says its languages."""
  path = tmp_path_factory.mktemp('pairs') / 'pairs.jsonl'
  german = {'source_language': 'de', 'target_language': 'eng'}
  rows = [
    {'input': f'All are {a} and {b}.', 'target': f'Alle {b} {a}.'}
    for a in WORDS
    for b in WORDS
  ] * 3 + [
    {'input': f'Alle sind {a}.', 'target': f'All {a}.', **german} for a in WORDS
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def tune(folder, pairs: str, stop_at=None, temperature=3.0) -> list[str]:
  """Tunes the model in a folder; returns what the run said."""
  lines = []

  def say(text):
    lines.append(text)
    if stop_at is not None and text.startswith(f'step {stop_at}/'):
      raise Stop

  configure = functools.partial(
    atm_tasks.configure, pairs=pairs, pairs_temperature=temperature,
    source_language='English', target_language='ta',
  )  # fmt: skip
  config = small_config(
    folder, STEPS, mixture='pairs', init_from=NLLB, batch_size=8, lengths=None,
    model_config=pretrained.open_pretrained(NLLB).config, save_every=5,
    eval_every=STEPS, configure_tasks=configure, say=say,
    optimizer_config=optimizer.OptimizerConfig(
      learning_rate=1e-2, decay_steps=100
    ),
  )  # fmt: skip
  trainer.train(config)
  return lines


@pytest.fixture(scope='module')
def tuned(tmp_path_factory, pairs):
  """(MODEL_DIR of a run that nothing happened to, what it said)."""
  folder = tmp_path_factory.mktemp('tuned') / 'run'
  return folder, tune(folder, pairs)


def test_the_loss_of_each_direction_falls(tuned):
  folder, said = tuned
  rows = metric_writer.read_metrics(str(folder))
  losses = [row['loss'] for row in rows if 'loss' in row]
  assert losses[-1] < losses[0] - 1
  assert [x for x in said if x.startswith('pairs ')] == [
    'pairs deu_Latn-eng_Latn: 4 to train on, 31.35% of the pairs that are read',
    'pairs eng_Latn-tam_Taml: 42 to train on, 68.65% of the pairs that are '
    'read',
  ]
  held = [row for row in rows if 'eval/loss/pair' in row]
  # Of four pairs of the rare direction none is held out.
  for name in ('eval/loss/pair', 'eval/loss/pair/eng_Latn-tam_Taml'):
    assert held[-1][name] < held[0][name] - 1


def test_a_stopped_run_goes_on_as_it_was(tuned, pairs, tmp_path):
  """Directions are drawn by the step alone."""
  with pytest.raises(Stop):
    tune(tmp_path / 'run', pairs, stop_at=7)
  with pytest.raises(ValueError, match='use the same PAIRS_TEMPERATURE'):
    tune(tmp_path / 'run', pairs, temperature=1.0)
  said = tune(tmp_path / 'run', pairs)
  assert any(line.startswith('resumed from step 5') for line in said)
  whole, _ = tuned
  assert comparable(tmp_path / 'run') == comparable(whole)
  a, b = parameters(whole, STEPS), parameters(tmp_path / 'run', STEPS)
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_the_tuned_model_has_the_tokenizer_of_the_first(tuned):
  folder, _ = tuned
  before, after = map(pretrained.open_pretrained, (NLLB, str(folder)))
  assert after.vocabulary.sha256 == before.vocabulary.sha256
  assert after.vocabulary.input_format == before.vocabulary.input_format
  assert after.config == before.config


def test_the_tuned_model_answers_pairs_by_their_languages(tuned, tmp_path):
  """Of lines that say none the settings are told; what a user asks for is."""
  rows = [
    {'input': 'All are free and born.', 'target': 'Alle born free.'},
    {'input': 'Alle sind frei.', 'target': 'All free.',
     'source_language': 'German', 'target_language': 'en'},
  ]  # fmt: skip
  path = tmp_path / 'pairs' / 'validation.jsonl'
  path.parent.mkdir()
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  folder, _ = tuned
  model = api.load(str(folder))
  task = dataclasses.replace(
    *atm_tasks.suite(
      'pairs', str(tmp_path), source_language='en', target_language='tam'
    ),
    max_tokens=8,
  )
  (task,), refused = fit_tasks([task], model.vocabulary.input_format)
  questions = task.make_questions(model.vocabulary)
  assert [q.languages for q in questions] == [('en', 'tam'), ('German', 'en')]
  answers, _ = predict.predict(model, task, questions, 2)
  wanted = model.generate(
    [q.prompt for q in questions], source=['eng_Latn', 'deu_Latn'],
    target=['tam_Taml', 'eng_Latn'], max_tokens=8, beams=1,
  )  # fmt: skip
  assert [row['output'] for row in answers] == wanted and not refused
  # What a decoder was told to write first is told a report's samples, too.
  ids = model.target_ids(['Alle'], target='ta')[0]
  find = train_summary.find_target_language
  assert find(model.vocabulary, ids) == 'tam_Taml'
