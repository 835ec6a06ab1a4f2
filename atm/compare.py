"""Evaluations beside each other: `atm compare`, a table and one HTML page.

  atm compare --gin.RUNS="('runs/a/eval/xnli', 'runs/b/eval/xnli')"

Every run is set against the first, on the
questions that all have; a question is the same where task, id and truth are.
Prompts may differ, as with other shots or another mode, and this is said.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from atm import results_page, scales, scores
from atm.page import document, tag, tags
from atm.scales import difference_bar, number

PAGE = 'compare.html'
SAMPLES = 10_000  # of a paired bootstrap, or more; see `samples_for`
SURE = 0.05


@dataclasses.dataclass
class Difference:
  """A run against the first on one task.

  Attributes:
    value: theirs minus the first's, in the metric's unit.
    low, high: its 95% interval.
    p: of a paired bootstrap, two-sided.
    adjusted: p after Holm's correction over all differences of a comparison.
  """

  value: float
  low: float
  high: float
  p: float
  adjusted: float = 1.0

  @property
  def sure(self) -> bool:
    return self.adjusted < SURE


@dataclasses.dataclass
class Comparison:
  """One task by its main metric, on the questions all runs have.

  Attributes:
    task: as in the first run's results.json.
    metric: a key of scores.METRICS.
    questions: that are the same.
    values: the score of each run on them.
    differences: of each run but the first.
  """

  task: Mapping[str, Any]
  metric: str
  questions: int
  values: list[float]
  differences: list[Difference]


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
  every = [results_page.read(run) for run in runs]
  made, notes = comparisons(every, names(runs))
  if not made:
    raise ValueError(
      f'RUNS = {runs!r}: no question in common. '
      + ' '.join(f'{note}.' for note in notes)
    )
  rich.console.Console().print(console_table(names(runs), made))
  path = output or os.path.join(runs[0], PAGE)
  with open(path, 'w', encoding='utf-8') as f:
    f.write(page(names(runs), every, made, notes))
  return path


def names(runs: Sequence[str]) -> list[str]:
  """What tells folders apart: 'a' and 'b' of runs/a/eval/x and runs/b/eval/x.

  Whole paths where this is nothing.
  """
  parts = [os.path.normpath(run).split(os.sep) for run in runs]
  shortest = min(map(len, parts))
  same = lambda i: len({part[i] for part in parts}) == 1
  start = next((i for i in range(shortest) if not same(i)), shortest)
  end = next((i for i in range(1, shortest + 1) if not same(-i)), shortest + 1)
  cut = [os.sep.join(part[start : len(part) - end + 1]) for part in parts]
  return cut if len(set(cut)) == len(runs) and all(cut) else list(runs)


# --- What is compared


@dataclasses.dataclass(frozen=True)
class Group:
  """Questions that are judged together: one row of statistics."""

  row: int
  ids: tuple[str, ...]
  truths: str
  prompts: tuple[str, ...]


def groups_of(task: Mapping[str, Any]) -> dict[tuple[str, ...], Group]:
  """The groups of a task by the ids of their questions."""
  lines = task['predictions']
  members = collections.defaultdict(list)
  for row, line in zip(scores.grouping([x['group'] for x in lines]), lines):
    members[int(row)].append(line)
  found = {}
  for row, mine in members.items():
    column = lambda key, mine=mine: tuple(str(line[key]) for line in mine)
    truths = json.dumps([line['truth'] for line in mine], sort_keys=True)
    group = Group(row, column('id'), truths, column('prompt_hash'))
    found[group.ids] = group
  return found


def comparisons(
  every: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> tuple[list[Comparison], list[str]]:
  """All tasks of the first run that the others have, and what differs."""
  found = [{task['name']: task for task in run['tasks']} for run in every]
  said: dict[str, list[str]] = {}
  made = []
  common = [name for name in found[0] if all(name in t for t in found)]
  samples = samples_for(len(common) * (len(every) - 1))
  for name in dict.fromkeys(name for tasks in found for name in tasks):
    lacking = [label for label, t in zip(labels, found) if name not in t]
    if lacking:
      said.setdefault(f'not in {" or ".join(lacking)}', []).append(name)
      continue
    one, differs = compare_task(
      [tasks[name] for tasks in found], labels, samples
    )
    made += [one] if one else []
    for note in differs:
      said.setdefault(note, []).append(name)
  every_one = [each for one in made for each in one.differences]
  for each, p in zip(every_one, scores.holm([d.p for d in every_one])):
    each.adjusted = float(p)
  notes = [f'{listed(tasks)}: {note}' for note, tasks in said.items()]
  return made, [*notes, *versions_differ(every, labels)]


def samples_for(differences: int) -> int:
  """Draws enough for Holm's correction: p is at least 2 / draws, times all."""
  return max(SAMPLES, 100 * differences)


def listed(tasks: Sequence[str], most: int = 5) -> str:
  """Names, of many the first."""
  rest = f' and {len(tasks) - most} more' if len(tasks) > most else ''
  return ', '.join(tasks[:most]) + rest


def compare_task(
  tasks: Sequence[Mapping[str, Any]], labels: Sequence[str], samples: int
) -> tuple[Comparison | None, list[str]]:
  """One task in all runs, None where nothing is common; and what differs."""
  metric = next(iter(tasks[0]['scores']))
  if any(metric not in task['statistics'] for task in tasks):
    return None, [f'{metric} is not in all runs']
  groups = [groups_of(task) for task in tasks]
  common = [
    ids
    for ids in groups[0]
    if all(
      ids in other and other[ids].truths == groups[0][ids].truths
      for other in groups
    )
  ]
  notes = differing(tasks, groups, common, labels)
  if not common:
    return None, notes
  rows = [
    np.array(task['statistics'][metric], np.float64)[
      [mine[ids].row for ids in common]
    ]
    for task, mine in zip(tasks, groups)
  ]
  total = scores.get(metric).total
  differences = [
    Difference(*scores.paired(rows[0], other, total, samples=samples))
    for other in rows[1:]
  ]
  values = [float(total(each.sum(0))) for each in rows]
  count = sum(map(len, common))
  return Comparison(tasks[0], metric, count, values, differences), notes


def differing(tasks, groups, common, labels) -> list[str]:
  """How the runs asked differently, in words."""
  notes = []
  for key in ('mode', 'shots', 'normalize', 'source'):
    values = [str(task[key]) for task in tasks]
    if len(set(values)) > 1:
      each = ', '.join(f'{v} in {label}' for v, label in zip(values, labels))
      notes.append(f'{key}: {each}')
  count = sum(map(len, common))
  for label, task, mine in zip(labels, tasks, groups):
    rest = len(task['predictions']) - count
    if rest:
      notes.append(f'{rest:,} questions of {label} are left out')
    other = sum(mine[ids].prompts != groups[0][ids].prompts for ids in common)
    if other:
      notes.append(f'{label} has other prompts than {labels[0]}')
  return notes


def versions_differ(every, labels) -> list[str]:
  """Versions of what figures depend on, where runs have others."""
  notes = []
  keys = dict.fromkeys(key for run in every for key in run['versions'])
  for key in keys:
    values = [str(run['versions'].get(key, 'none')) for run in every]
    if len(set(values)) > 1:
      each = ', '.join(f'{v} in {label}' for v, label in zip(values, labels))
      notes.append(f'version of {key}: {each}')
  return notes


# --- How it is shown


def p_text(p: float) -> str:
  return f'{p:.3f}' if p >= 0.001 else f'{p:.4f}'


def console_table(
  labels: Sequence[str], made: Sequence[Comparison]
) -> rich.table.Table:
  """Values, differences to the first, and p, for a terminal."""
  escape = rich.markup.escape
  table = rich.table.Table(
    title=f'Against {escape(labels[0])}; p after Holm over '
    f'{sum(len(one.differences) for one in made)} differences, '
    f'bold below {SURE:g}'
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
      cells.append(f'[bold]{text}[/bold]' if each.sure else text)
    title = scores.get(one.metric).title
    table.add_row(escape(one.task['name']), title, *cells)
  return table


def page(
  labels: Sequence[str],
  every: Sequence[Mapping[str, Any]],
  made: Sequence[Comparison],
  notes: Sequence[str],
) -> str:
  """The whole page, which needs no other file."""
  title = ' and '.join(labels)
  sets: dict[str, list[Comparison]] = {}
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
  style = results_page.STYLE
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


def how(labels: Sequence[str], made: Sequence[Comparison]) -> str:
  """How differences are judged, in words."""
  count = sum(len(one.differences) for one in made)
  return (
    f'A difference is that to {labels[0]}, by the main metric of a task, on '
    'the questions all runs have. Its interval holds 95% of the draws of a '
    f'paired bootstrap over questions (Koehn, 2004), {samples_for(count):,} of '
    'them, and p is two-sided. '
    f"Holm's correction is over all {count} differences on this page: where "
    f'it leaves p below {SURE:g} the difference is bold, and the chance that '
    'any bold one is none is at most as much. Other seeds and other prompts '
    'are not covered.'
  )


def summary(labels, made: Sequence[Comparison]) -> list[str]:
  """A sentence for each run but the first."""
  lines = []
  for i, label in enumerate(labels[1:]):
    mine = [one.differences[i] for one in made]
    up = sum(each.sure and each.value > 0 for each in mine)
    down = sum(each.sure and each.value < 0 for each in mine)
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
  name: str, made: Sequence[Comparison], labels: Sequence[str]
) -> tuple[str, ...]:
  """A set: a table, or heat maps of differences with the table folded."""
  head = tag('h2', html.escape(name), id=name)
  every = table(made, labels)
  pairs = [one for one in made if one.task['source_language']]
  if not len(pairs) == len(made) > results_page.MANY:
    return head, every
  maps = []
  for i, label in enumerate(labels[1:]):
    cells = {
      (one.task['source_language'], one.task['language']): {
        **dataclasses.asdict(one.differences[i]),
        'sure': one.differences[i].sure,
      }
      for one in made
    }
    title = f'{scores.get(made[0].metric).title}: {label} against {labels[0]}'
    maps += [tags('h4', title), scales.heat_map(cells, signed=True)]
  folded = tags('summary', f'all {len(made)} directions')
  return head, *maps, tag('details', folded, every)


def table(made: Sequence[Comparison], labels: Sequence[str]) -> str:
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


def row(one: Comparison, tasks: Iterable[Mapping], end: float) -> str:
  title = scores.get(one.metric).title
  cells = [tags('th', results_page.label(one.task, list(tasks)))]
  cells.append(tags('td', title, number(one.values[0])))
  for value, each in zip(one.values[1:], one.differences):
    text = number(each.value, '+.1f')
    score = dataclasses.asdict(each)
    drawn = difference_bar(score, end) if each.value == each.value else ''
    cells += [
      tags('td', number(value)),
      tag('td', tags('strong', text) if each.sure else text),
      tag('td', drawn),
      tags('td', scales.interval(score), p_text(each.p), p_text(each.adjusted)),
    ]
  cells.append(tags('td', f'{one.questions:,}'))
  return tag('tr', *cells)


def mean_row(made: Sequence[Comparison]) -> str:
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
