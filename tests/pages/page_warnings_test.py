"""What pages warn of, and that they say nothing where there is nothing."""

import pytest

from atm.pages import page_warnings

ROWS = [
  {'step': 0, 'eval/loss/clm': 8.0},
  {'step': 10, 'loss': 5.0, 'skipped': 0.0, 'eval/loss/clm': 5.0},
  {'step': 20, 'loss': 4.0, 'skipped': 0.0, 'eval/loss/clm': 4.0},
]
LOSSES = {'clm': {'first': 8.0, 'last': 4.0, 'unigram': 6.0}}


def test_a_finished_run_that_learned_has_no_warnings():
  assert page_warnings.training_warnings(ROWS, LOSSES, 20) == []
  assert page_warnings.training_warnings(ROWS, LOSSES, None) == []


@pytest.mark.parametrize(
  'rows, losses, steps, text',
  [
    (ROWS, LOSSES, 1400, 'The run is at step 20 of 1,400'),
    (ROWS, {}, 20, 'No held-out loss'),
    ([*ROWS[:2], ROWS[2] | {'loss': float('nan')}], LOSSES, 20, 'not finite'),
    ([*ROWS[:2], ROWS[2] | {'skipped': 3.0}], LOSSES, 20, '3 updates were'),
    (ROWS, {'clm': LOSSES['clm'] | {'unigram': 4.0}}, 20, 'clm: the held-out '
     'loss of 4.000 is not below the 4.000 of a unigram model'),
    ([*ROWS, {'step': 30, 'loss': 1.0, 'eval/loss/clm': 4.5}],
     {'clm': LOSSES['clm'] | {'last': 4.5}}, 30, 'lowest at step 20 with'),
  ],
)  # fmt: skip
def test_a_run_warns(rows, losses, steps, text):
  (warning,) = page_warnings.training_warnings(rows, losses, steps)
  assert text in warning


def task(**changes):
  score = {'value': 50.0, 'low': 40.0, 'high': 65.0}
  return {
    'name': 'flores101_ar_en', 'set': 'flores101', 'questions': 200,
    'of': 200, 'scores': {'chrf': score}, **changes,
  }  # fmt: skip


MISSING = {'name': 'pawsx_de', 'why': '', 'where': ''}


@pytest.mark.parametrize(
  'tasks, missing, text',
  [
    ([task()], [MISSING], 'Incomplete: 1 of 2 tasks were not evaluated, as '
     'data is missing: pawsx_de.'),
    ([], [MISSING], 'Incomplete: 1 of 1 tasks'),
    ([], [], 'No task was evaluated'),
    ([task(cut=200), task(cut=200)], [], 'flores101: all 400 prompts are '
     'longer than the model reads'),
    ([task(cut=3), task()], [], 'flores101: 3 of 400 prompts are longer than '
     'the model reads and were cut at the start.'),
    ([task(cut=3, truncate='end')], [], 'were cut at the end.'),
    ([task(questions=12)], [], 'Few questions: 1 of 1 tasks have fewer than '
     '100; their 95% intervals reach ±12.5 points.'),
    ([task(references={'unknown': 50})], [], '50 of 200 references have '
     'characters that the vocabulary lacks'),
  ],
)  # fmt: skip
def test_an_evaluation_warns(tasks, missing, text):
  (warning,) = page_warnings.eval_warnings({'tasks': tasks, 'missing': missing})
  assert text in warning


def test_a_whole_evaluation_has_no_warnings():
  tasks = [task(), task(references={'unknown': 3}, cut=0)]
  assert page_warnings.eval_warnings({'tasks': tasks, 'missing': []}) == []


def test_a_comparison_names_the_runs_it_warns_of():
  whole = {'tasks': [task()], 'missing': []}
  cut = {'tasks': [task(cut=1)], 'missing': []}
  warn = lambda runs: page_warnings.comparison_warnings(runs, ['a', 'b'], [])
  assert warn([whole, whole]) == []
  assert warn([whole, cut])[0].startswith('b: flores101: 1 of 200')
  assert warn([cut, cut])[0].startswith('All runs: flores101')
