"""Tasks as a translation model is asked them: by language codes."""

import dataclasses

import pytest

from atm.data.input_format import InputFormat
from atm.evals import model_tasks
from atm.evals.task import MissingData
from atm_tasks.evaluation import registry

from eval_runs import DATA

FORM = InputFormat(
  'nllb', eos_id=2, languages={'deu_Latn': 5, 'eng_Latn': 6, 'ita_Latn': 7},
  source='eng_Latn',
)  # fmt: skip
ALEXATM = InputFormat('alexatm', eos_id=2, bos_id=0, clm_id=3)


def suite(*names):
  return registry.suite(names, data_dir=DATA)


def test_translations_are_asked_by_codes():
  (task,), refused = model_tasks.fit_tasks(suite('flores101_en_de'), FORM)
  assert not refused
  assert task.name == 'flores101_en_de' and task.shots == 0
  assert task.mode is None and task.stop == ()
  assert task.languages == ('eng_Latn', 'deu_Latn')
  assert task.asked == 'by language codes eng_Latn -> deu_Latn'
  (few,) = suite('flores101_en_de')
  assert few.asked == '1-shot, clm mode'
  question, *_ = task.make_questions(None)
  (shown, *_) = few.make_questions(None)
  assert question.id == shown.id and question.truth == shown.truth
  assert question.prompt == shown.shown['sentence'] and not question.pairs
  assert task.answer(' Hallo \n', question) == 'Hallo'


def test_what_cannot_be_asked_is_named():
  tasks = suite('flores101_en_ta', 'xnli_de', 'flores101_it_de')
  fitted, refused = model_tasks.fit_tasks(tasks, FORM)
  assert [t.name for t in fitted] == [t.name for t in tasks]
  assert [*refused] == ['flores101_en_ta', 'xnli_de']
  assert (
    refused['flores101_en_ta'].startswith(
      "target = 'ta': Tamil is no language of this model"
    )
    and 'Known' not in refused['flores101_en_ta']
  )
  assert '3 languages, and follows no prompt' in refused['xnli_de']
  for task in fitted[:2]:
    with pytest.raises(MissingData, match='this model'):
      task.make_questions(None)


def test_inputs_of_tuned_models_are_asked_as_they_are():
  (task,), refused = model_tasks.fit_tasks(suite('udhr_language'), FORM)
  assert not refused and task.languages == ('eng_Latn', None)
  assert task.asked == 'by language codes eng_Latn -> default'


def test_few_shot_models_are_asked_by_shots():
  tasks = suite('flores101_en_ta', 'xnli_de')
  assert model_tasks.fit_tasks(tasks, ALEXATM) == (tasks, {})
  assert model_tasks.fit_tasks(tasks, None) == (tasks, {})
  both = dataclasses.replace(FORM, bos_id=0, clm_id=9)  # trained on with [CLM]
  assert model_tasks.fit_tasks(tasks, both) == (tasks, {})
  plain = InputFormat('plain', eos_id=2)
  fitted, refused = model_tasks.fit_tasks(tasks, plain)
  assert not refused and {t.mode for t in fitted} == {None}
  assert [t.asked for t in fitted] == [
    '1-shot, own mode',
    'zero-shot, own mode',
  ]
