"""Compares evaluations: `atm compare` prints a table and writes one HTML page.

  atm compare --gin.RUNS="('runs/a/eval/xnli', 'runs/b/eval/xnli')"

Every run is set against the first, on the questions that all have; a question
is the same where task, id and truth are. Prompts may differ, as with other
shots or another mode, and this is said.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from atm import fileio
from atm.evals import compare as compare_lib
from atm.evals import metrics, results
from atm.messages import check_arguments, check_path, check_paths
from atm.pages import eval_page, render
from atm.pages.charts import format_number, format_p_value

COMPARE_PAGE = 'compare.html'


@check_arguments(
  runs=partial(check_paths, 'RUNS'),
  output=partial(check_path, 'OUTPUT', optional=True),
)
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
  if len(runs) < 2:
    raise ValueError(
      f'RUNS = {runs!r}: expected two or more folders, '
      "('runs/a/eval/xnli', 'runs/b/eval/xnli')"
    )
  path = output or os.path.join(runs[0], COMPARE_PAGE)
  read = [os.path.join(run, results.RESULTS_FILE) for run in runs]
  every = [results.read_results(run) for run in runs]
  is_page = lambda line: line.lower().startswith(b'<!doctype html')
  # Drawn from what is read, so a page of ours is drawn anew.
  fileio.check_output('OUTPUT', path, read, is_page, overwrite=True)
  labels = compare_lib.distinguish_paths(runs)
  comparisons, notes = compare_lib.compare_runs(every, labels)
  if not comparisons:
    raise ValueError(
      f'RUNS = {runs!r}: no question in common. '
      + ' '.join(f'{note}.' for note in notes)
    )
  rich.console.Console().print(console_table(labels, comparisons))
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
    cells = [format_number(one.values[0])]
    for value, each in zip(one.values[1:], one.differences):
      change = format_number(each.value, '+.1f')
      p = format_p_value(each.adjusted)
      text = f'{format_number(value)} ({change}, p {p})'
      cells.append(f'[bold]{text}[/bold]' if each.significant else text)
    title = metrics.get_metric(one.metric).title
    table.add_row(escape(one.task['name']), title, *cells)
  return table


# --- The page


def compare_page_data(
  labels: Sequence[str],
  every: Sequence[Mapping[str, Any]],
  comparisons: Sequence[compare_lib.Comparison],
  notes: Sequence[str],
) -> dict[str, Any]:
  """Returns what the page shows of `every` results.json, by their labels."""
  sets = render.group_by(comparisons, lambda one: one.task['set'])
  count = sum(len(one.differences) for one in comparisons)
  keys = dict.fromkeys(key for run in every for key in run['settings'])
  setting = lambda run, key: str(run['settings'].get(key))
  return {
    'labels': labels,
    'runs': list(zip(labels, every)),
    'settings': [
      key for key in keys if len({setting(run, key) for run in every}) > 1
    ],
    'differences': count,
    'draws': compare_lib.count_resamples(count),
    'significance': compare_lib.SIGNIFICANCE,
    'wins': _count_wins(comparisons),
    'notes': notes,
    'sets': [_set_data(name, some) for name, some in sets.items()],
  }


def _count_wins(
  comparisons: Sequence[compare_lib.Comparison],
) -> list[dict[str, int]]:
  """Returns how many tasks each run but the first does better and worse."""
  counts = []
  for differences in zip(*(one.differences for one in comparisons)):
    signs = [np.sign(d.value) for d in differences if d.significant]
    counts.append({'better': signs.count(1), 'worse': signs.count(-1),
                   'tasks': len(differences)})  # fmt: skip
  return counts


def _set_data(
  name: str, comparisons: Sequence[compare_lib.Comparison]
) -> dict[str, Any]:
  """Returns a set's table, and of many directions heat maps of differences."""
  tasks = [one.task for one in comparisons]
  rows = [
    {
      'label': eval_page.task_label(one.task, tasks),
      'metric': metrics.get_metric(one.metric).title,
      'scores': one.values,
      'differences': [
        {**dataclasses.asdict(each), 'sure': each.significant}
        for each in one.differences
      ],
      'questions': one.questions,
    }
    for one in comparisons
  ]
  maps = []
  if eval_page.are_many_directions(tasks):
    pairs = [(task['source_language'], task['language']) for task in tasks]
    by_run = zip(*(row['differences'] for row in rows))
    maps = [dict(zip(pairs, differences)) for differences in by_run]
  differences = [each for row in rows for each in row['differences']]
  ends = [abs(each[side]) for each in differences for side in ('low', 'high')]
  same_metric = len(rows) > 1 and len({row['metric'] for row in rows}) == 1
  return {
    'name': name,
    'rows': rows,
    'end': max([1.0, *(end for end in ends if not np.isnan(end))]),
    'means': _mean_scores(comparisons) if same_metric else None,
    'maps': maps,
  }


def _mean_scores(comparisons: Sequence[compare_lib.Comparison]) -> np.ndarray:
  """Returns the mean over tasks of each run's scores [runs]."""
  scores = np.array([one.values for one in comparisons])
  return np.nanmean(scores, 0) if not np.isnan(scores).all() else scores[0]
