"""Writes the page of `atm eval`: the scores of a suite as one HTML file.

Made of results.json and predictions/*.jsonl, so it may be made again. The
functions here prepare plain data; templates/eval.html.jinja lays it out.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from atm.data.languages import name_language
from atm.evals import bootstrap, published
from atm.evals import metrics as metrics_lib
from atm.evals import results as results_lib
from atm.messages import clock_text
from atm.pages import answer_cards, charts, page_warnings, render

EVAL_PAGE = 'report.html'
SUPERGLUE_TITLE = 'average of the eight tasks'
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
  sets = render.group_by(tasks, lambda task: task['set'])
  figures = [f for task in tasks for f in _published_figures(task) if f]
  seed = results['settings'].get('seed') or 0
  return {
    'results': results,
    'facts': _list_facts(results),
    'warnings': page_warnings.eval_warnings(results),
    'sets': [_set_data(folder, *each, seed) for each in sets.items()],
    'published': dict.fromkeys(f'{f.certainty}: {f.source}' for f in figures),
  }


def _list_facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
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


def _published_figures(task: Mapping) -> list[published.Published | None]:
  """Returns what is published of each metric of a task."""
  return [published.PUBLISHED.get((task['name'], m)) for m in task['scores']]


# --- One set


def _set_data(
  folder: str, name: str, tasks: Sequence[Mapping], seed: int
) -> dict[str, Any]:
  """Returns what the page shows of a set: scores, notes, answers to read."""
  title, mean = _set_mean(name, tasks, seed)
  metrics = _used_metrics(tasks)
  chances = [task['chance'] for task in tasks]
  comparable = None not in chances and title != 'several metrics'
  shown = answer_cards.representative_tasks(tasks)
  answers = [
    (task_label(task, tasks), answer_cards.task_cards(folder, task))
    for task in shown
  ]
  answers = [(label, cards) for label, cards in answers if cards]
  return {
    'name': name,
    'tasks': len(tasks),
    'mean': mean,
    'mean_title': title,
    'mean_chance': sum(chances) / len(chances) if comparable else None,
    'mean_published': published.PUBLISHED.get((name, 'average')),
    'asked': _how_asked(tasks),
    'notes': _list_notes(tasks),
    'metrics': metrics,
    'groups': [_score_rows(task, tasks) for task in tasks],
    'end': _axis_end(tasks),
    'any_chance': chances.count(None) < len(chances),
    'any_published': any(f for task in tasks for f in _published_figures(task)),
    'maps': _heat_maps(tasks, metrics),
    'answers': answers,
    'all_answers': len(shown) == len(tasks),
    'signs': render.explain_signs(_shown_texts(answers)),
  }


def _shown_texts(answers: Sequence[tuple[str, Sequence[Mapping]]]):
  """Yields the texts of the cards of a set."""
  for card in (card for _, cards in answers for card in cards):
    line = card['line']
    truth = line['truth'] if isinstance(line['truth'], list) else []
    shown = (line.get('shown') or {}).values()
    yield from map(str, (*shown, *truth, line['truth'], line['answer']))
    yield from (choice['text'] for choice in card['choices'])
    yield f'{line.get("prompt")}{line.get("output")}'


def _set_mean(
  name: str, tasks: Sequence[Mapping], seed: int
) -> tuple[str, dict[str, float | None]]:
  """Returns a metric's title and the mean over the tasks of one set.

  The mean has a value, low and high; all None where the metrics differ or no
  task has a score.
  """
  mains = {task['name']: next(iter(task['scores'])) for task in tasks}
  if name == 'superglue':
    title, mains = SUPERGLUE_TITLE, published.SUPERGLUE_METRICS
  elif len(set(mains.values())) > 1:
    return 'several metrics', dict.fromkeys(('value', 'low', 'high'))
  else:
    title = metrics_lib.get_metric(next(iter(mains.values()))).title
  chosen = [
    (task, mains[task['name']])
    for task in tasks
    if mains.get(task['name']) in task['scores']
    and not charts.is_missing(task['scores'][mains[task['name']]]['value'])
  ]
  if not chosen or (name == 'superglue' and len(chosen) < len(mains)):
    return title, dict.fromkeys(('value', 'low', 'high'))
  if len(chosen) == 1:
    task, metric = chosen[0]
    return title, task['scores'][metric]
  figures = bootstrap.mean_interval(
    [(task['statistics'][metric], metrics_lib.get_metric(metric).total)
     for task, metric in chosen], seed
  )  # fmt: skip
  return title, dict(zip(('value', 'low', 'high'), figures))


def _used_metrics(tasks: Sequence[Mapping]) -> dict[str, metrics_lib.Metric]:
  """Returns the metrics of some tasks by name."""
  names = dict.fromkeys(name for task in tasks for name in task['scores'])
  return {name: metrics_lib.get_metric(name) for name in names}


def _how_asked(tasks: Sequence[Mapping]) -> str:
  """Returns a sentence on how the questions of a set were asked."""
  values = lambda key: ' or '.join(dict.fromkeys(str(t[key]) for t in tasks))
  shots = values('shots')
  text = f'{"Zero" if shots == "0" else shots}-shot, {values("mode")} mode'
  # A translation model is told the languages, and reads a sentence alone.
  by_codes = [t['asked'] for t in tasks if 'codes' in t.get('asked', '')]
  if by_codes:
    more = f' and {len(by_codes) - 1} more' if len(by_codes) > 1 else ''
    text = f'Asked {by_codes[0]}{more}'
  if any(task['kind'] == 'score' for task in tasks):
    how = values('normalize').replace('mean', 'the mean over tokens')
    text += f'; choices compared by {how} of log-probabilities'
  titles = [metric.title for metric in _used_metrics(tasks).values()]
  if len(titles) == 1:
    text += f'. The score is {titles[0]}'
  return f'{text}.'


def _list_notes(tasks: Sequence[Mapping]) -> list[str]:
  """Returns what a reader must know of a set's metrics and texts."""
  metrics = _used_metrics(tasks).values()
  notes = [
    f'{metric.title}: {metric.note}.' for metric in metrics if metric.note
  ]
  notes += dict.fromkeys(note for t in tasks for note in t.get('notes', ()))
  return notes + _reference_notes(tasks)


def _reference_notes(tasks: Sequence[Mapping]) -> list[str]:
  """Returns how references were compared, and which no answer can equal."""
  found = [task for task in tasks if task.get('references')]
  if not found:
    return []
  count = sum(task['questions'] for task in found)
  changed, unknown, out_of_reach = (
    sum(task['references'][key] for task in found)
    for key in ('changed', 'unknown', 'out_of_reach')
  )
  notes = [
    'Answers and references are compared as the tokenizer writes them, which '
    f'changes {changed:,} of {count:,} references; {unknown:,} have characters '
    'that it lacks.'
  ]
  if out_of_reach:
    notes.append(
      f'No answer can equal {out_of_reach:,} of {count:,} references: they '
      'hold what ends an answer, or are longer than answers may be.'
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


def _score_rows(
  task: Mapping, tasks: Sequence[Mapping]
) -> list[dict[str, Any]]:
  """Returns a row for each metric of a task, the main one first."""
  rows = [
    {
      'label': '',
      'metric': metrics_lib.get_metric(metric).title,
      'score': score,
      'chance': None,
      'published': figure,
      'questions': '',
    }
    for (metric, score), figure in zip(
      task['scores'].items(), _published_figures(task)
    )
  ]
  count, of = task['questions'], task['of']
  questions = f'{count:,} of {of:,}' if count < of else f'{count:,}'
  rows[0].update(
    label=task_label(task, tasks), chance=task['chance'], questions=questions
  )
  return rows


def _axis_end(tasks: Sequence[Mapping]) -> float:
  """Returns the end of the axis of a set's bars."""
  values = [task['chance'] for task in tasks]
  for task in tasks:
    for score in task['scores'].values():
      values += [score['value'], score.get('high')]
    values += [figure.value for figure in _published_figures(task) if figure]
  return charts.axis_end(values)


def are_many_directions(tasks: Sequence[Mapping]) -> bool:
  """Tells whether a set is of translations, too many for a table alone."""
  directions = [task for task in tasks if task['source_language']]
  return len(directions) == len(tasks) > MANY_DIRECTIONS


def _heat_maps(
  tasks: Sequence[Mapping], metrics: Mapping[str, metrics_lib.Metric]
) -> dict[str, dict[tuple[str, str], Mapping]]:
  """Returns, by title of a metric, the scores of many directions."""
  if not are_many_directions(tasks):
    return {}
  return {
    metrics[name].title: {
      (task['source_language'], task['language']): {
        **task['scores'][name],
        'cut': task.get('cut', 0) == task['questions'],
      }
      for task in tasks
      if name in task['scores']
    }
    for name in tasks[0]['scores']
  }
