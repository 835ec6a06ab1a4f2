"""Compares evaluations, with significance."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atm.evals import bootstrap, metrics

MIN_RESAMPLES = 10_000  # of a paired bootstrap, or more; see `count_resamples`
SIGNIFICANCE = 0.05


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
  def significant(self) -> bool:
    return self.adjusted < SIGNIFICANCE


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


def distinguish_paths(runs: Sequence[str]) -> list[str]:
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
class QuestionGroup:
  """Questions that are judged together: one row of statistics."""

  row: int
  ids: tuple[str, ...]
  truths: str
  prompts: tuple[str, ...]


def index_groups(
  task: Mapping[str, Any],
) -> dict[tuple[str, ...], QuestionGroup]:
  """The groups of a task by the ids of their questions."""
  lines = task['predictions']
  members = collections.defaultdict(list)
  for row, line in zip(
    metrics.group_indices([x['group'] for x in lines]), lines
  ):
    members[int(row)].append(line)
  found = {}
  for row, mine in members.items():
    column = lambda key, mine=mine: tuple(str(line[key]) for line in mine)
    truths = json.dumps([line['truth'] for line in mine], sort_keys=True)
    group = QuestionGroup(row, column('id'), truths, column('prompt_hash'))
    found[group.ids] = group
  return found


def compare_runs(
  every: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> tuple[list[Comparison], list[str]]:
  """All tasks of the first run that the others have, and what differs."""
  found = [{task['name']: task for task in run['tasks']} for run in every]
  said: dict[str, list[str]] = {}
  made = []
  common = [name for name in found[0] if all(name in t for t in found)]
  samples = count_resamples(len(common) * (len(every) - 1))
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
  for each, p in zip(
    every_one, bootstrap.holm_adjust([d.p for d in every_one])
  ):
    each.adjusted = float(p)
  notes = [f'{abbreviate(tasks)}: {note}' for note, tasks in said.items()]
  return made, [*notes, *compare_versions(every, labels)]


def count_resamples(differences: int) -> int:
  """Draws enough for Holm's correction: p is at least 2 / draws, times all."""
  return max(MIN_RESAMPLES, 100 * differences)


def abbreviate(tasks: Sequence[str], most: int = 5) -> str:
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
  groups = [index_groups(task) for task in tasks]
  common = [
    ids
    for ids in groups[0]
    if all(
      ids in other and other[ids].truths == groups[0][ids].truths
      for other in groups
    )
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
      *bootstrap.paired_bootstrap(rows[0], other, total, samples=samples)
    )
    for other in rows[1:]
  ]
  values = [float(total(each.sum(0))) for each in rows]
  count = sum(map(len, common))
  return Comparison(tasks[0], metric, count, values, differences), notes


def describe_differences(tasks, groups, common, labels) -> list[str]:
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


def compare_versions(every, labels) -> list[str]:
  """Versions of what figures depend on, where runs have others."""
  notes = []
  keys = dict.fromkeys(key for run in every for key in run['versions'])
  for key in keys:
    values = [str(run['versions'].get(key, 'none')) for run in every]
    if len(set(values)) > 1:
      each = ', '.join(f'{v} in {label}' for v, label in zip(values, labels))
      notes.append(f'version of {key}: {each}')
  return notes
