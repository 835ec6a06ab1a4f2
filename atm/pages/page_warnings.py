"""Lists what a reader must know before the figures of a page.

Each warning is a sentence; pages show them above everything else.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from atm.evals.compare import Comparison, abbreviate
from atm.pages.charts import is_missing
from atm.train import host_times

FEW_QUESTIONS = 100  # a task with fewer has wide intervals
OVERFIT = 1.02  # times the lowest held-out loss
MANY_UNKNOWN = 0.1  # of references, whose characters a vocabulary lacks


def training_warnings(
  rows: Sequence[Mapping[str, Any]],
  losses: Mapping[str, Mapping[str, Any]],
  steps: int | None,
) -> list[str]:
  """Returns warnings about a training run.

  Args:
    rows: of metrics.jsonl.
    losses: by objective, see `train_page.held_out_losses`.
    steps: of the whole run, None if not known.
  """
  warnings, step = [], rows[-1]['step']
  if steps and step < steps:
    warnings.append(
      f'The run is at step {step:,} of {steps:,}: it has not finished.'
    )
  if not losses:
    warnings.append(
      'No held-out loss: the training loss alone does not tell what was '
      'learned.'
    )
  trained = [row['loss'] for row in rows if row.get('loss') is not None]
  if trained and not math.isfinite(trained[-1]):
    warnings.append(f'The training loss is not finite at step {step:,}.')
  if skipped := sum(row.get('skipped') or 0 for row in rows):
    warnings.append(
      f'{skipped:,.0f} updates were skipped: loss or gradient was not finite.'
    )
  for name, loss in losses.items():
    warnings += _loss_warnings(name, loss, rows)
  return warnings


def host_warnings(lines: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns warnings about hosts that others waited for.

  Args:
    lines: of goodput.jsonl.
  """
  return [
    f'Steps {first:,} to {last:,}: {text}.'
    for first, last, text in host_times.list_slow(lines)
  ]


def _loss_warnings(
  name: str, loss: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
  """Returns warnings about the held-out loss of one objective."""
  warnings, last, unigram = [], loss['last'], loss['unigram']
  if unigram is not None and not last < unigram:
    warnings.append(
      f'{name}: the held-out loss of {last:.3f} is not below the '
      f'{unigram:.3f} of a unigram model.'
    )
  key = f'eval/loss/{name}'
  found = [(row[key], row['step']) for row in rows if row.get(key) is not None]
  lowest, step = min(found)
  if last > OVERFIT * lowest:
    warnings.append(
      f'{name}: the held-out loss was lowest at step {step:,} with '
      f'{lowest:.3f}, and rose to {last:.3f}.'
    )
  return warnings


def eval_warnings(results: Mapping[str, Any]) -> list[str]:
  """Returns warnings about an evaluation, given its results.json."""
  tasks = results['tasks']
  few = [task for task in tasks if task['questions'] < FEW_QUESTIONS]
  return _run_warnings(results) + _few_questions(
    len(few), len(tasks), [next(iter(task['scores'].values())) for task in few]
  )


def _run_warnings(results: Mapping[str, Any]) -> list[str]:
  """Returns warnings about what was not evaluated, or not as it should be."""
  tasks, missing, warnings = results['tasks'], results['missing'], []
  if missing:
    warnings.append(
      f'Incomplete: {len(missing):,} of {len(missing) + len(tasks):,} tasks '
      'were not evaluated, as data is missing: '
      f'{abbreviate([each["name"] for each in missing])}.'
    )
  elif not tasks:
    warnings.append('No task was evaluated.')
  sets: dict[str, list[Mapping]] = {}
  for task in tasks:
    sets.setdefault(task['set'], []).append(task)
  for name, some in sets.items():
    warnings += _set_warnings(name, some)
  return warnings


def _set_warnings(name: str, tasks: Sequence[Mapping]) -> list[str]:
  """Returns warnings about the prompts and references of one set."""
  warnings = []
  count = sum(task['questions'] for task in tasks)
  if cut := sum(task.get('cut', 0) for task in tasks):
    few = 'all' if cut == count else f'{cut:,} of'
    sides = dict.fromkeys(task.get('truncate', 'start') for task in tasks)
    warnings.append(
      f'{name}: {few} {count:,} prompts are longer than the model reads and '
      f'were cut at the {" or ".join(sides)}. Scores of cut prompts say little.'
    )
  counts = [task for task in tasks if task.get('references')]
  total = sum(task['questions'] for task in counts)
  unknown = sum(task['references']['unknown'] for task in counts)
  if unknown > MANY_UNKNOWN * total:
    warnings.append(
      f'{name}: {unknown:,} of {total:,} references have characters that the '
      'vocabulary lacks.'
    )
  return warnings


def _few_questions(
  few: int, count: int, figures: Sequence[Mapping[str, Any]]
) -> list[str]:
  """Returns a warning about tasks with few questions and their intervals."""
  if not few:
    return []
  widths = [
    (each['high'] - each['low']) / 2
    for each in figures
    if not is_missing(each['low']) and not is_missing(each['high'])
  ]
  text = f'Few questions: {few:,} of {count:,} tasks have fewer than '
  text += f'{FEW_QUESTIONS}'
  if widths:
    text += f'; their 95% intervals reach ±{max(widths):.1f} points'
  return [f'{text}.']


def comparison_warnings(
  runs: Sequence[Mapping[str, Any]],
  labels: Sequence[str],
  comparisons: Sequence[Comparison],
) -> list[str]:
  """Returns warnings about evaluations, each with the runs it is about."""
  owners: dict[str, list[str]] = {}
  for label, run in zip(labels, runs):
    for warning in _run_warnings(run):
      owners.setdefault(warning, []).append(label)
  every = len(labels)
  warnings = [
    f'{"All runs" if len(who) == every else ", ".join(who)}: {warning}'
    for warning, who in owners.items()
  ]
  few = [one for one in comparisons if one.questions < FEW_QUESTIONS]
  return warnings + _few_questions(
    len(few), len(comparisons),
    [dataclasses.asdict(d) for one in few for d in one.differences],
  )  # fmt: skip
