"""The page of `atm eval`: the scores of a suite as one HTML file.

Made of results.json and predictions/*.jsonl, so it may be made again.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atm.data.languages import name_language
from atm.evals import metrics as metrics_lib
from atm.evals import published
from atm.evals import results as results_lib
from atm.messages import clock_text
from atm.pages import answer_cards, charts
from atm.pages.charts import NONE, bar, interval, number
from atm.pages.html import document, tag, tags

PAGE = 'report.html'
MANY = 6  # directions, above which a set is a heat map
STYLE = charts.STYLE + answer_cards.STYLE


def write(folder: str) -> str:
  """Writes report.html beside results.json; returns its path.

  Raises:
    FileNotFoundError: there is no results.json.
  """
  text = page(folder, results_lib.read_results(folder))
  path = os.path.join(folder, PAGE)
  with open(path, 'w', encoding='utf-8') as f:
    f.write(text)
  return path


def page(folder: str, results: Mapping[str, Any]) -> str:
  """The whole page, which needs no other file."""
  sets = by_set(results['tasks'])
  body = (
    tag('h1', html.escape(results['suite']), tags('small', 'an evaluation')),
    definitions(facts(results)),
    *missing(results['missing']),
    *overview(sets),
    tag('p', html.escape(charts.LEGEND), class_='soft'),
    *(part for name in sets for part in section(folder, name, sets[name])),
    *sources(results['tasks']),
    *settings(results),
  )
  return document(f'{results["suite"]}: an evaluation', body, STYLE)


def by_set(tasks: Iterable[Mapping]) -> dict[str, list[Mapping]]:
  """Tasks by data set, in their order."""
  found: dict[str, list[Mapping]] = {}
  for task in tasks:
    found.setdefault(task['set'], []).append(task)
  return found


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
  return tag('dl', *(tag('div', *map(tags, ('dt', 'dd'), p)) for p in pairs))


def facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
  """What was evaluated: names and values."""
  tasks = results['tasks']
  found = [
    ('model', results['model_dir']),
    ('step', f'{results["step"]:,}'),
    ('parameters', f'{results["parameters"]:,}'),
    ('tasks', f'{len(tasks):,}'),
    ('questions', f'{sum(task["questions"] for task in tasks):,}'),
    ('time', clock_text(results['seconds'])),
  ]
  if any(task['questions'] < task['of'] for task in tasks):
    found.append(('of all questions', f'{sum(t["of"] for t in tasks):,}'))
  return found


def missing(sets: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
  """Tasks that were asked for and are not there, and where to get them."""
  if not sets:
    return ()
  rows = [
    tag('div', tags('dt', each['name']),
        tags('dd', f'{each["why"]} {each["where"]}'.strip()))
    for each in sets
  ]  # fmt: skip
  return (
    tags('h2', f'Not there: {len(sets)} of the tasks'),
    tag('dl', *rows, class_='missing'),
  )


# --- All sets


def main_of(task: Mapping) -> str:
  return next(iter(task['scores']))


def set_mean(name: str, tasks: Sequence[Mapping]) -> tuple[str, float | None]:
  """(metric's title, mean over the tasks); None where metrics differ."""
  if name == 'superglue':
    average = published.superglue_average(
      {t['name']: t['scores'] for t in tasks}
    )
    return 'average of the eight tasks', average
  mains = {main_of(task) for task in tasks}
  if len(mains) > 1:
    return 'several metrics', None
  values = [task['scores'][main_of(task)]['value'] for task in tasks]
  there = [value for value in values if number(value) != NONE]
  mean = sum(there) / len(there) if there else None
  return metrics_lib.get_metric(mains.pop()).title, mean


def overview(sets: Mapping[str, list[Mapping]]) -> tuple[str, ...]:
  """A line a set, where there are several."""
  if len(sets) < 2:
    return ()
  rows = []
  for name, tasks in sets.items():
    title, mean = set_mean(name, tasks)
    chances = [t['chance'] for t in tasks if t['chance'] is not None]
    whole = len(chances) == len(tasks) and title != 'several metrics'
    chance = sum(chances) / len(chances) if whole else None
    drawn = bar({'value': mean}, 100, chance) if mean is not None else ''
    link = tag('a', html.escape(name), href=f'#{name}')
    cells = tags('td', f'{len(tasks)}', title)
    cells += tag('td', number(mean), class_='main')
    rows.append(tag('tr', tag('th', link), cells, tag('td', drawn)))
  head = tags('th', 'set', 'tasks', 'mean of', 'score', '')
  table = tag('table', tag('thead', tag('tr', head)), tag('tbody', *rows),
              class_='scores all')  # fmt: skip
  return tags('h2', 'All sets'), tag('div', table, class_='wide')


# --- One set


def section(folder: str, name: str, tasks: list[Mapping]) -> tuple[str, ...]:
  """Scores of a set, and answers to read."""
  directions = [task for task in tasks if task['source_language']]
  shown = (
    maps(tasks) if len(directions) == len(tasks) > MANY else (table(tasks),)
  )
  names = dict.fromkeys(metric for task in tasks for metric in task['scores'])
  metrics = [metrics_lib.get_metric(metric) for metric in names]
  notes = [
    f'{metric.title}: {metric.note}.' for metric in metrics if metric.note
  ]
  notes += dict.fromkeys(note for t in tasks for note in t.get('notes', ()))
  if cut := sum(task.get('cut', 0) for task in tasks):
    of = sum(task['questions'] for task in tasks)
    notes.append(
      f'{cut:,} of {of:,} texts had no room in the model: their beginnings '
      'were left out.'
    )
  return (
    tag('h2', html.escape(name), id=name),
    tag('p', html.escape(asked(tasks)), class_='soft'),
    *shown,
    *(tag('p', html.escape(note), class_='soft') for note in notes),
    *answers(folder, tasks),
  )


def asked(tasks: Sequence[Mapping]) -> str:
  """How the questions were asked, in a sentence."""
  one = lambda key: ' or '.join(dict.fromkeys(str(t[key]) for t in tasks))
  shots = one('shots')
  text = f'{"Zero" if shots == "0" else shots}-shot, {one("mode")} mode'
  if any(task['kind'] == 'score' for task in tasks):
    how = one('normalize').replace('mean', 'the mean over tokens')
    text += f'; choices compared by {how} of log-probabilities'
  only = one_metric(tasks)
  return f'{text}. The score is {only}.' if only else f'{text}.'


def label(task: Mapping, tasks: Sequence[Mapping]) -> str:
  """What tells a task from the others of its set."""
  if task['source_language']:
    ends = map(name_language, (task['source_language'], task['language']))
    return ' to '.join(ends)
  if len({other['language'] for other in tasks}) == len(tasks) > 1:
    return name_language(task['language'])
  rest = task['name'].removeprefix(task['set']).strip('_').replace('_', ' ')
  return name_language(rest or task['language'])


def table(tasks: Sequence[Mapping]) -> str:
  """A group of rows a task: its main metric, then the others.

  The columns of metrics, of chance and of published figures only where there
  are any to tell apart.
  """
  top = scale_top(tasks)
  names = ['task', 'metric', 'score', '95% interval', f'0 to {top:g}']
  if one_metric(tasks):
    names.remove('metric')
  if any(task['chance'] is not None for task in tasks):
    names.append('chance')
  keys = [(task['name'], metric) for task in tasks for metric in task['scores']]
  if any(key in published.PUBLISHED for key in keys):
    names.append('AlexaTM 20B')
  names.append('questions')
  bodies = []
  for task in tasks:
    rows = task_rows(task, tasks, top)
    bodies.append(tag('tbody', *(in_columns(row, names) for row in rows)))
  title, mean = set_mean(tasks[0]['set'], tasks)
  if len(tasks) > 1 and mean is not None:
    row = mean_row(tasks[0]['set'], title, mean, top)
    bodies.append(tag('tfoot', in_columns(row, names)))
  head = tag('thead', tag('tr', tags('th', *names)))
  made = tag('table', head, *bodies, class_='scores')
  return tag('div', made, class_='wide')


def one_metric(tasks: Iterable[Mapping]) -> str | None:
  """The title of the only metric of all tasks, None where there are more."""
  names = {metric for task in tasks for metric in task['scores']}
  return metrics_lib.get_metric(names.pop()).title if len(names) == 1 else None


def in_columns(row: Mapping[str, str], names: Sequence[str]) -> str:
  """A row of the columns that are shown; cells by name, the bar is 'bar'."""
  cells = [row.get('bar' if n.startswith('0 to') else n) for n in names]
  return tag('tr', *(cell or tag('td') for cell in cells))


def mean_row(name: str, title: str, mean: float, top: float) -> dict[str, str]:
  theirs = published.PUBLISHED.get((name, 'average'))
  return {
    'task': tags('th', 'mean'),
    'metric': tags('td', title),
    'score': tag('td', number(mean), class_='main'),
    'bar': tag('td', bar({'value': mean}, top, None, theirs)),
    'AlexaTM 20B': published_cell(theirs),
  }


def scale_top(tasks: Sequence[Mapping]) -> float:
  """The end of the bars of a set."""
  found = []
  for task in tasks:
    for metric, score in task['scores'].items():
      found += [score['value'], score.get('high')]
      theirs = published.PUBLISHED.get((task['name'], metric))
      found += [theirs.value] if theirs else []
    found.append(task['chance'])
  return charts.top_of(found)


def task_rows(
  task: Mapping, tasks: Sequence[Mapping], top: float
) -> list[dict[str, str]]:
  """The cells of each metric, by column."""
  made = []
  for i, (metric, score) in enumerate(task['scores'].items()):
    theirs = published.PUBLISHED.get((task['name'], metric))
    chance = None if i else task['chance']
    main = {'class_': 'main'} if i == 0 else {}
    row = {
      'task': tags('th', '' if i else label(task, tasks)),
      'metric': tags('td', metrics_lib.get_metric(metric).title),
      'score': tag('td', number(score['value']), **main),
      '95% interval': tags('td', interval(score)),
      'bar': tag('td', bar(score, top, chance, theirs)),
      'AlexaTM 20B': published_cell(theirs),
    }
    if chance is not None:
      row['chance'] = tags('td', number(chance))
    if i == 0:
      row['questions'] = tags('td', asked_of(task))
    made.append(row)
  return made


def asked_of(task: Mapping) -> str:
  """'100 of 5,010', or the number where all were asked."""
  count, of = task['questions'], task['of']
  return f'{count:,} of {of:,}' if count < of else f'{count:,}'


def published_cell(theirs: published.Published | None) -> str:
  if theirs is None:
    return tag('td')
  return tag('td', f'{theirs.value:g} ', tags('small', theirs.certainty))


def maps(tasks: Sequence[Mapping]) -> tuple[str, ...]:
  """Heat maps of directions, and their table folded."""
  made = []
  for i, metric in enumerate(tasks[0]['scores']):
    cells = {
      (task['source_language'], task['language']): task['scores'][metric]
      for task in tasks
      if metric in task['scores']
    }
    title, drawn = metrics_lib.get_metric(metric).title, charts.heat_map(cells)
    if i == 0:
      made += [tags('h4', title), drawn, *beside_published(tasks)]
    else:
      made.append(tag('details', tags('summary', title), drawn))
  every = tags('summary', f'all {len(tasks)} directions, with intervals')
  return *made, tag('details', every, table(tasks))


def beside_published(tasks: Sequence[Mapping]) -> list[str]:
  """A sentence for each direction with a published figure."""
  made = []
  for task in tasks:
    for metric, score in task['scores'].items():
      theirs = published.PUBLISHED.get((task['name'], metric))
      if theirs:
        text = (
          f'{label(task, tasks)}: {metrics_lib.get_metric(metric).title} '
          f'{number(score["value"])}, that of AlexaTM 20B {theirs.value:g} '
          f'({theirs.certainty}).'
        )
        made.append(tag('p', html.escape(text), class_='soft'))
  return made


def answers(folder: str, tasks: Sequence[Mapping]) -> list[str]:
  """Answers to read, folded by task."""
  made, some = [], answer_cards.spread(tasks)
  for task in some:
    cards = answer_cards.examples(folder, task)
    if cards:
      made.append(
        tag('details', tags('summary', label(task, tasks)), cards)
      )  # fmt: skip
  what = 'Answers: the worst, a middle one, the best'
  if len(some) < len(tasks):
    what += ', of the best, a middle and the worst direction'
  return [tags('h4', what), *made] if made else []


# --- Where from


def sources(tasks: Sequence[Mapping]) -> tuple[str, ...]:
  """Where published figures were read, as far as the page shows them."""
  keys = [(t['name'], metric) for t in tasks for metric in t['scores']]
  shown = [
    published.PUBLISHED[key] for key in keys if key in published.PUBLISHED
  ]
  lines = dict.fromkeys(f'{p.certainty}: {p.source}' for p in shown)
  if not lines:
    return ()
  text = (
    'Figures of AlexaTM 20B are as far as known of the same task, but not of '
    'the same prompts, nor always of the same split: beside ours, not a target.'
  )
  return (
    tags('h2', 'Published figures'),
    tag('p', text, class_='soft'),
    tag('ul', tags('li', *lines)),
  )


def settings(results: Mapping[str, Any]) -> tuple[str, ...]:
  """Settings, versions, sources of the data, and the configuration."""
  text = lambda pairs: [(str(k), str(v)) for k, v in pairs.items()]
  data = {t['name']: f'{t["source"]}, prompts {t["prompt_hash"][:12]}'
          for t in results['tasks']}  # fmt: skip
  return (
    tags('h2', 'Settings'),
    definitions(text(results['settings'])),
    tags('h4', 'Versions'),
    definitions(text(results['versions'])),
    tag('details', tags('summary', 'where the questions are from'),
        tag('dl', *(tag('div', *map(tags, ('dt', 'dd'), pair))
                    for pair in data.items()), class_='missing')),
    tag('details', tags('summary', 'configuration'),
        tags('pre', results['config'])),
  )  # fmt: skip


STYLE += """
dl.missing { display: block }
dl.missing div { margin-bottom: .5rem }
.all tbody tr + tr { color: inherit }
.all td:nth-child(3) { white-space: normal }
dl + details { margin-top: 1rem }
.all :is(th, td):nth-child(2) { text-align: end }
.all :is(th, td):nth-child(3) { text-align: start }
details { margin-bottom: .25rem }
details[open] { margin-bottom: 1.5rem }
details > .columns, details > .wide { margin-top: .75rem }
"""
