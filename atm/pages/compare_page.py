"""Evaluations beside each other: `atm compare`, a table and one HTML page.

  atm compare --gin.RUNS="('runs/a/eval/xnli', 'runs/b/eval/xnli')"

Every run is set against the first, on the
questions that all have; a question is the same where task, id and truth are.
Prompts may differ, as with other shots or another mode, and this is said.
"""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from atm.evals import compare as compare_lib
from atm.evals import metrics, results
from atm.pages import charts, eval_page
from atm.pages.charts import difference_bar, number
from atm.pages.html import document, tag, tags

PAGE = 'compare.html'


def compare(runs: Sequence[str], output: str | None = None) -> str:
  """Prints a table of results folders and writes its page.

  Args:
    runs: folders with results.json, two or more; the first is what others are
      set against.
    output: the page's path; None: compare.html in the first folder.

  Returns:
    The page's path.

  Raises:
    ValueError: fewer than two folders, or they have no question in common.
    FileNotFoundError: a folder has no results.json.
  """
  if isinstance(runs, str) or len(runs) < 2:
    raise ValueError(
      f'RUNS = {runs!r}: expected two or more folders, '
      "('runs/a/eval/xnli', 'runs/b/eval/xnli')"
    )
  every = [results.read_results(run) for run in runs]
  made, notes = compare_lib.compare_runs(
    every, compare_lib.distinguish_paths(runs)
  )
  if not made:
    raise ValueError(
      f'RUNS = {runs!r}: no question in common. '
      + ' '.join(f'{note}.' for note in notes)
    )
  rich.console.Console().print(
    console_table(compare_lib.distinguish_paths(runs), made)
  )
  path = output or os.path.join(runs[0], PAGE)
  with open(path, 'w', encoding='utf-8') as f:
    f.write(page(compare_lib.distinguish_paths(runs), every, made, notes))
  return path


# --- How it is shown


def p_text(p: float) -> str:
  return f'{p:.3f}' if p >= 0.001 else f'{p:.4f}'


def console_table(
  labels: Sequence[str], made: Sequence[compare_lib.Comparison]
) -> rich.table.Table:
  """Values, differences to the first, and p, for a terminal."""
  escape = rich.markup.escape
  table = rich.table.Table(
    title=f'Against {escape(labels[0])}; p after Holm over '
    f'{sum(len(one.differences) for one in made)} differences, '
    f'bold below {compare_lib.SIGNIFICANCE:g}'
  )
  table.add_column('task')
  table.add_column('metric')
  for label in labels:
    table.add_column(escape(label), justify='right')
  for one in made:
    cells = [number(one.values[0])]
    for value, each in zip(one.values[1:], one.differences):
      text = f'{number(value)} ({number(each.value, "+.1f")}, '
      text += f'p {p_text(each.adjusted)})'
      cells.append(f'[bold]{text}[/bold]' if each.significant else text)
    title = metrics.get_metric(one.metric).title
    table.add_row(escape(one.task['name']), title, *cells)
  return table


def page(
  labels: Sequence[str],
  every: Sequence[Mapping[str, Any]],
  made: Sequence[compare_lib.Comparison],
  notes: Sequence[str],
) -> str:
  """The whole page, which needs no other file."""
  title = ' and '.join(labels)
  sets: dict[str, list[compare_lib.Comparison]] = {}
  for one in made:
    sets.setdefault(one.task['set'], []).append(one)
  body = (
    tag('h1', html.escape(title), tags('small', 'evaluations compared')),
    runs_table(labels, every),
    tag('p', html.escape(how(labels, made)), class_='soft'),
    tags('h2', 'In short'),
    tag('ul', *(tags('li', line) for line in summary(labels, made))),
    *differs(notes),
    *(part for name in sets for part in section(name, sets[name], labels)),
  )
  style = eval_page.STYLE
  return document(f'{title}: evaluations compared', body, style + STYLE)


def runs_table(labels, every) -> str:
  """What each run is, settings that differ among them."""
  keys = dict.fromkeys(key for run in every for key in run['settings'])
  setting = lambda run, key: str(run['settings'].get(key))
  apart = [k for k in keys if len({setting(run, k) for run in every}) > 1]
  rows = [
    tag(
      'tr',
      tags('th', label),
      tags('td', run['suite'], run['model_dir'], f'{run["step"]:,}'),
      tags('td', f'{run["parameters"]:,}', *(setting(run, k) for k in apart)),
    )
    for label, run in zip(labels, every)
  ]
  names_of = 'run', 'suite', 'model', 'step', 'parameters', *apart
  head = tag('thead', tag('tr', tags('th', *names_of)))
  table = tag('table', head, tag('tbody', *rows), class_='runs')
  return tag('div', table, class_='wide')


def how(labels: Sequence[str], made: Sequence[compare_lib.Comparison]) -> str:
  """How differences are judged, in words."""
  count = sum(len(one.differences) for one in made)
  return (
    f'A difference is that to {labels[0]}, by the main metric of a task, on '
    'the questions all runs have. Its interval holds 95% of the draws of a '
    'paired bootstrap over questions (Koehn, 2004), '
    f'{compare_lib.count_resamples(count):,} of them, and p is two-sided. '
    f"Holm's correction is over all {count} differences on this page: where "
    f'it leaves p below {compare_lib.SIGNIFICANCE:g} the difference is bold, '
    'and the chance that any bold one is none is at most as much. Other seeds '
    'and other prompts are not covered.'
  )


def summary(labels, made: Sequence[compare_lib.Comparison]) -> list[str]:
  """A sentence for each run but the first."""
  lines = []
  for i, label in enumerate(labels[1:]):
    mine = [one.differences[i] for one in made]
    up = sum(each.significant and each.value > 0 for each in mine)
    down = sum(each.significant and each.value < 0 for each in mine)
    rest = len(mine) - up - down
    lines.append(
      f'{label} is better than {labels[0]} in {up} of {len(mine)} tasks, worse '
      f'in {down}; in {rest} the difference may be chance.'
    )
  return lines


def differs(notes: Sequence[str]) -> tuple[str, ...]:
  if not notes:
    return ()
  return tags('h2', 'What differs'), tag('ul', tags('li', *notes))


def section(
  name: str, made: Sequence[compare_lib.Comparison], labels: Sequence[str]
) -> tuple[str, ...]:
  """A set: a table, or heat maps of differences with the table folded."""
  head = tag('h2', html.escape(name), id=name)
  every = table(made, labels)
  pairs = [one for one in made if one.task['source_language']]
  if not len(pairs) == len(made) > eval_page.MANY:
    return head, every
  maps = []
  for i, label in enumerate(labels[1:]):
    cells = {
      (one.task['source_language'], one.task['language']): {
        **dataclasses.asdict(one.differences[i]),
        'sure': one.differences[i].significant,
      }
      for one in made
    }
    title = (
      f'{metrics.get_metric(made[0].metric).title}: {label} against {labels[0]}'
    )
    maps += [tags('h4', title), charts.heat_map(cells, signed=True)]
  folded = tags('summary', f'all {len(made)} directions')
  return head, *maps, tag('details', folded, every)


def table(made: Sequence[compare_lib.Comparison], labels: Sequence[str]) -> str:
  """A row a task, and a mean where all have one metric."""
  ends = [
    abs(x) for one in made for d in one.differences for x in (d.low, d.high)
  ]
  end = max(1.0, max((x for x in ends if x == x), default=1.0))
  tasks = [one.task for one in made]
  rows = [row(one, tasks, end) for one in made]
  if len(made) > 1 and len({one.metric for one in made}) == 1:
    rows.append(mean_row(made))
  names_of = ['task', 'metric', labels[0]]
  for label in labels[1:]:
    names_of += [label, 'difference', f'−{end:.0f} to +{end:.0f}']
    names_of += ['95% interval', 'p', 'p, Holm']
  head = tag('thead', tag('tr', tags('th', *names_of, 'questions')))
  made_of = tag('table', head, tag('tbody', *rows), class_='scores against')
  return tag('div', made_of, class_='wide')


def row(
  one: compare_lib.Comparison, tasks: Iterable[Mapping], end: float
) -> str:
  title = metrics.get_metric(one.metric).title
  cells = [tags('th', eval_page.label(one.task, list(tasks)))]
  cells.append(tags('td', title, number(one.values[0])))
  for value, each in zip(one.values[1:], one.differences):
    text = number(each.value, '+.1f')
    score = dataclasses.asdict(each)
    drawn = difference_bar(score, end) if each.value == each.value else ''
    cells += [
      tags('td', number(value)),
      tag('td', tags('strong', text) if each.significant else text),
      tag('td', drawn),
      tags('td', charts.interval(score), p_text(each.p), p_text(each.adjusted)),
    ]
  cells.append(tags('td', f'{one.questions:,}'))
  return tag('tr', *cells)


def mean_row(made: Sequence[compare_lib.Comparison]) -> str:
  """Means over tasks, which have no interval."""
  columns = np.array([one.values for one in made])
  means = np.nanmean(columns, 0) if not np.isnan(columns).all() else columns[0]
  cells = [tags('th', 'mean'), tags('td', '', number(means[0]))]
  for value in means[1:]:
    change = number(value - means[0], '+.1f')
    cells.append(tags('td', number(value), change, '', '', '', ''))
  return tag('tr', *cells, tags('td', ''), class_='foot')


STYLE = """
.against tbody tr + tr { color: inherit }
.against .foot :is(th, td) { border-top: 1px solid var(--ink);
  padding-top: .3rem }
.runs :is(th, td) { text-align: start }
.runs tbody th { border: 0; padding-top: .2rem }
.runs { margin: 1.5rem 0 1rem }
"""
