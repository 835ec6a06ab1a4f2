"""Compares evaluations: `atm compare` prints a table and writes one HTML page.

  atm compare --gin.RUNS="('runs/a/eval/xnli', 'runs/b/eval/xnli')"

Every run is set against the first, on the questions that all have; a question
is the same where task, id and truth are. Prompts may differ, as with other
shots or another mode, and this is said. Training runs in arms, a dict, are
compared by `arms_page`.
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
from atm.evals.published import SUPERGLUE_METRICS
from atm.messages import (
  check_arguments,
  check_path,
  check_paths,
  check_text,
  quote,
)
from atm.pages import arms_page, eval_page, page_warnings, render
from atm.pages.charts import format_number, format_p_value

COMPARE_PAGE = 'compare.html'


def check_runs(
  name: str, value
) -> tuple[str, ...] | dict[str, tuple[str, ...]] | str:
  """Returns folders to compare: a tuple, a dict by arm, or a file of arms.

  Raises:
    ValueError: it is none of these, an arm is empty, or a folder is in two.
  """
  if isinstance(value, str) and value.endswith(arms_page.RECORDS):
    return check_path(name, value)
  if not isinstance(value, Mapping):
    return check_paths(name, value)
  if not value:
    raise ValueError(f"{name} = {{}}: expected {{'arm': ('runs/a', ...), ...}}")
  arms: dict[str, tuple[str, ...]] = {}
  for arm, folders in value.items():
    arm = check_text(f'{name}: arm', arm, empty=False)
    arms[arm] = check_paths(f'{name}[{quote(arm)}]', folders)
    if not arms[arm]:
      raise ValueError(f'{name}[{quote(arm)}] = (): expected a folder or more')
  every = [os.path.normpath(path) for some in arms.values() for path in some]
  if twice := [path for path in every if every.count(path) > 1]:
    raise ValueError(f'{name} has {quote(twice[0])} twice: expected it once')
  return arms


@check_arguments(
  runs=partial(check_runs, 'RUNS'),
  output=partial(check_path, 'OUTPUT', optional=True),
)
def compare_evaluations(
  runs: Sequence[str] | Mapping[str, Sequence[str]] | str,
  output: str | None = None,
  allow_missing: bool = False,
) -> str:
  """Prints a table of results folders, or of training runs; writes its page.

  Args:
    runs: folders with results.json, two or more; the first is what others are
      set against. Or arms of training runs, see `arms_page.compare_arms`.
    output: the page's path; None: compare.html in the first folder, or beside
      the file of arms.
    allow_missing: compare the tasks that all runs have; else a task that one
      lacks is an error.

  Returns:
    The page's path.

  Raises:
    ValueError: fewer than two folders, they have no question in common, or a
      task is not in all.
    FileNotFoundError: a folder has no results.json.
  """
  if isinstance(runs, Mapping | str):
    return _compare_arms(runs, output)
  if len(runs) < 2:
    raise ValueError(
      f'RUNS = {runs!r}: expected two or more folders, '
      "('runs/a/eval/xnli', 'runs/b/eval/xnli')"
    )
  path = output or os.path.join(runs[0], COMPARE_PAGE)
  read = [os.path.join(run, results.RESULTS_FILE) for run in runs]
  every = [results.read_results(run) for run in runs]
  _check_page(path, read)
  labels = compare_lib.distinguish_paths(runs)
  comparisons, notes = compare_lib.compare_runs(every, labels)
  lacking = compare_lib.find_lacking(every, labels)
  if comparisons and lacking and not allow_missing:
    label, names = next(iter(lacking.items()))
    raise ValueError(
      f'{label} lacks {len(names):,} tasks of the others: '
      f'{compare_lib.abbreviate(names)}. ALLOW_MISSING=True compares what all '
      'have'
    )
  if not comparisons:
    raise ValueError(
      f'RUNS = {runs!r}: no question in common. '
      + ' '.join(f'{note}.' for note in notes)
    )
  rich.console.Console().print(console_table(labels, comparisons))
  data = compare_page_data(labels, every, comparisons, notes)
  return render.write_page(path, 'compare', data)


def _check_page(path: str, inputs: Sequence[str]) -> None:
  """Raises ValueError where no page can be written, see `check_output`."""
  is_page = lambda line: line.lower().startswith(b'<!doctype html')
  # Drawn from what is read, so a page of ours is drawn anew.
  fileio.check_output('OUTPUT', path, inputs, is_page, overwrite=True)


def _compare_arms(
  runs: Mapping[str, Sequence[str]] | str, output: str | None
) -> str:
  """Compares training runs, see `arms_page.compare_arms`."""
  if isinstance(runs, str):
    path = output or os.path.splitext(runs)[0] + '.html'
    _check_page(path, [runs])
    return arms_page.compare_arms(runs, path)
  first = next(iter(runs.values()))[0]
  path = output or os.path.join(first, COMPARE_PAGE)
  _check_page(path, [])
  fileio.check_output(
    'OUTPUT', arms_page.records_path(path), [],
    lambda line: line.startswith(b'{"arm"'), overwrite=True,
  )  # fmt: skip
  return arms_page.compare_arms(runs, path)


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
  count = sum(len(one.differences) for one in comparisons)
  keys = dict.fromkeys(key for run in every for key in run['settings'])
  setting = lambda run, key: str(run['settings'].get(key))
  sets = render.group_by(comparisons, lambda one: one.task['set'])
  sets = [_set_data(name, some) for name, some in sets.items()]
  means = [mean for group in sets for mean in group['means'] or []]
  return {
    'labels': labels,
    'runs': list(zip(labels, every)),
    'settings': [
      key for key in keys if len({setting(run, key) for run in every}) > 1
    ],
    'differences': count,
    'draws': compare_lib.count_resamples(count),
    'significance': compare_lib.SIGNIFICANCE,
    'wins': count_wins(comparisons),
    'warnings': page_warnings.comparison_warnings(every, labels, comparisons),
    'notes': notes,
    'sets': sets,
    'end': _axis_end(means),
  }


def count_wins(
  comparisons: Sequence[compare_lib.Comparison],
) -> list[dict[str, int]]:
  """Returns how many tasks each run but the first does better and worse."""
  counts = []
  for differences in zip(*(one.differences for one in comparisons)):
    signs = [np.sign(d.value) for d in differences if d.significant]
    same = sum(d.value == d.low == d.high == 0 for d in differences)
    counts.append({
      'better': signs.count(1), 'worse': signs.count(-1), 'same': same,
      'tasks': len(differences),
    })  # fmt: skip
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
  mains = {row['metric'] for row in rows}
  title = rows[0]['metric'] if len(mains) == 1 else 'several metrics'
  if {one.task['name']: one.metric for one in comparisons} == SUPERGLUE_METRICS:
    title = eval_page.SUPERGLUE_TITLE
  return {
    'name': name,
    'rows': rows,
    'end': _axis_end([each for row in rows for each in row['differences']]),
    'metric': title,
    'means': (
      None if title == 'several metrics' else _mean_scores(comparisons)
    ),
    'wins': count_wins(comparisons),
    'maps': maps,
  }


def _axis_end(differences: Sequence[Mapping[str, float]]) -> float:
  """Returns the end of an axis from -end to +end that holds all intervals."""
  ends = [abs(each[side]) for each in differences for side in ('low', 'high')]
  return max([1.0, *(end for end in ends if not np.isnan(end))])


def _mean_scores(
  comparisons: Sequence[compare_lib.Comparison],
) -> list[dict[str, float]]:
  """Returns the mean over tasks of each run, and how it differs from the first.

  Means are over the tasks in which every run has a score.
  """
  judged = [one for one in comparisons if not np.isnan(one.values).any()]
  if not judged:
    return [
      dict.fromkeys(('score', 'value', 'low', 'high'), np.nan)
      for _ in comparisons[0].values
    ]
  means = []
  for run, score in enumerate(np.mean([one.values for one in judged], 0)):
    nothing = (0.0, 0.0, 0.0)
    value, low, high = (
      compare_lib.mean_difference(judged, run) if run else nothing
    )
    means.append({
      'score': float(score), 'value': value, 'low': low, 'high': high,
      'sure': round(low, 1) > 0 or round(high, 1) < 0,  # as it is written
    })  # fmt: skip
  return means
