"""Compares evaluations on their common questions, with significance."""

import collections
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atm.evals import bootstrap, metrics

MIN_RESAMPLES = 10_000  # of a paired bootstrap; see `count_resamples`
SIGNIFICANCE = 0.05  # the level of a test after Holm's correction


@dataclasses.dataclass
class Difference:
  """The difference of a run to the first on one task.

  Attributes:
    value, low, high: the score minus the first's, with its 95% interval.
    p: of a paired bootstrap, two-sided.
    adjusted: p after Holm's correction over all differences of a comparison.
  """

  value: float
  low: float
  high: float
  p: float
  adjusted: float = 1.0

  @property
  def significant(self) -> bool:
    return self.adjusted < SIGNIFICANCE


@dataclasses.dataclass
class Comparison:
  """Scores of several runs on one task, on the questions common to all.

  Attributes:
    task: as in the first run's results.json.
    metric: the task's main one, a key of metrics.METRICS.
    questions: how many are common.
    values: the score of each run.
    differences: of each run but the first.
    statistics: of each run, rows [G, M] of the common questions, see
      `metrics.Metric`.
  """

  task: Mapping[str, Any]
  metric: str
  questions: int
  values: list[float]
  differences: list[Difference]
  statistics: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class QuestionGroup:
  """Questions that are judged together: one row of statistics."""

  row: int
  truths: str
  prompts: tuple[str, ...]


def distinguish_paths(runs: Sequence[str]) -> list[str]:
  """Returns the parts in which paths differ: 'a', 'b' of runs/a/x, runs/b/x."""
  parts = [os.path.normpath(run).split(os.sep) for run in runs]
  shortest = min(map(len, parts))
  same = lambda i: len({part[i] for part in parts}) == 1
  start = next((i for i in range(shortest) if not same(i)), shortest)
  end = next((i for i in range(1, shortest + 1) if not same(-i)), shortest + 1)
  cut = [os.sep.join(part[start : len(part) - end + 1]) for part in parts]
  # Whole paths where the parts are nothing, or do not tell them apart.
  return cut if len(set(cut)) == len(runs) and all(cut) else list(runs)


def compare_runs(
  runs: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> tuple[list[Comparison], list[str]]:
  """Returns tasks common to several results.json, and notes on what differs."""
  by_name = [{task['name']: task for task in run['tasks']} for run in runs]
  common = [name for name in by_name[0] if all(name in t for t in by_name)]
  samples = count_resamples(len(common) * (len(runs) - 1))
  notes: dict[str, list[str]] = {}  # note -> the tasks it is about
  comparisons = []
  for name in dict.fromkeys(name for tasks in by_name for name in tasks):
    if lacking := [k for k, tasks in zip(labels, by_name) if name not in tasks]:
      notes.setdefault(f'not in {" or ".join(lacking)}', []).append(name)
      continue
    comparison, differences = compare_task(
      [tasks[name] for tasks in by_name], labels, samples
    )
    comparisons += [comparison] if comparison else []
    for note in differences:
      notes.setdefault(note, []).append(name)
  every = [each for one in comparisons for each in one.differences]
  for each, p in zip(every, bootstrap.holm_adjust([each.p for each in every])):
    each.adjusted = float(p)
  lines = [f'{abbreviate(names)}: {note}' for note, names in notes.items()]
  versions = [run['versions'] for run in runs]
  for key in dict.fromkeys(key for found in versions for key in found):
    values = [found.get(key, 'none') for found in versions]
    lines += _describe_values(f'version of {key}', values, labels)
  return comparisons, lines


def find_lacking(
  runs: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> dict[str, list[str]]:
  """Returns label -> tasks that others of several results.json have, not it."""
  names = [[task['name'] for task in run['tasks']] for run in runs]
  every = dict.fromkeys(name for some in names for name in some)
  lacking = {
    label: [name for name in every if name not in some]
    for label, some in zip(labels, names)
  }
  return {label: some for label, some in lacking.items() if some}


def count_resamples(differences: int) -> int:
  """Returns how many draws Holm's correction of so many differences needs."""
  # p is at least 2 / draws, and is multiplied by up to their number.
  return max(MIN_RESAMPLES, 100 * differences)


def abbreviate(names: Sequence[str], most: int = 5) -> str:
  """Lists names, of many the first and how many more there are."""
  rest = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + rest


def index_groups(task: Mapping) -> dict[tuple[str, ...], QuestionGroup]:
  """Returns the groups of a task by the ids of their questions."""
  lines = task['predictions']
  members = collections.defaultdict(list)
  rows = metrics.group_indices([line['group'] for line in lines])
  for row, line in zip(rows.tolist(), lines):
    members[row].append(line)
  groups = {}
  for row, mine in members.items():
    ids = tuple(str(line['id']) for line in mine)
    prompts = tuple(str(line['prompt_hash']) for line in mine)
    truths = json.dumps([line['truth'] for line in mine], sort_keys=True)
    groups[ids] = QuestionGroup(row, truths, prompts)
  return groups


def compare_task(
  tasks: Sequence[Mapping[str, Any]], labels: Sequence[str], samples: int
) -> tuple[Comparison | None, list[str]]:
  """Compares one task in several runs: (None if nothing is common, notes)."""
  metric = next(iter(tasks[0]['scores']))
  if any(metric not in task['statistics'] for task in tasks):
    return None, [f'{metric} is not in all runs']
  groups = [index_groups(task) for task in tasks]
  common = [
    ids
    for ids, group in groups[0].items()
    if all(ids in g and g[ids].truths == group.truths for g in groups)
  ]
  notes = describe_differences(tasks, groups, common, labels)
  if not common:
    return None, notes
  rows = [
    np.array(task['statistics'][metric], np.float64)[
      [mine[ids].row for ids in common]
    ]
    for task, mine in zip(tasks, groups)
  ]
  total = metrics.get_metric(metric).total
  differences = [
    Difference(
      *bootstrap.paired_bootstrap(rows[0], row, total, samples=samples)
    )
    for row in rows[1:]
  ]
  values = [float(total(each.sum(0))) for each in rows]
  count = sum(map(len, common))
  found = Comparison(tasks[0], metric, count, values, differences, rows)
  return found, notes


def mean_difference(
  comparisons: Sequence[Comparison], run: int
) -> tuple[float, float, float]:
  """Returns (value, low, high) of a run's mean over tasks minus the first's.

  Args:
    comparisons: of one metric, one or more.
    run: its index, from 1.
  """
  if len(comparisons) == 1:
    only = comparisons[0].differences[run - 1]
    return only.value, only.low, only.high
  parts = []
  for one in comparisons:
    first, other = one.statistics[0], one.statistics[run]
    total, width = metrics.get_metric(one.metric).total, first.shape[1]
    change = lambda sums, total=total, width=width: (
      total(sums[..., width:]) - total(sums[..., :width])
    )
    parts.append((np.concatenate([first, other], 1), change))
  return bootstrap.mean_interval(parts)


def describe_differences(tasks, groups, common, labels) -> list[str]:
  """Describes how settings, questions and prompts of a task differ."""
  notes = []
  for key in ('mode', 'shots', 'normalize', 'source'):
    notes += _describe_values(key, [task[key] for task in tasks], labels)
  references = list(map(_describe_references, tasks))
  notes += _describe_values('references', references, labels)
  count = sum(map(len, common))
  for label, task, mine in zip(labels, tasks, groups):
    if rest := len(task['predictions']) - count:
      notes.append(f'{rest:,} questions of {label} are left out')
    if any(mine[ids].prompts != groups[0][ids].prompts for ids in common):
      notes.append(f'{label} has other prompts than {labels[0]}')
  return notes


def _describe_references(task: Mapping) -> str:
  """Describes what a task's answers were compared with."""
  # Results without counts are of choices, or of a version that compared with
  # the data set's own texts, which a model cannot always write.
  counts = task.get('references')
  if counts is None:
    return 'as in the data set'
  changed, unknown = counts['changed'], counts['unknown']
  return (
    f'as the tokenizer writes them ({changed:,} changed, {unknown:,} with '
    'unknown characters)'
  )


def _describe_values(key: str, values, labels: Sequence[str]) -> list[str]:
  """Returns a note with the value of each run, or none where all are equal."""
  if len(set(map(str, values))) == 1:
    return []
  each = ', '.join(f'{v} in {label}' for v, label in zip(values, labels))
  return [f'{key}: {each}']
