"""Writes the page of `atm eval`: the scores of a suite as one HTML file.

Made of results.json and predictions/*.jsonl, so it may be made again. The
functions here prepare plain data; templates/eval.html.jinja lays it out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from atm.data.languages import name_language
from atm.evals import metrics as metrics_lib
from atm.evals import published
from atm.evals import results as results_lib
from atm.messages import clock_text
from atm.pages import answer_cards, charts, render
from atm.pages.charts import format_interval, format_number, is_missing

EVAL_PAGE = 'report.html'
MANY_DIRECTIONS = 6  # a set with more of them is shown as heat maps


def write_eval_page(folder: str) -> str:
  """Writes report.html beside results.json; returns its path.

  Raises:
    FileNotFoundError: there is no results.json.
  """
  data = eval_page_data(folder, results_lib.read_results(folder))
  return render.write_page(os.path.join(folder, EVAL_PAGE), 'eval', data)


def eval_page_data(folder: str, results: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what the page shows of results.json and predictions/."""
  tasks = results['tasks']
  sets: dict[str, list[Mapping]] = {}
  for task in tasks:
    sets.setdefault(task['set'], []).append(task)
  return {
    'name': results['suite'],
    'facts': _facts(results),
    'missing': [
      (each['name'], f'{each["why"]} {each["where"]}'.strip())
      for each in results['missing']
    ],
    'overview': [_overview_row(name, mine) for name, mine in sets.items()],
    'sets': [_set_data(folder, name, mine) for name, mine in sets.items()],
    'published': _published_sources(tasks),
    'settings': results['settings'].items(),
    'versions': results['versions'].items(),
    'sources': [
      (task['name'], f'{task["source"]}, prompts {task["prompt_hash"][:12]}')
      for task in tasks
    ],
    'config': results['config'],
  }


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns names and values of what was evaluated."""
  tasks = results['tasks']
  facts = [
    ('model', results['model_dir']),
    ('step', f'{results["step"]:,}'),
    ('parameters', f'{results["parameters"]:,}'),
    ('tasks', f'{len(tasks):,}'),
    ('questions', f'{sum(task["questions"] for task in tasks):,}'),
    ('time', clock_text(results['seconds'])),
  ]
  if any(task['questions'] < task['of'] for task in tasks):
    facts.append(('of all questions', f'{sum(t["of"] for t in tasks):,}'))
  return facts


def _published_sources(tasks: Sequence[Mapping]) -> list[str]:
  """Returns where the published figures were read that the page shows."""
  keys = [(task['name'], metric) for task in tasks for metric in task['scores']]
  shown = filter(None, map(published.PUBLISHED.get, keys))
  return list(dict.fromkeys(f'{p.certainty}: {p.source}' for p in shown))


# --- All sets


def set_mean(name: str, tasks: Sequence[Mapping]) -> tuple[str, float | None]:
  """Returns the metric's title and the mean over tasks of one set.

  The mean is None where the metrics differ or no task has a score.
  """
  if name == 'superglue':
    scores = {task['name']: task['scores'] for task in tasks}
    return 'average of the eight tasks', published.superglue_average(scores)
  mains = {next(iter(task['scores'])) for task in tasks}
  if len(mains) > 1:
    return 'several metrics', None
  (main,) = mains
  values = [task['scores'][main]['value'] for task in tasks]
  values = [value for value in values if not is_missing(value)]
  mean = sum(values) / len(values) if values else None
  return metrics_lib.get_metric(main).title, mean


def _overview_row(name: str, tasks: Sequence[Mapping]) -> dict[str, Any]:
  """Returns a line of the table of all sets."""
  title, mean = set_mean(name, tasks)
  chances = [task['chance'] for task in tasks]
  comparable = None not in chances and title != 'several metrics'
  chance = sum(chances) / len(chances) if comparable else None
  return {
    'name': name,
    'tasks': len(tasks),
    'title': title,
    'score': format_number(mean),
    'bar': charts.score_bar({'value': mean}, 100, chance)
    if mean is not None
    else None,
  }


# --- One set


def _set_data(
  folder: str, name: str, tasks: Sequence[Mapping]
) -> dict[str, Any]:
  """Returns what the page shows of a set: scores, notes, answers to read."""
  directions = [task for task in tasks if task['source_language']]
  shown = answer_cards.representative_tasks(tasks)
  cards = [
    (task_label(t, tasks), answer_cards.task_cards(folder, t)) for t in shown
  ]
  return {
    'name': name,
    'asked': _how_asked(tasks),
    'maps': _heat_maps(tasks)
    if len(directions) == len(tasks) > MANY_DIRECTIONS
    else [],
    'comparisons': _published_comparisons(tasks),
    'table': _score_table(tasks),
    'notes': _notes(tasks),
    'answers': [(label, some) for label, some in cards if some],
    'all_answered': len(shown) == len(tasks),
  }


def _how_asked(tasks: Sequence[Mapping]) -> str:
  """Returns a sentence on how the questions of a set were asked."""
  values = lambda key: ' or '.join(dict.fromkeys(str(t[key]) for t in tasks))
  shots = values('shots')
  text = f'{"Zero" if shots == "0" else shots}-shot, {values("mode")} mode'
  if any(task['kind'] == 'score' for task in tasks):
    how = values('normalize').replace('mean', 'the mean over tokens')
    text += f'; choices compared by {how} of log-probabilities'
  metrics = _metrics(tasks)
  if len(metrics) == 1:
    text += f'. The score is {metrics[0].title}'
  return f'{text}.'


def _metrics(tasks: Sequence[Mapping]) -> list[metrics_lib.Metric]:
  """Returns the metrics of some tasks, each once."""
  names = dict.fromkeys(metric for task in tasks for metric in task['scores'])
  return [metrics_lib.get_metric(name) for name in names]


def _notes(tasks: Sequence[Mapping]) -> list[str]:
  """Returns what a reader must know of a set's metrics and texts."""
  notes = [f'{m.title}: {m.note}.' for m in _metrics(tasks) if m.note]
  notes += dict.fromkeys(note for t in tasks for note in t.get('notes', ()))
  if cut := sum(task.get('cut', 0) for task in tasks):
    count = sum(task['questions'] for task in tasks)
    notes.append(
      f'{cut:,} of {count:,} texts had no room in the model: their beginnings '
      'were left out.'
    )
  return notes


def task_label(task: Mapping, tasks: Sequence[Mapping]) -> str:
  """Returns what tells a task from the others of its set."""
  if task['source_language']:
    ends = map(name_language, (task['source_language'], task['language']))
    return ' to '.join(ends)
  if len({other['language'] for other in tasks}) == len(tasks) > 1:
    return name_language(task['language'])
  rest = task['name'].removeprefix(task['set']).strip('_').replace('_', ' ')
  return name_language(rest or task['language'])


def _score_table(tasks: Sequence[Mapping]) -> dict[str, Any]:
  """Returns a group of rows for each task: its main metric, then the others.

  The columns of metrics, of chance and of published figures are shown only
  where there are any to tell apart.
  """
  keys = [(task['name'], metric) for task in tasks for metric in task['scores']]
  end = _bar_end(tasks)
  name = tasks[0]['set']
  title, mean = set_mean(name, tasks)
  foot = None
  if len(tasks) > 1 and mean is not None:
    theirs = published.PUBLISHED.get((name, 'average'))
    foot = _score_row('mean', title, {'value': mean}, end, None, theirs)
    foot['interval'] = ''  # a mean over tasks has none
  return {
    'end': f'{end:g}',
    'metric': len(_metrics(tasks)) > 1,
    'chance': any(task['chance'] is not None for task in tasks),
    'published': any(key in published.PUBLISHED for key in keys),
    'groups': [_task_rows(task, tasks, end) for task in tasks],
    'foot': foot,
  }


def _bar_end(tasks: Sequence[Mapping]) -> float:
  """Returns the end of the axis of a set's bars."""
  values = [task['chance'] for task in tasks]
  for task in tasks:
    for metric, score in task['scores'].items():
      theirs = published.PUBLISHED.get((task['name'], metric))
      values += [score['value'], score.get('high'), theirs and theirs.value]
  return charts.axis_end(values)


def _task_rows(
  task: Mapping, tasks: Sequence[Mapping], end: float
) -> list[dict[str, Any]]:
  """Returns a row for each metric of a task."""
  count, of = task['questions'], task['of']
  rows = []
  for i, (metric, score) in enumerate(task['scores'].items()):
    title = metrics_lib.get_metric(metric).title
    theirs = published.PUBLISHED.get((task['name'], metric))
    if i:
      rows.append(_score_row('', title, score, end, None, theirs, main=False))
      continue
    label = task_label(task, tasks)
    row = _score_row(label, title, score, end, task['chance'], theirs)
    row['questions'] = f'{count:,} of {of:,}' if count < of else f'{count:,}'
    rows.append(row)
  return rows


def _score_row(
  label: str,
  title: str,
  score: Mapping[str, Any],
  end: float,
  chance: float | None,
  theirs: published.Published | None,
  main: bool = True,
) -> dict[str, Any]:
  """Returns the cells of a row, `main` in bold."""
  return {
    'label': label,
    'metric': title,
    'main': main,
    'score': format_number(score['value']),
    'interval': format_interval(score),
    'bar': charts.score_bar(score, end, chance, theirs),
    'chance': '' if chance is None else format_number(chance),
    'published': theirs and (f'{theirs.value:g}', theirs.certainty),
    'questions': '',
  }


def _heat_maps(tasks: Sequence[Mapping]) -> list[tuple[str, dict[str, Any]]]:
  """Returns the title of each metric with its heat map of directions."""
  maps = []
  for metric in tasks[0]['scores']:
    cells = {
      (task['source_language'], task['language']): task['scores'][metric]
      for task in tasks
      if metric in task['scores']
    }
    maps.append((metrics_lib.get_metric(metric).title, charts.heat_map(cells)))
  return maps


def _published_comparisons(tasks: Sequence[Mapping]) -> list[str]:
  """Returns a sentence for each score of which a figure is published."""
  return [
    f'{task_label(task, tasks)}: {metrics_lib.get_metric(metric).title} '
    f'{format_number(score["value"])}, that of AlexaTM 20B {theirs.value:g} '
    f'({theirs.certainty}).'
    for task in tasks
    for metric, score in task['scores'].items()
    if (theirs := published.PUBLISHED.get((task['name'], metric)))
  ]
