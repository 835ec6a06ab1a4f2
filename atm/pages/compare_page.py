"""Compares evaluations: `atm compare` prints a table and writes one HTML page.

  atm compare --gin.RUNS="('runs/a/eval/xnli', 'runs/b/eval/xnli')"

Every run is set against the first, on the questions that all have; a question
is the same where task, id and truth are. Prompts may differ, as with other
shots or another mode, and this is said.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from atm.evals import compare as compare_lib
from atm.evals import metrics, results
from atm.pages import charts, eval_page, render
from atm.pages.charts import format_interval, format_number

COMPARE_PAGE = 'compare.html'


def compare_evaluations(runs: Sequence[str], output: str | None = None) -> str:
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
  labels = compare_lib.distinguish_paths(runs)
  comparisons, notes = compare_lib.compare_runs(every, labels)
  if not comparisons:
    raise ValueError(
      f'RUNS = {runs!r}: no question in common. '
      + ' '.join(f'{note}.' for note in notes)
    )
  rich.console.Console().print(console_table(labels, comparisons))
  path = output or os.path.join(runs[0], COMPARE_PAGE)
  data = compare_page_data(labels, every, comparisons, notes)
  return render.write_page(path, 'compare', data)


def console_table(
  labels: Sequence[str], comparisons: Sequence[compare_lib.Comparison]
) -> rich.table.Table:
  """Returns values, differences to the first, and p, for a terminal."""
  escape = rich.markup.escape
  table = rich.table.Table(
    title=f'Against {escape(labels[0])}; p after Holm over '
    f'{sum(len(one.differences) for one in comparisons)} differences, '
    f'bold below {compare_lib.SIGNIFICANCE:g}'
  )
  for name in ('task', 'metric'):
    table.add_column(name)
  for label in labels:
    table.add_column(escape(label), justify='right')
  for one in comparisons:
    row = _table_row(one, escape(one.task['name']), 1.0)
    cells = [
      f'{cell["score"]} ({cell["difference"]}, p {cell["holm"]})'
      for cell in row['runs']
    ]
    cells = [
      f'[bold]{text}[/bold]' if cell['sure'] else text
      for text, cell in zip(cells, row['runs'])
    ]
    table.add_row(row['task'], row['metric'], row['first'], *cells)
  return table


# --- The page


def compare_page_data(
  labels: Sequence[str],
  every: Sequence[Mapping[str, Any]],
  comparisons: Sequence[compare_lib.Comparison],
  notes: Sequence[str],
) -> dict[str, Any]:
  """Returns what the page shows.

  Args:
    labels: a name for each run.
    every: results.json of each run.
    comparisons: of each task that all runs have.
    notes: how the runs differ.
  """
  sets: dict[str, list[compare_lib.Comparison]] = {}
  for one in comparisons:
    sets.setdefault(one.task['set'], []).append(one)
  count = sum(len(one.differences) for one in comparisons)
  return {
    'name': ' and '.join(labels),
    'labels': labels,
    'runs': _runs_table(labels, every),
    'differences': count,
    'draws': f'{compare_lib.count_resamples(count):,}',
    'sure': f'{compare_lib.SIGNIFICANCE:g}',
    'summary': _summary(labels, comparisons),
    'notes': notes,
    'sets': [_set_data(name, some, labels) for name, some in sets.items()],
  }


def _runs_table(labels, every) -> dict[str, Any]:
  """Returns what each run is, with the settings that differ among them."""
  keys = dict.fromkeys(key for run in every for key in run['settings'])
  setting = lambda run, key: str(run['settings'].get(key))
  apart = [k for k in keys if len({setting(run, k) for run in every}) > 1]
  rows = [
    [label, run['suite'], run['model_dir'], f'{run["step"]:,}',
     f'{run["parameters"]:,}', *(setting(run, key) for key in apart)]
    for label, run in zip(labels, every)
  ]  # fmt: skip
  return {
    'columns': ['run', 'suite', 'model', 'step', 'parameters', *apart],
    'rows': rows,
  }


def _summary(
  labels, comparisons: Sequence[compare_lib.Comparison]
) -> list[str]:
  """Returns a sentence for each run but the first."""
  lines = []
  for i, label in enumerate(labels[1:]):
    mine = [one.differences[i] for one in comparisons]
    up = sum(each.significant and each.value > 0 for each in mine)
    down = sum(each.significant and each.value < 0 for each in mine)
    rest = len(mine) - up - down
    lines.append(
      f'{label} is better than {labels[0]} in {up} of {len(mine)} tasks, worse '
      f'in {down}; in {rest} the difference may be chance.'
    )
  return lines


def _set_data(
  name: str,
  comparisons: Sequence[compare_lib.Comparison],
  labels: Sequence[str],
) -> dict[str, Any]:
  """Returns a set's table, and of many directions heat maps of differences."""
  tasks = [one.task for one in comparisons]
  directions = [task for task in tasks if task['source_language']]
  maps = []
  if len(directions) == len(tasks) > eval_page.MANY_DIRECTIONS:
    title = metrics.get_metric(comparisons[0].metric).title
    maps = [
      (f'{title}: {label} against {labels[0]}', _heat_map(comparisons, i))
      for i, label in enumerate(labels[1:])
    ]
  ends = [
    abs(x)
    for one in comparisons
    for each in one.differences
    for x in (each.low, each.high)
    if not np.isnan(x)
  ]
  end = max(1.0, max(ends, default=1.0))
  rows = [
    _table_row(one, eval_page.task_label(one.task, tasks), end)
    for one in comparisons
  ]
  one_metric = len({one.metric for one in comparisons}) == 1
  return {
    'name': name,
    'maps': maps,
    'end': f'{end:.0f}',
    'rows': rows,
    'foot': _mean_row(comparisons) if len(rows) > 1 and one_metric else None,
  }


def _heat_map(
  comparisons: Sequence[compare_lib.Comparison], i: int
) -> dict[str, Any]:
  """Returns the heat map of a run's i-th differences."""
  cells = {}
  for one in comparisons:
    each = one.differences[i]
    pair = one.task['source_language'], one.task['language']
    cells[pair] = {**dataclasses.asdict(each), 'sure': each.significant}
  return charts.heat_map(cells, signed=True)


def _table_row(
  one: compare_lib.Comparison, label: str, end: float
) -> dict[str, Any]:
  """Returns the cells of a task, its bars on an axis from -end to +end."""
  p_text = lambda p: f'{p:.3f}' if p >= 0.001 else f'{p:.4f}'
  runs = []
  for value, each in zip(one.values[1:], one.differences):
    score = dataclasses.asdict(each)
    there = not charts.is_missing(each.value)
    runs.append(
      {
        'score': format_number(value),
        'difference': format_number(each.value, '+.1f'),
        'sure': each.significant,
        'bar': charts.difference_bar(score, end) if there else None,
        'interval': format_interval(score),
        'p': p_text(each.p),
        'holm': p_text(each.adjusted),
      }
    )
  return {
    'task': label,
    'metric': metrics.get_metric(one.metric).title,
    'first': format_number(one.values[0]),
    'runs': runs,
    'questions': f'{one.questions:,}',
  }


def _mean_row(
  comparisons: Sequence[compare_lib.Comparison],
) -> dict[str, Any]:
  """Returns the means over tasks, which have no interval."""
  columns = np.array([one.values for one in comparisons])
  means = np.nanmean(columns, 0) if not np.isnan(columns).all() else columns[0]
  empty = dict.fromkeys(('bar', 'interval', 'p', 'holm'), '')
  runs = [
    {
      'score': format_number(value),
      'difference': format_number(value - means[0], '+.1f'),
      'sure': False,
      **empty,
    }
    for value in means[1:]
  ]
  first = format_number(means[0])
  return dict(task='mean', metric='', first=first, runs=runs, questions='')
