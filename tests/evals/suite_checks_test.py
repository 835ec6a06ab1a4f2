"""What is told before a suite's model is read."""

import pytest

from atm.evals import suite_checks
from atm.evals.suite_checks import TaskSurvey
from atm.evals.task import Task
from atm.inference.framing import Framing
from atm.model.config import ModelConfig

from eval_runs import tasks


def survey(name: str, cuts: list[int]) -> TaskSurvey:
  task = Task(name, 's', 'en', (), make_questions=list)
  return TaskSurvey(task, [None] * len(cuts), cuts)


def test_missing_data_are_named_all_at_once():
  missing = {'a': 'no a.tsv\nget it there', 'b': 'no b.tsv'}
  with pytest.raises(ValueError) as e:
    suite_checks.check_complete(missing, 3, allow=False)
  assert '2 of 3 tasks have no data: a, b. no a.tsv. CHECK' in str(e.value)
  assert 'ALLOW_MISSING=True' in str(e.value)
  suite_checks.check_complete(missing, 3, allow=True)
  suite_checks.check_complete({}, 3, allow=False)
  with pytest.raises(ValueError, match='2 of 2 tasks have no data') as e:
    suite_checks.check_complete(missing, 2, allow=True)
  assert 'ALLOW_MISSING' not in str(e.value)


def test_questions_without_room_are_counted_by_task():
  some = [survey('a', [0, 3, 0, 0]), survey('b', [0]), survey('c', [5])]
  with pytest.raises(ValueError) as e:
    suite_checks.check_room(some, 48, 'refuse')
  assert '2 of 6 questions have more tokens than Config.positions = 48' in (
    str(e.value)
  )
  assert "a (1 of 4), c (1 of 1). TRUNCATE='start'" in str(e.value)
  line = suite_checks.check_room(some, 48, 'end')
  assert 'cut at the end' in line and 'warning' not in line
  line = suite_checks.check_room(some[2:], 48, 'start')
  assert line.startswith('warning: 1 of 1') and 'say little' in line
  assert suite_checks.check_room(some[1:2], 48, 'refuse') == ''


def test_a_survey_counts_what_a_run_would_cut(words):
  for positions, every in ((16, True), (1024, False)):
    framing = Framing(
      ModelConfig(vocab_size=words.size, positions=positions), words
    )
    for task in tasks('xnli_de', 'squadv2'):
      found = suite_checks.survey_task(task, framing, 2, 0)
      assert len(found.questions) == len(found.cuts) == 2
      assert found.long == 2 * every and not found.missing
  (task,) = tasks('flores101_en_fr')
  found = suite_checks.survey_task(task, framing, 2, 0)
  assert 'fra.devtest' in found.missing and not found.questions
