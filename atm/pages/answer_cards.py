"""Answers to read: the worst, a middle one and the best of a task, as cards."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atm.data.inspection import TextRun
from atm.evals import metrics
from atm.pages.html import direction, tag, tags

FOLDER = 'predictions'
LONGEST = 1200  # characters of a text that are shown; a prompt is shown whole
CHOICES = 6  # shown of a question with more


def read(folder: str, task: str) -> list[dict]:
  """The lines of predictions/TASK.jsonl; none where the file is not there."""
  path = os.path.join(folder, FOLDER, f'{task}.jsonl')
  if not os.path.exists(path):
    return []
  with open(path, encoding='utf-8') as f:
    return [json.loads(line) for line in f]


# --- Which


def likelihoods(line: Mapping, normalize: str) -> list[float]:
  """What was compared between the choices of a question."""
  found = line.get('log_probabilities') or []
  if normalize == 'sum':
    return list(found)
  return [p / max(1, n) for p, n in zip(found, line['tokens'])]


def right_choices(line: Mapping) -> list[int]:
  """Indices of the choices that are right."""
  truth = line['truth']
  if isinstance(truth, Mapping):  # of ReCoRD
    every = enumerate(truth['candidates'])
    return [i for i, text in every if text in truth['answers']]
  return [truth]


def ranking_metric(task: Mapping) -> str:
  """The metric that tells single answers apart: chrF where BLEU is the main.

  BLEU of one sentence hangs on whether it has four words in a row right.
  """
  main = next(iter(task['scores']))
  return 'chrf' if 'bleu' in main and 'chrf' in task['scores'] else main


def worths(task: Mapping, lines: Sequence[Mapping]) -> np.ndarray:
  """How good each answer is: float64 [N], nan where it is not judged.

  Of choices: how far the likeliest is ahead of the next, in nats, negative
  where it is wrong. Of texts: their group's score.
  """
  if task['kind'] == 'score':
    made = []
    for line in lines:
      best = sorted(likelihoods(line, task['normalize']))[::-1]
      ahead = best[0] - best[1] if len(best) > 1 else 0.0
      sign = 1 if line['answer'] in right_choices(line) else -1
      made.append(sign * (ahead + 1e-9))
    return np.array(made)
  name = ranking_metric(task)
  rows = np.array(task['statistics'][name], np.float64)
  where = metrics.group_indices([line['group'] for line in lines])
  return metrics.get_metric(name).total(rows)[where]


def chosen(
  task: Mapping, lines: Sequence[Mapping], each: int = 2
) -> list[tuple[str, float, Mapping]]:
  """(why, worth, line) of the worst, a middle one, and the best."""
  found = worths(task, lines)
  order = [i for i in np.argsort(found, kind='stable') if found[i] == found[i]]
  places = {}
  for why, some in (
    ('worst', order[:each]),
    ('best', order[::-1][:each]),
    ('in the middle', order[len(order) // 2 :][:1]),
  ):
    for i in some:
      places.setdefault(i, why)
  shown = sorted(places, key=order.index)
  return [(places[i], float(found[i]), lines[i]) for i in shown]


# --- How


def written(text: str, language: str = '') -> str:
  """A paragraph that runs the way most of its letters do."""
  cut = text if len(text) <= LONGEST else f'{text[:LONGEST]} …'
  content = direction([TextRun(cut, '')]), html.escape(cut)
  extra = {'lang': language} if language else {}
  return tag('p', *content, dir='auto', class_='text', **extra)


def card(task: Mapping, why: str, worth: float, line: Mapping) -> str:
  """One question with its answer; the prompt is folded."""
  if task['kind'] == 'score':
    good = worth > 0
    said = f'{"right" if good else "wrong"} by {abs(worth):.2f}'
    kind = 'good' if good else 'bad'
  else:
    metric = metrics.get_metric(ranking_metric(task))
    kind = {'worst': 'bad', 'best': 'good'}.get(why, 'middle')
    said = f'{metric.title} {worth:.1f}'
  made = [tags('header', f'{why}: {said} · question {line["id"]}')]
  language = task['source_language'] or task['language']
  for name, text in (line.get('shown') or {}).items():
    made += [tags('h5', name), written(str(text), language)]
  made += choices(task, line) if line.get('pairs') else texts(task, line)
  made.append(prompt(line))
  return tag('article', *made, class_=kind)


def texts(task: Mapping, line: Mapping) -> list[str]:
  """The answer and what was wanted."""
  truth = line['truth']
  wanted = [truth] if isinstance(truth, str) else list(truth)
  language = task['language']
  answer = str(line['answer'])
  made = [tags('h5', 'answer')]
  made.append(written(answer, language) if answer else nothing())
  made.append(tags('h5', 'wanted' if len(wanted) < 2 else 'wanted, one of'))
  for text in dict.fromkeys(wanted):
    made.append(written(text, language) if text else nothing())
  return made if wanted else [*made, nothing()]


def nothing() -> str:
  return tag('p', tags('small', 'nothing'), class_='text')


def differing(texts: Sequence[str]) -> list[str]:
  """Texts without a long beginning that all share."""
  shared = os.path.commonprefix(list(texts))
  shared = shared[: shared.rfind(' ') + 1]
  if len(texts) < 2 or len(shared) < 40:
    return list(texts)
  return [f'… {text[len(shared) :]}' for text in texts]


def choices(task: Mapping, line: Mapping) -> list[str]:
  """The choices, likeliest first, marked where chosen and where right."""
  inputs, outputs = zip(*line['pairs'])
  names = differing(outputs if len(set(outputs)) > 1 else inputs)
  right, found = right_choices(line), likelihoods(line, task['normalize'])
  order = sorted(range(len(names)), key=lambda i: -found[i] if found else i)
  items = []
  for place, i in enumerate(order):
    if place >= CHOICES and i not in right:
      continue
    marks = [tags('b', 'chosen')] if i == line['answer'] else []
    marks += [tags('b', 'right')] if i in right else []
    nats = tags('small', f'{found[i]:.2f}'.replace('-', '−')) if found else ''
    text = tag('bdi', html.escape(names[i]), dir='auto', class_='choice')
    items.append(tag('li', ' '.join((text, *marks, nats))))
  unit = 'nats a token' if task['normalize'] == 'mean' else 'nats'
  return [tags('h5', f'choices, {unit}'), tag('ul', *items)]


def prompt(line: Mapping) -> str:
  """What was sent, folded."""
  if line.get('prompt'):
    sent = line['prompt'], line.get('output')
    names = 'prompt', 'output'
    parts = [(n, t) for n, t in zip(names, sent) if t is not None]
  else:
    parts = []
    for i, (source, target) in enumerate(line.get('pairs') or []):
      parts += [(f'choice {i}, encoder', source), (f'{i}, decoder', target)]
  if not parts:
    return ''
  made = [
    tags('h5', name) + tag('p', html.escape(text), dir='auto', class_='sent')
    for name, text in parts
  ]
  return tag('details', tags('summary', 'as it was sent'), *made)


def examples(folder: str, task: Mapping[str, Any]) -> str:
  """Cards of a task, '' where there are no predictions."""
  lines = read(folder, task['name'])
  if not lines:
    return ''
  cards = [card(task, *found) for found in chosen(task, lines)]
  return tag('div', *cards, class_='columns')


def spread(tasks: Sequence[Mapping], most: int = 12) -> list[Mapping]:
  """All tasks, or where there are many: the best, the middle, the worst."""
  if len(tasks) <= most:
    return list(tasks)
  main = lambda task: next(iter(task['scores'].values()))['value']
  there = [t for t in tasks if main(t) is not None and not math.isnan(main(t))]
  order = sorted(there, key=main, reverse=True)
  return [order[0], order[len(order) // 2], order[-1]] if order else []


STYLE = """
article ul { list-style: none; padding: 0; margin: 0 0 .75rem }
article li { padding: .1rem 0 }
article li b { font-size: .8125rem; font-weight: 400; color: var(--accent);
  border: 1px solid currentColor; border-radius: .25em; padding: 0 .3em }
article small { color: var(--soft) }
article .choice { font: inherit; color: inherit; border: 0; padding: 0;
  margin: 0; white-space: normal }
.sent { font: .8125rem/1.6 ui-monospace, 'Noto Sans Mono', monospace;
  white-space: pre-wrap; margin: 0 0 .5rem }
summary { cursor: pointer; color: var(--soft); font-size: .875rem }
"""
