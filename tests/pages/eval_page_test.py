"""The page of an evaluation, of synthetic results: what it holds.

Faults seen: texts, choices, prompts or attributes not escaped; sources and
targets of the heat map swapped, and the means of its rows; no names of
languages; chance beside every metric; counts of whole sets; an average of seven
tasks of SuperGLUE.
"""

import numpy as np
import pytest

from atm.evals import published
from atm.pages import charts, eval_page, render

from synthetic import EVIL, FEW, Page


@pytest.fixture(scope='module')
def page(folder):
  path = eval_page.write_eval_page(folder)
  assert path == f'{folder}/report.html'
  with open(path, encoding='utf-8') as f:
    return Page(f.read())


def page_of(folder, results):
  data = eval_page.eval_page_data(folder, results)
  return Page(render.render('eval', data))


def score_of(results, task, metric):
  (entry,) = [t for t in results['tasks'] if t['name'] == task]
  return entry['scores'][metric]


def shown(score):
  return (
    f'{score["value"]:.1f}', f'{score["low"]:.1f} to {score["high"]:.1f}'
  )  # fmt: skip


def test_scores_stand_with_interval_chance_and_count(page, results):
  row = page.row('Tamil')
  accuracy = score_of(results, 'xnli_ta', 'accuracy')
  assert row == ['Tamil', *shown(accuracy), '', '33.3', '12 of 5,010']
  row = page.row('multirc')
  f1 = score_of(results, 'superglue_multirc', 'multirc_f1a')
  assert row[:4] == ['multirc', 'F1 over answers', *shown(f1)]
  assert row[5:] == ['50.0', '59.6 medium', '12']
  below = page.rows[page.rows.index(row) + 1]
  em = score_of(results, 'superglue_multirc', 'multirc_em')
  assert below[:4] == ['', 'exact match of questions', *shown(em)]
  assert not any(below[4:])


def test_references_that_are_compared_otherwise_are_counted(results):
  """Faults seen: those of one task; choices counted."""
  kind = lambda **more: {'questions': 12, 'references': more or None}
  one = kind(changed=3, unknown=1, out_of_reach=0)
  two = kind(changed=1_000, unknown=0, out_of_reach=2)
  assert eval_page._list_notes([]) == []
  assert eval_page._reference_notes([kind()]) == []
  (said,) = eval_page._reference_notes([kind(), one])
  assert 'changes 3 of 12 references; 1 have characters' in said
  said, beyond = eval_page._reference_notes([one, two])
  assert 'changes 1,003 of 24' in said and 'equal 2 of 24' in beyond
  assert not [
    x for x in eval_page._list_notes(results['tasks']) if 'equal' in x
  ]


def test_the_average_of_superglue_stands_beside_theirs(page, results):
  values = [
    score_of(results, task, metric)['value']
    for task, metric in published.PUBLISHED
    if task.startswith('superglue_')
  ]
  assert len(values) == 8
  row = page.row('mean', 'average of the eight tasks')
  assert row[2] == f'{np.mean(values):.1f}' and '69.16 medium' in row
  assert page.row('superglue', '8')[2:4] == row[1:3]


def test_the_page_begins_with_warnings_and_means_with_intervals(
  page, folder, results
):
  """Fault seen: that all prompts were cut stood below a coloured map."""
  kinds = [a.get('class') for _, a in page.elements]
  assert kinds.index('warnings') < kinds.index('wide')
  value, interval = page.row('xnli', str(len(FEW)))[3:5]
  low, high = map(float, interval.split(' to '))
  assert low < float(value) < high
  # Of one task: its own interval, as in results.json.
  assert page.row('squadv2', '1')[3:5] == list(
    shown(score_of(results, 'squadv2', 'squad_f1'))
  )
  tasks = [
    task | {'cut': task['questions']}
    for task in results['tasks']
    if task['set'] == 'flores101'
  ]
  made = page_of(folder, results | {'tasks': tasks})
  kinds = [a.get('class') for _, a in made.elements]
  assert kinds.index('warnings') < kinds.index('heat')
  count = sum(task['questions'] for task in tasks)
  assert f'flores101: all {count} prompts are longer' in made.text
  assert kinds.count('cut') == 2 * len(tasks)  # spBLEU and chrF
  assert not [a for _, a in made.elements if a.get('style', '0%')[-2:] != '0%']


def test_no_average_of_seven(folder, results):
  few = [t for t in results['tasks'] if t['name'] != 'superglue_wic']
  made = page_of(folder, results | {'tasks': few})
  assert not [row for row in made.rows if '69.16 medium' in row]
  assert made.row('superglue', '7')[3] == charts.NONE


def test_directions_are_a_heat_map(page, results):
  head = page.row('from')
  assert head == ['from', *FEW, 'mean']
  cells = page.row('ar Arabic')
  value = lambda a, b: score_of(results, f'flores101_{a}_{b}', 'spbleu')[
    'value'
  ]
  assert cells[1] == '' and cells[4] == f'{value("ar", "ta"):.1f}'
  assert cells[5] == f'{np.mean([value("ar", b) for b in FEW[1:]]):.1f}'
  bottom = page.rows[page.rows.index(cells) + 4]
  assert (
    bottom[2] == f'{np.mean([value(a, "en") for a in FEW if a != "en"]):.1f}'
  )
  assert (
    f'Arabic to Tamil: spBLEU {cells[4]}' in page.text and '21.8' in page.text
  )
  titles = [a['title'] for _, a in page.elements if 'title' in a]
  low = score_of(results, 'flores101_ar_ta', 'spbleu')['low']
  assert any(f'ar to ta: {cells[4]} ({low:.1f} to' in title for title in titles)


def test_bars_say_their_numbers(page, results):
  labels = [a['aria-label'] for tag, a in page.elements if tag == 'svg']
  score = score_of(results, 'superglue_boolq', 'accuracy')
  value, interval = shown(score)
  wanted = f'{value}, 95% interval {interval}, chance 50.0, published 69.4'
  assert wanted in labels


def test_what_is_missing_says_where_to_get_it(page):
  assert 'Incomplete: 1 of' in page.text and 'Not evaluated' in page.text
  assert 'Get x-final.tar.gz of PAWS-X' in page.text


def test_the_page_needs_no_other_and_runs_nothing(page):
  assert not {'script', 'link', 'img', 'iframe'} & {t for t, _ in page.elements}
  for _, attributes in page.elements:
    assert not {'src', 'onclick', 'onload'} & set(attributes)
    assert attributes.get('href', '#').startswith('#')
  assert EVIL in page.text  # of the configuration, escaped
  assert len(page.ids) == len(set(page.ids))
  assert {'xnli', 'superglue', 'flores101'} <= set(page.ids)


def test_texts_run_their_own_way(page):
  texts = [a for t, a in page.elements if a.get('class') == 'text']
  assert texts and all(a['dir'] == 'auto' for a in texts if 'lang' in a)
  assert {'ar', 'ja'} <= {a.get('lang') for a in texts}


def test_writing_again_gives_the_same(folder, page):
  read = lambda: open(f'{folder}/report.html', encoding='utf-8').read()
  before = read()
  eval_page.write_eval_page(folder)
  assert read() == before


def test_answers_and_names_are_escaped(evil):
  made = page_of(*evil)
  assert 'script' not in {tag for tag, _ in made.elements}
  assert made.text.count(EVIL) > 20 and EVIL in made.ids


def test_scores_that_are_none_are_dashes(folder, results):
  task = dict(results['tasks'][0])
  nothing = {'value': float('nan'), 'low': None, 'high': None}
  task['scores'] = {'accuracy': nothing}
  made = page_of(folder, results | {'tasks': [task]})
  assert made.row('Arabic')[1:3] == [charts.NONE, charts.NONE]


def test_a_folder_without_results_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='results.json'):
    eval_page.write_eval_page(str(tmp_path))
