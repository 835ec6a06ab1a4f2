"""Selects answers to read: the worst, a middle one and the best of a task.

The results are plain data, which templates/cards.html.jinja shows as cards.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atm.evals import metrics, results
from atm.pages.charts import is_missing

MOST_CHOICES = 6  # shown of a question with more


# --- Which


def choice_scores(line: Mapping, normalize: str) -> list[float]:
  """Returns what the choices of a question were compared by, in nats."""
  sums = line.get('log_probabilities') or []
  if normalize == 'sum':
    return list(sums)
  return [p / max(1, n) for p, n in zip(sums, line['tokens'])]


def right_choices(line: Mapping) -> list[int]:
  """Returns the indices of the choices that are right."""
  truth = line['truth']
  if isinstance(truth, Mapping):  # of ReCoRD
    candidates = enumerate(truth['candidates'])
    return [i for i, text in candidates if text in truth['answers']]
  return [truth]


def ranking_metric(task: Mapping) -> str:
  """Returns the metric that tells single answers apart."""
  # chrF where BLEU is the main one: BLEU of one sentence depends on whether it
  # has four words in a row right.
  main = next(iter(task['scores']))
  return 'chrf' if 'bleu' in main and 'chrf' in task['scores'] else main


def answer_quality(task: Mapping, lines: Sequence[Mapping]) -> np.ndarray:
  """Returns how good each answer is: float64 [N], nan if not judged."""
  # Of choices: how far the likeliest is ahead of the next, in nats, negative
  # where it is wrong. Of texts: their group's score.
  if task['kind'] == 'score':
    margins = []
    for line in lines:
      best = sorted(choice_scores(line, task['normalize']))[::-1]
      ahead = best[0] - best[1] if len(best) > 1 else 0.0
      sign = 1 if line['answer'] in right_choices(line) else -1
      margins.append(sign * (ahead + 1e-9))
    return np.array(margins)
  name = ranking_metric(task)
  statistics = np.array(task['statistics'][name], np.float64)
  group = metrics.group_indices([line['group'] for line in lines])
  return metrics.get_metric(name).total(statistics)[group]


def select_answers(
  task: Mapping, lines: Sequence[Mapping]
) -> list[tuple[str, float, Mapping]]:
  """Returns (why, quality, line) of the worst, a middle one, and the best."""
  quality = answer_quality(task, lines)
  order = np.argsort(quality, kind='stable')  # nan comes last
  order = order[: np.count_nonzero(~np.isnan(quality))].tolist()
  reasons = dict.fromkeys(order[:2], 'worst')
  for i in order[:-3:-1]:
    reasons.setdefault(i, 'best')
  for i in order[len(order) // 2 :][:1]:
    reasons.setdefault(i, 'in the middle')
  shown = sorted(reasons, key=order.index)
  return [(reasons[i], float(quality[i]), lines[i]) for i in shown]


def representative_tasks(
  tasks: Sequence[Mapping], most: int = 12
) -> list[Mapping]:
  """Returns all tasks, or of more than `most` the best, a middle, the worst."""
  if len(tasks) <= most:
    return list(tasks)
  main = lambda task: next(iter(task['scores'].values()))['value']
  judged = [task for task in tasks if not is_missing(main(task))]
  order = sorted(judged, key=main, reverse=True)
  return [order[0], order[len(order) // 2], order[-1]] if order else []


# --- How


def task_cards(folder: str, task: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the cards of a task, [] where there are no predictions."""
  lines = results.read_predictions(folder, task)
  found = select_answers(task, lines) if lines else []
  return [answer_card(task, *each) for each in found]


def answer_card(
  task: Mapping, why: str, quality: float, line: Mapping
) -> dict[str, Any]:
  """Returns what a card shows of one question and its answer."""
  if task['kind'] == 'score':
    kind = 'better' if quality > 0 else 'worse'
    verdict = f'{"right" if quality > 0 else "wrong"} by {abs(quality):.2f}'
  else:
    kind = {'worst': 'worse', 'best': 'better'}.get(why, 'same')
    verdict = f'{metrics.get_metric(ranking_metric(task)).title} {quality:.1f}'
  return {
    'class': kind,
    'title': f'{why}: {verdict} · question {line["id"]}',
    'task': task,
    'line': line,
    'choices': ranked_choices(line, task['normalize']),
  }


def ranked_choices(line: Mapping, normalize: str) -> list[dict[str, Any]]:
  """Returns the choices of a question, likeliest first, [] without any."""
  # Of many the likeliest, and those that are right.
  if not line.get('pairs'):
    return []
  inputs, outputs = zip(*line['pairs'])
  texts = without_shared_start(outputs if len(set(outputs)) > 1 else inputs)
  right = right_choices(line)
  scores = choice_scores(line, normalize) or [None] * len(texts)
  order = sorted(range(len(texts)), key=lambda i: -(scores[i] or 0))
  return [
    {'text': texts[i], 'score': scores[i], 'right': i in right,
     'chosen': i == line['answer']}
    for rank, i in enumerate(order)
    if rank < MOST_CHOICES or i in right
  ]  # fmt: skip


def without_shared_start(texts: Sequence[str]) -> list[str]:
  """Returns texts without a long beginning that all share."""
  shared = os.path.commonprefix(list(texts))
  shared = shared[: shared.rfind(' ') + 1]
  if len(texts) < 2 or len(shared) < 40:
    return list(texts)
  return [f'… {text[len(shared) :]}' for text in texts]
