"""Charts of what training runs in arms answer, by shots and by FLOPs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from atm.evals import arms as arms_lib
from atm.evals.arms import Estimate
from atm.pages import render
from atm.pages.arm_charts import (
  ArmFigure,
  Arms,
  describe_seeds,
  format_estimate,
  scale_flops,
)
from atm.pages.arm_records import unpack_right

MOST_TASKS = 8  # of a set that have a figure each
FLOPS_APART = 0.02  # of arms that are compared at equal compute

Scores = list[np.ndarray]  # of tasks, see `arms.estimate_mean`


def collect_scores(arms: Arms) -> dict[tuple, dict[str, dict]]:
  """Returns the answers of arms whose runs all have them.

  Returns:
    {(set, task, mode): {arm: {(shots, k): (flops, scores [seeds, questions],
    entry)}}}, where k counts the evaluations of a run from the last, -1.

  Raises:
    ValueError: a task was asked other questions in one run than in another.
  """
  found: dict[tuple, dict[str, dict]] = {}
  asked: dict[tuple, str] = {}  # of each task
  for arm, mine in arms.items():
    by_run = [_index_entries(run) for run in mine]
    for key in by_run[0]:
      if not all(key in each for each in by_run):
        continue
      entries = [each[key] for each in by_run]
      *task, shots, k = key
      flops = float(np.mean([entry['flops'] for entry in entries]))
      asked.setdefault((*task,), entries[0]['asked'])
      if {entry['asked'] for entry in entries} != {asked[(*task,)]}:
        raise ValueError(
          f'{task[1]} with {shots} shots was asked other questions in {arm} '
          'than elsewhere: expected the same SEED and LIMIT of `atm eval`'
        )
      scores = np.array([unpack_right(entry) for entry in entries])
      found.setdefault(tuple(task), {}).setdefault(arm, {})[shots, k] = (
        flops, scores, entries[0]
      )  # fmt: skip
  return found


def _index_entries(run: Mapping[str, Any]) -> dict[tuple, Mapping]:
  """Returns a run's evaluations by (set, task, mode, shots, k)."""
  steps = sorted({entry['step'] for entry in run['evaluations']})
  k = {step: i - len(steps) for i, step in enumerate(steps)}
  return {
    (e['set'], e['task'], e['mode'], e['shots'], k[e['step']]): e
    for e in run['evaluations']
  }


def score_figures(arms: Arms, by: str) -> list[ArmFigure]:
  """Returns figures of sets of tasks, and of each task of a small set.

  Args:
    arms: the runs.
    by: 'shots', of the last evaluation, or 'flops', with the most shots.
  """
  found = collect_scores(arms)
  modes = {mode for _, _, mode in found}
  # A set may have tasks to choose and tasks to write: other chances.
  metric = lambda key: _any_entry(found[key])['metric']
  sets = render.group_by(found, lambda key: (key[0], metric(key), key[2]))
  figures = []
  for (name, _, mode), keys in sets.items():
    suffix = f' ({mode})' if len(modes) > 1 else ''
    groups = [(f'{name}: mean of {len(keys)} tasks', keys)]
    if len(keys) == 1:
      groups = [(keys[0][1], keys)]
    elif len(keys) <= MOST_TASKS:
      groups += [(key[1], [key]) for key in keys]
    for caption, some in groups:
      figure = _score_figure(
        arms, caption + suffix, [found[key] for key in some], by
      )
      part = len(some) < len(keys)
      figures += [dataclasses.replace(figure, main=not part)] if figure else []
  return figures


def _score_figure(
  arms: Arms, caption: str, tasks: list[dict[str, dict]], by: str
) -> ArmFigure | None:
  """Returns the figure of the mean over tasks; None with fewer than two x."""
  keys = {
    arm: {key for key in tasks[0][arm] if all(key in t[arm] for t in tasks)}
    for arm in arms
    if all(arm in task for task in tasks)
  }
  shots = [{shots for shots, _ in mine} for mine in keys.values()]
  most = max(set.intersection(*shots), default=None) if shots else None
  place = _places_by_flops(tasks[0], keys) if by == 'flops' else None
  scores = {
    arm: {
      (place[arm, key] if place else key[0]): [t[arm][key][1] for t in tasks]
      for key in sorted(mine)
      if (key[0] == most if by == 'flops' else key[1] == -1)
    }
    for arm, mine in keys.items()
  }
  scores = {arm: mine for arm, mine in scores.items() if mine}
  if not any(len(mine) > 1 for mine in scores.values()):
    return None
  points = {
    arm: [(x, _estimate_share(each)) for x, each in mine.items()]
    for arm, mine in scores.items()
  }
  levels = _find_levels(tasks, by, most)
  differences = _differences(next(iter(arms)), scores)
  ends = 'at the end' if most is None else f'with {most} shots'
  sentences = _describe_scores(
    arms, scores, differences, levels, None if by == 'shots' else ends
  )
  end = max(x for mine in scores.values() for x in mine)
  scale, x = (1.0, 'shots') if by == 'shots' else scale_flops(end)
  return ArmFigure(
    caption, x, '% of questions answered right', points, differences, levels,
    '.1f', sentences, scale, percent=True, whole=by == 'shots',
  )  # fmt: skip


def _find_levels(
  tasks: list[dict[str, dict]], by: str, most: int | None
) -> dict[str, float | dict[float, float]]:
  """Returns the chance of tasks, and what their prompts allow by shots."""
  levels = {}
  chances = [_any_entry(task)['chance'] for task in tasks]
  if None not in chances:
    levels['chance'] = float(np.mean(chances))
  oracles: dict[int, list[float]] = {}
  for task in tasks:
    known = {
      shots: entry['oracle']
      for mine in task.values()
      for (shots, _), (_, _, entry) in mine.items()
      if 'oracle' in entry
    }
    for shots, oracle in known.items():
      oracles.setdefault(shots, []).append(oracle)
  oracle = {
    float(shots): float(np.mean(values))
    for shots, values in sorted(oracles.items())
    if len(values) == len(tasks)
  }
  if by == 'flops' and most in oracle:
    levels['oracle'] = oracle[most]
  elif by == 'shots' and oracle:
    levels['oracle'] = oracle
  return levels


def _places_by_flops(
  task: Mapping[str, dict], keys: Mapping[str, set]
) -> dict[tuple, float]:
  """Returns the FLOPs of evaluations by (arm, key): one x for equal compute."""
  places = {}
  for key in set().union(*keys.values()):
    flops = {arm: task[arm][key][0] for arm in keys if key in keys[arm]}
    if max(flops.values()) <= (1 + FLOPS_APART) * min(flops.values()):
      flops = dict.fromkeys(flops, float(np.mean([*flops.values()])))
    places |= {(arm, key): x for arm, x in flops.items()}
  return places


def _estimate_share(tasks: Scores) -> Estimate:
  """Estimates a mean score, whose interval ends at 0 and at 100."""
  mean = arms_lib.estimate_mean(tasks)
  ends = np.clip([mean.low, mean.high], 0, 100)  # nan stays nan
  return Estimate(mean.value, *map(float, ends))


def _any_entry(task: Mapping[str, dict]) -> Mapping[str, Any]:
  """Returns one of the evaluations of a task of `collect_scores`."""
  return next(iter(next(iter(task.values())).values()))[2]


def _differences(
  first: str, scores: Mapping[str, Mapping[float, Scores]]
) -> dict[str, list[tuple[float, Estimate]]]:
  """Returns differences to the first arm at each x, or of what has most."""
  differences = {}
  for arm in scores:
    if arm == first or first not in scores:
      continue
    mine, theirs = scores[first], scores[arm]
    pairs = [(x, x) for x in mine if x in theirs]
    pairs = pairs or [(max(mine), max(theirs))]
    differences[arm] = [
      (b, arms_lib.estimate_difference(mine[a], theirs[b])) for a, b in pairs
    ]
  return differences


def _describe_scores(
  arms: Arms, scores: Mapping[str, Mapping[float, Scores]],
  differences: Mapping[str, list], levels: Mapping[str, Any],
  where: str | None,
) -> list[str]:  # fmt: skip
  """Says what a figure of scores shows, and what it cannot.

  Args:
    arms: the runs.
    scores: arm -> x -> scores of each task.
    differences: of arms to the first.
    levels: those of the figure.
    where: what is the same at all x; None: x are shots.
  """
  first = next(iter(scores))
  lines = []
  for arm, mine in scores.items():
    last = max(mine)
    score = _estimate_share(mine[last])
    place = where or f'with {last:g} shots'
    line = f'{arm} answers {format_estimate(score, ".1f")}% right {place}'
    if (chance := levels.get('chance')) is not None:
      word = 'above' if score.low > chance else 'not above'
      line += f', {word} the chance of {chance:.1f}% by the whole interval'
    line += '.'
    if arm in differences:
      _, change = differences[arm][-1]
      text = format_estimate(change, '.1f', signed=True)
      verdict = '' if change.sign else ', which may be none'
      line += f' The difference to {first} is {text} points{verdict}.'
    if where is None and len(mine) > 1:
      line += _describe_gain(mine)
    lines.append(line)
  power = _describe_power(scores, differences)
  if oracle := levels.get('oracle'):
    most = max(oracle.values()) if isinstance(oracle, Mapping) else oracle
    power += f'At most {most:.1f}% can be answered from the prompts. '
  return [*lines, power + describe_seeds(arms)]


def _describe_gain(mine: Mapping[float, Scores]) -> str:
  """Says what more shots bring an arm, of the same seeds and questions."""
  few, most = min(mine), max(mine)
  gain = arms_lib.estimate_mean([b - a for a, b in zip(mine[few], mine[most])])
  word = {1: 'gain', -1: 'cost', 0: 'change it by'}[gain.sign]
  if gain.sign < 0:
    gain = Estimate(-gain.value, -gain.high, -gain.low)
  text = format_estimate(gain, '.1f', signed=not gain.sign)
  return f' From {few:g} to {most:g} shots {word} {text} points.'


def _describe_power(scores: Mapping, differences: Mapping[str, list]) -> str:
  """Says how small a difference the figure cannot show."""
  count = sum(task.shape[1] for task in next(iter(
    next(iter(scores.values())).values()
  )))  # fmt: skip
  halves = [
    (each.high - each.low) / 2
    for mine in differences.values()
    for _, each in mine
    if not math.isnan(each.low)
  ]
  text = f'{count:,} questions a point.'
  if halves:
    text += f' Differences below {max(halves):.1f} points would not show.'
  return f'{text} '
