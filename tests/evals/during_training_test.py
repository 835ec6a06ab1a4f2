"""Few-shot scores while a model trains, of answers that are given here."""

import dataclasses

import pytest

from atm.evals import during_training, predict, text_metrics
from atm.evals.task import MissingData, Question, Task
from atm.parallel.sharding import Rules


def task(name: str, set: str, truths, data: bool = True) -> Task:
  def make_questions(tokenizer):
    if not data:
      raise MissingData('no file')
    return [Question(str(i), truth) for i, truth in enumerate(truths)]

  return Task(name, set, 'en', ('accuracy',), make_questions)


def evaluator(tasks, log=lambda text: None, **options):
  return during_training.FewShotEvaluator(
    None, None, None, Rules(), log, lambda: tasks, **options
  )


def test_means_by_set_and_the_models_parameters(monkeypatch):
  """Faults seen: a mean over questions, not tasks; the first parameters."""
  given = []

  def always_1(model, task, questions, batch_size):
    given.append((model.params, model.step, batch_size))
    return [{'answer': 1} for _ in questions], 0

  monkeypatch.setattr(predict, 'predict', always_1)
  few_shot = evaluator(
    [task('a', 's', [1, 1]), task('b', 's', [0, 1, 0, 0]), task('c', 't', [0])],
    batch_size=7,
  )
  assert few_shot({'w': 1}, 5) == {
    'few_shot/s': 62.5, 'few_shot/t': 0, 'few_shot/s/a': 100,
    'few_shot/s/b': 25, 'few_shot/t/c': 0,
  }  # fmt: skip
  assert given == [({'w': 1}, 5, 7)] * 3


def test_tasks_without_data_are_left_out():
  said = []
  tasks = [task('a', 's', [1]), task('b', 's', [1], data=False)]
  few_shot = evaluator(tasks, said.append)
  assert [name for (name, *_) in few_shot.requests] == tasks[:1]
  assert said == ['b is not asked: no file']
  with pytest.raises(ValueError, match='none of TASKS has its data'):
    evaluator(tasks[1:])


def test_a_sample_is_asked():
  few_shot = evaluator([task('a', 's', range(50))], limit=4, seed=1)
  ((_, questions, _),) = few_shot.requests
  assert len(questions) == 4


def test_what_asking_needs_is_checked_before_a_run_works(monkeypatch):
  """Fault seen: a missing library told after rows were built, 127 s."""
  absent = task('b', 's', [1], data=False)
  during_training.check_tasks([task('a', 's', [1]), absent])
  with pytest.raises(ValueError, match='none of TASKS has its data: no file'):
    during_training.check_tasks([absent])

  def no_library(name):
    raise ModuleNotFoundError('scoring texts needs sacrebleu: pip install x')

  monkeypatch.setattr(text_metrics, 'import_library', no_library)
  translation = dataclasses.replace(task('a', 's', ['b']), metrics=('chrf',))
  with pytest.raises(ValueError, match='needs sacrebleu: pip install'):
    during_training.check_tasks([translation])
