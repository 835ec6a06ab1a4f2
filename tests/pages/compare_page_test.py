"""The page and the table of a comparison, of synthetic results."""

import json
import shutil

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
  with open(f'{folder}/results.json') as f:
    fewer = {k: v for k, v in json.load(f).items() if k != 'sha256'}
  (last,) = fewer['tasks'][-1:]
  fewer['tasks'] = fewer['tasks'][:-1]
  results_lib.write_results(str(tmp_path), fewer)
  runs = folder, str(tmp_path)
  with pytest.raises(ValueError, match=f'lacks 1 tasks of .*: {last["name"]}'):
    compare_page.compare_evaluations(runs)
  path = str(tmp_path / 'c.html')
  compare_page.compare_evaluations(runs, path, allow_missing=True)
  assert 'not in ' in open(path, encoding='utf-8').read()


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
  one = lambda *each: compare.Comparison({}, 'accuracy', 1, [], list(each), [])
  counts = compare_page.count_wins([
    one(difference(2.0, 0.01), difference(-2.0, 0.01)),
    one(difference(3.0, 0.01), difference(3.0, 0.5)),
    one(difference(-1.0, 0.01), difference(1.0, 0.04)),
  ])  # fmt: skip
  assert counts == [
    {'better': 2, 'worse': 1, 'same': 0, 'tasks': 3},
    {'better': 1, 'worse': 1, 'same': 0, 'tasks': 3},
  ]


@pytest.fixture(scope='module')
def made(folder, other, tmp_path_factory):
  """The page of three evaluations, the second equal to the first."""
  path = tmp_path_factory.mktemp('pages') / 'c.html'
  same = tmp_path_factory.mktemp('same') / 'eval'
  shutil.copytree(folder, same)
  compare_page.compare_evaluations((folder, str(same), other), str(path))
  return Page(path.read_text(encoding='utf-8'))


def test_the_page_begins_with_the_answer_and_warnings(made):
  """Means of sets have intervals; what warns stands above all figures."""
  kinds = [a.get('class') for _, a in made.elements]
  assert kinds.index('verdicts') < kinds.index('warnings') < kinds.index('wide')
  assert 'Few questions' in made.text and 'All runs: Incomplete' in made.text
  assert 'equal in' in made.text
  (mean,) = [row for row in made.rows if row[:2] == ['xnli', 'accuracy']]
  _, _, first, _, score, change, _, interval, *_ = mean
  assert score == first and (change, interval) == ('0.0', '0.0 to 0.0')
  _, _, _, _, score, change, _, interval, *_ = made.rows[
    made.rows.index(mean) + 1
  ]
  change, gap = (float(x.replace('−', '-')) for x in (change, '0'))
  gap = float(score) - float(first)
  low, high = (float(x.replace('−', '-')) for x in interval.split(' to '))
  assert change == pytest.approx(gap, abs=0.11) and low < change < high


def test_equal_scores_are_neither_better_nor_worse(made):
  """Fault seen: differences of 0.0 were red dots."""
  bars = [a for _, a in made.elements if a.get('class', '').startswith('bar ')]
  zeros = {a['class'] for a in bars if a['aria-label'].startswith('0.0, ')}
  assert zeros == {'bar same'}
  others = {a['class'] for a in bars if not a['aria-label'].startswith('0.0')}
  assert others == {'bar better', 'bar worse'}


def test_runs_stand_below_each_other(made):
  """Fault seen: a column for each figure of each run, 2,800 pixels wide."""
  (head,) = [row for row in made.rows if row[:2] == ['task', 'metric']][:1]
  assert head[3:6] == ['run', 'score', 'difference'] and len(head) == 11
  assert {len(row) for row in made.rows if len(row) > 7} <= {11, len(FEW) + 2}
