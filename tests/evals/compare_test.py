"""Evaluations beside each other, of synthetic results and of single tasks.

Faults seen: other truths taken as the same question; rows of one run in the
order of another; p without Holm's correction; questions left out and not said;
groups known by their first question alone; as many draws for any number of
differences.
"""

import numpy as np
import pytest

from atm.evals import compare
from atm.evals import results as results_lib

from synthetic import FEW, judged, synthetic


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return synthetic(tmp_path_factory.mktemp('a') / 'runs', n=12, languages=FEW)


@pytest.fixture(scope='module')
def results(folder):
  return results_lib.read_results(folder)


def test_a_run_against_itself_differs_in_nothing(results):
  made, notes = compare.compare_runs([results, results], ['a', 'b'])
  assert len(made) == len(results['tasks']) and not notes
  for one in made:
    (difference,) = one.differences
    same = difference.value == 0 == difference.low == difference.high
    assert same and difference.p == difference.adjusted == 1
    assert one.values[0] == pytest.approx(
      one.task['scores'][one.metric]['value']
    )


def task_with(hits, ids=None, prompts='p', truths=None, **others):
  """A task of accuracy, and a results.json of it alone."""
  ids = ids or [str(i) for i in range(len(hits))]
  truths = truths or [1] * len(hits)
  lines = [
    {'id': i, 'prompt_hash': f'{prompts}{i}', 'answer': int(h), 'truth': t,
     'group': ''} for i, h, t in zip(ids, hits, truths)
  ]  # fmt: skip
  entry = judged('xnli_de', lines, ['accuracy'], set='xnli', language='de',
                 kind='score') | others  # fmt: skip
  return {'tasks': [entry], 'versions': {}, 'settings': {}}


def test_only_common_questions_count_whatever_their_order():
  a = task_with([1, 1, 0, 0, 1], ['a', 'b', 'c', 'd', 'e'])
  b = task_with([0, 1, 1, 0], ['d', 'c', 'a', 'x'])
  (one,), notes = compare.compare_runs([a, b], ['A', 'B'])
  assert one.questions == 3
  # a, c and d: 1, 0, 0 against 1, 1, 0.
  np.testing.assert_allclose(one.values, [100 / 3, 200 / 3])
  assert notes == [
    'xnli_de: 2 questions of A are left out',
    'xnli_de: 1 questions of B are left out',
  ]


def test_other_truths_are_other_questions_and_other_prompts_are_said():
  a = task_with([1, 0, 1], prompts='p', shots=0)
  b = task_with([1, 1, 1], prompts='q', truths=[1, 0, 1], shots=1)
  (one,), notes = compare.compare_runs([a, b], ['A', 'B'])
  assert one.questions == 2
  assert 'xnli_de: shots: 0 in A, 1 in B' in notes
  assert 'xnli_de: B has other prompts than A' in notes
  b['tasks'][0]['name'] = 'xnli_fr'
  made, notes = compare.compare_runs([a, b], ['A', 'B'])
  assert not made and 'xnli_de: not in B' in notes


def test_references_that_are_compared_otherwise_are_said():
  """Fault seen: results of a version that did not normalise, silently beside
  those of one that does."""
  counts = {'changed': 3, 'unknown': 1, 'out_of_reach': 0}
  old, new = task_with([1]), task_with([1], references=counts)
  other = task_with([1], references=counts | {'changed': 4})
  _, notes = compare.compare_runs([old, new, new], ['A', 'B', 'C'])
  written = (
    'as the tokenizer writes them (3 changed, 1 with unknown characters)'
  )
  assert notes == [
    f'xnli_de: references: as in the data set in A, {written} in B, {written} '
    'in C'
  ]
  _, notes = compare.compare_runs([new, other], ['A', 'B'])
  assert len(notes) == 1 and '(4 changed' in notes[0]
  assert not compare.compare_runs([new, new], ['A', 'B'])[1]
  none = task_with([1], references=None)
  assert not compare.compare_runs([old, none], ['A', 'B'])[1]


def test_versions_of_metrics_that_differ_are_said():
  a, b = (
    task_with([1]) | {'versions': {'spbleu': v, 'atm': '0.1'}} for v in 'xy'
  )
  notes = compare.compare_runs([a, b], ['A', 'B'])[1]
  assert notes == ['version of spbleu: x in A, y in B']


def test_holm_is_over_all_differences():
  random = np.random.default_rng(0)
  a = random.random(300) < 0.5
  b = a | (random.random(300) < 0.06)
  one, two = task_with(a), task_with(b)
  alone = compare.compare_runs([one, two], 'ab')[0][0].differences[0]
  every = [one, two, *([one] * 40)]
  names = [str(i) for i in range(42)]
  among = compare.compare_runs(every, names)[0][0].differences[0]
  assert alone.p == alone.adjusted and alone.significant
  assert among.adjusted == pytest.approx(41 * among.p)
  assert compare.count_resamples(5) == 10_000 < compare.count_resamples(132)


def test_groups_are_compared_whole():
  lines = [
    {'id': f'{i}', 'prompt_hash': '', 'answer': 0, 'truth': i % 2,
     'group': f'{i // 2}'} for i in range(6)
  ]  # fmt: skip
  made = lambda some: {
    'versions': {}, 'tasks': [
      judged('m', some, ['multirc_f1a'], set='m', language='en', kind='score')
    ],
  }  # fmt: skip
  (one,), notes = compare.compare_runs([made(lines), made(lines[:5])], 'ab')
  assert one.questions == 4 and len(notes) == 2


def test_names_are_what_tells_folders_apart():
  names = lambda *runs: compare.distinguish_paths(runs)
  assert names('runs/a/eval/xnli', 'runs/b/eval/xnli/') == ['a', 'b']
  assert names('runs/a/eval/xnli', 'runs/a/eval/xcopa') == ['xnli', 'xcopa']
  assert names('runs/a', 'runs/a/eval') == ['runs/a', 'runs/a/eval']
  assert names('x', 'x') == ['x', 'x']
