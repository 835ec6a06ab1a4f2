"""The page and the table of a comparison, of synthetic results."""

import json

import pytest

from atm.evals import compare
from atm.evals import results as results_lib
from atm.pages import compare_page, render

from synthetic import EVIL, FEW, Page


def score_of(results, task, metric):
  (entry,) = [t for t in results['tasks'] if t['name'] == task]
  return entry['scores'][metric]


def test_compare(folder, other, results, tmp_path, capsys):
  path = compare_page.compare_evaluations(
    (folder, other), str(tmp_path / 'c.html')
  )
  made = Page(open(path, encoding='utf-8').read())
  assert 'xnli_ta' in capsys.readouterr().out
  second = results_lib.read_results(other)
  mine, theirs = (
    score_of(r, 'superglue_cb', 'accuracy')['value'] for r in (results, second)
  )
  row = made.row('cb', 'accuracy')
  assert row[2:4] == [f'{mine:.1f}', f'{theirs:.1f}'] and row[-1] == '12'
  assert row[4] == f'{theirs - mine:+.1f}'.replace('-', '−')
  assert f'over all {len(results["tasks"])} differences' in made.text
  assert made.row('from')[1:] == [*FEW, 'mean']
  assert (
    compare_page.compare_evaluations((folder, other))
    == f'{folder}/compare.html'
  )


def test_what_cannot_be_compared_is_refused(folder, tmp_path):
  with pytest.raises(ValueError, match='two or more'):
    compare_page.compare_evaluations((folder,))
  with pytest.raises(ValueError, match='RUNS = .*: expected a tuple of texts'):
    compare_page.compare_evaluations(folder)
  with open(f'{folder}/results.json') as f:
    none = json.load(f) | {'tasks': []}
  with open(tmp_path / 'results.json', 'w') as f:
    json.dump(none, f)
  with pytest.raises(ValueError, match='no question in common'):
    compare_page.compare_evaluations((folder, str(tmp_path)))


def test_names_notes_and_settings_are_escaped(evil):
  """Seen to fail where a template marks a note, or a label, as safe."""
  _, results = evil
  labels = [EVIL, EVIL + '2']
  every = [results, results | {'settings': {EVIL: EVIL + '3'}}]
  found, _ = compare.compare_runs(every, labels)
  data = compare_page.compare_page_data(labels, every, found, [EVIL])
  made = Page(render.render('compare', data))
  assert 'script' not in {tag for tag, _ in made.elements}
  assert f'{EVIL}3' in made.text and EVIL in made.ids


def test_better_and_worse_are_counted_where_they_are_significant():
  difference = lambda value, p: compare.Difference(value, 0, 0, p, p)
  one = lambda *each: compare.Comparison({}, 'accuracy', 1, [], list(each))
  counts = compare_page._count_wins([
    one(difference(2.0, 0.01), difference(-2.0, 0.01)),
    one(difference(3.0, 0.01), difference(3.0, 0.5)),
    one(difference(-1.0, 0.01), difference(1.0, 0.04)),
  ])  # fmt: skip
  assert counts == [
    {'better': 2, 'worse': 1, 'tasks': 3},
    {'better': 1, 'worse': 1, 'tasks': 3},
  ]


def test_the_mean_of_one_metric_has_no_interval(folder, other, tmp_path):
  path = str(tmp_path / 'c.html')
  compare_page.compare_evaluations((folder, other), path)
  made = Page(open(path, encoding='utf-8').read())
  rows = [row for row in made.rows if row[0] == 'Tamil' or row[0] == 'mean']
  xnli = rows.index(made.row('Tamil', 'accuracy'))
  (_, _, first, mine, change, *rest) = rows[xnli + 1]
  gap = float(mine) - float(first)
  assert float(change.replace('−', '-')) == pytest.approx(gap, abs=0.11)
  assert rest == [''] * 5
