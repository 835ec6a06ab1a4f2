"""Answers on disk: kills, damage, other steps."""

import dataclasses
import json

import pytest

from atm.evals import answers as answers_lib
from atm.evals import predict
from atm.inference import sampling

from eval_runs import go_offline, random_model, run, tasks


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
  yield from go_offline(tmp_path, monkeypatch)


@pytest.fixture(scope='module')
def model(words):
  return random_model(words)


class Stop(Exception):
  """Raised where a run is to be cut off."""


@pytest.mark.parametrize('name', ['xnli_de', 'squadv2'])
def test_what_is_answered_is_not_asked_again(
  model, tmp_path, monkeypatch, name
):
  """Cut off in a task, then between two tasks; a changed model begins anew.

  Faults seen: answers of another step taken; a finished task asked again;
  answers taken that were damaged on disk.
  """
  monkeypatch.setattr(answers_lib, 'BATCHES_PER_CHUNK', 1)
  whole = run(model, tasks(name), tmp_path / 'whole', batch_size=1)
  asked, answer = [], predict.predict

  def counted(model, task, questions, *rest):
    if len(asked) == 1:
      asked.append(None)
      raise Stop
    asked.extend(question.id for question in questions)
    return answer(model, task, questions, *rest)

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
  completed = parts / 'predictions' / answers_lib.COMPLETED_FILE
  facts = json.loads(completed.read_text())[name]
  completed.write_text(json.dumps({name: facts['settings']}))  # as of before
  assert run(model, tasks(name), parts) == whole and len(asked) == count
  completed.write_text(json.dumps({name: facts}))
  answers = parts / 'predictions' / f'{name}.jsonl'
  answers.write_bytes(answers.read_bytes().replace(b'e', b'g', 1))
  assert run(model, tasks(name), parts) == whole and len(asked) == 2 * count
  run(dataclasses.replace(model, step=8), tasks(name), parts)
  assert len(asked) == 3 * count


def test_generated_answers_are_those_of_the_settings(tmp_path):
  """A choice does not depend on them, and earlier answers have none."""
  open_folder = lambda **settings: answers_lib.AnswerFolder(
    str(tmp_path), '/run', None, 'refuse', False, 8, print,
    sampling.Config(**settings),
  )  # fmt: skip
  for name, generated in (('squadv2', True), ('xnli_de', False)):
    (task,) = tasks(name)
    questions = task.make_questions(None)[:2]
    plain = open_folder().describe(task, questions, 1)[1]
    assert 'generation' not in plain
    folder = open_folder(beams=5, no_repeat_ngram_size=3)
    other = folder.describe(task, questions, 1)[1]
    own = {'beams': 5, 'no_repeat_ngram_size': 3}
    assert other == plain | ({'generation': own} if generated else {})
