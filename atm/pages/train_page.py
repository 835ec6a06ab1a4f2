"""The page of `atm report`: a training run as one HTML file.

Made of what lies in MODEL_DIR: metrics.jsonl, goodput.jsonl, config.gin, and
samples.json where the run has ended. So it may be made while a run goes on.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable

import numpy as np

from atm import messages
from atm.data.languages import name_language
from atm.data.objectives import OBJECTIVE_NAMES
from atm.pages.figures import COLOURS, INK, draw
from atm.pages.html import document, tag, tags
from atm.train import goodput, metric_writer

PAGE = 'report.html'
SAMPLES = 'samples.json'
POINTS = 400  # of a curve; more are averaged
EVAL = 'eval/loss/'
ASKED = 'few_shot/'


def write(model_dir: str) -> str:
  """Writes MODEL_DIR/report.html; returns its path.

  Raises:
    FileNotFoundError: there is no run in MODEL_DIR.
  """
  rows = metric_writer.read(model_dir)
  if not rows:
    raise FileNotFoundError(
      f'MODEL_DIR = {model_dir!r}: expected a folder with '
      f'{metric_writer.METRICS_FILE}, which `atm pretrain` writes'
    )
  path = os.path.join(model_dir, PAGE)
  with open(path, 'w', encoding='utf-8') as f:
    f.write(page(model_dir, rows))
  return path


def page(model_dir: str, rows: list[dict]) -> str:
  """The whole page, of a run's rows of metrics.jsonl."""
  name = os.path.basename(os.path.abspath(model_dir))
  spent = goodput.summary(goodput.read(model_dir))
  begun = started_from(model_dir)
  told = [*(('started from', path) for path in begun), *facts(rows)]
  body = (
    tag('h1', html.escape(name), tags('small', 'a training run')),
    tag('dl', *(tag('div', *map(tags, ('dt', 'dd'), fact)) for fact in told)),
    tags('h2', 'Loss'),
    grid(loss_plots(rows), 'large'),
    *by_language(rows),
    *asked(rows),
    tags('h2', 'Updates'),
    grid(plain_plots(rows, ('learning_rate', 'grad_norm', 'param_norm'))),
    tags('h2', 'Speed'),
    grid(plain_plots(rows, ('tokens_per_second', 'mfu', 'goodput'))),
    where_time_went(spent),
    *samples(model_dir),
    *configuration(model_dir),
  )
  return document(f'{name}: a training run', body)


def started_from(model_dir: str) -> list[str]:
  """INIT_FROM of config.gin, where there is one."""
  path = os.path.join(model_dir, 'config.gin')
  if not os.path.exists(path):
    return []
  with open(path, encoding='utf-8') as f:
    return re.findall(r"^INIT_FROM = [\\\s]*'(.+)'$", f.read(), re.M)


def facts(rows: list[dict]) -> list[tuple[str, str]]:
  """Names and values of the last row, and of all together."""
  trained = [row for row in rows if 'loss' in row]
  last = trained[-1] if trained else {}
  tokens = sum(r['tokens/input'] + r['tokens/target'] for r in trained)
  found = [('step', f'{rows[-1]["step"]:,}'), ('tokens read', f'{tokens:,.0f}')]
  for key, name, form in (
    ('loss', 'training loss', '{:.3f}'),
    ('tokens_per_second', 'tokens a second', '{:,.0f}'),
    ('mfu', 'model FLOPs used', '{:.1%}'),
    ('goodput', 'goodput', '{:.1%}'),
    ('skipped', 'updates skipped', '{:,.0f}'),
  ):
    if key in last:
      found.append((name, form.format(last[key])))
  for name in OBJECTIVE_NAMES:
    points = curve(rows, f'{EVAL}{name}')
    if len(points[0]):
      found.append((f'held out, {name}', f'{points[1][-1]:.3f}'))
  return found


# --- Curves


def curve(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of a metric; of many points, means of neighbours."""
  found = [(r['step'], r[key]) for r in rows if r.get(key) is not None]
  points = np.array(found, np.float64).reshape(-1, 2)
  if len(points) > POINTS:
    pieces = np.array_split(points, POINTS)
    points = np.array([piece.mean(0) for piece in pieces])
  return points[:, 0], points[:, 1]


def loss_plots(rows: list[dict]) -> dict[str, Callable]:
  """A plot an objective: training, held out, and the unigram."""
  made = {}
  for name in OBJECTIVE_NAMES:
    keys = f'loss/{name}', f'{EVAL}{name}', f'eval/unigram/{name}'
    if any(len(curve(rows, key)[0]) for key in keys[:2]):
      title = f'{name}: line training, dots held out, dashes a unigram model'
      made[title] = lambda axes, keys=keys, name=name: lines_in(
        axes, rows, keys, COLOURS[name]
      )
  return made


def lines_in(axes, rows, keys: tuple[str, str, str], colour: str) -> None:
  """Training as a line, held out with dots, the unigram as a level."""
  training, held_out, unigram = (curve(rows, key) for key in keys)
  axes.plot(*training, color=colour, lw=1, alpha=0.6)
  axes.plot(*held_out, color=colour, lw=1.5, marker='o', ms=3)
  for level in unigram[1][:1]:
    axes.axhline(level, color=INK, lw=1, ls='--', alpha=0.5)


def plain_plots(rows: list[dict], keys: tuple[str, ...]) -> dict:
  """A plot for each metric that the run has."""
  made = {}
  for key in keys:
    points = curve(rows, key)
    if len(points[0]):
      made[key.replace('_', ' ')] = lambda axes, p=points: axes.plot(
        *p, color=INK, lw=1.2
      )
  return made


def grid(plots: dict[str, Callable], kind: str = '') -> str:
  """Figures with their captions."""
  size = (4.8, 2.8) if kind == 'large' else (3.6, 2.2)
  made = (
    tag('figure', draw(plot, size, percent=False), tags('figcaption', name))
    for name, plot in plots.items()
  )
  return tag('div', *made, class_=f'figures {kind}'.strip())


def asked(rows: list[dict]) -> tuple[str, ...]:
  """Curves of the tasks asked while the run trained, a plot a metric."""
  keys = sorted({k for row in rows for k in row if k.startswith(ASKED)})
  if not keys:
    return ()
  made, faint = {}, dict(color=INK, lw=0.8, alpha=0.25)
  for key in (k for k in keys if k.count('/') == 1):
    mine = [k for k in keys if k.startswith(f'{key}/')]
    title = f'{key.removeprefix(ASKED)}: the mean, and each task in grey'
    made[title] = lambda axes, key=key, mine=mine: [
      *(axes.plot(*curve(rows, k), **faint) for k in mine),
      axes.plot(*curve(rows, key), color=INK, lw=1.6, marker='o', ms=3),
    ]
  return tags('h2', 'Questions asked'), grid(made, 'large')


# --- Languages


def languages(rows: list[dict]) -> list[str]:
  """Those that an evaluation tells apart."""
  keys = {key for row in rows for key in row if key.startswith(EVAL)}
  split = (key.removeprefix(EVAL).split('/') for key in keys)
  return sorted({parts[1] for parts in split if len(parts) == 2})


def by_language(rows: list[dict]) -> tuple[str, ...]:
  """Curves and a table of the held-out loss by language."""
  found = languages(rows)
  if found in ([], ['all']):  # pairs are of no language
    return ()
  plots = {}
  for language in found:
    plots[name_language(language)] = lambda axes, k=language: [
      axes.plot(*curve(rows, f'{EVAL}{n}/{k}'), color=COLOURS[n], lw=1.5)
      for n in OBJECTIVE_NAMES
      if len(curve(rows, f'{EVAL}{n}/{k}')[0])
    ]
  there = [n for n in OBJECTIVE_NAMES if len(curve(rows, f'{EVAL}{n}')[0])]
  keys = ', '.join(tag('b', name, class_=name) for name in there)
  return (
    tags('h2', 'Held-out loss by language'),
    tag('p', f'Nats a token: {keys}.'),
    grid(plots, 'small'),
    tag('div', language_table(rows, found, there), class_='wide'),
  )


def language_table(rows, found: list[str], there: list[str]) -> str:
  """First, last and unigram loss of each language and objective."""
  parts = ('first', 'last', 'unigram')
  names = [f'{name}, {part}' for name in there for part in parts]
  body = []
  for language in found:
    cells = [name_language(language)]
    for name in there:
      values = curve(rows, f'{EVAL}{name}/{language}')[1]
      level = curve(rows, f'eval/unigram/{name}/{language}')[1]
      cells += [f'{values[0]:.2f}', f'{values[-1]:.2f}'] if len(values) else [
        '', ''
      ]  # fmt: skip
      cells.append(f'{level[0]:.2f}' if len(level) else '')
    body.append(tag('tr', tags('td', *cells)))
  head = tag('thead', tag('tr', tags('th', 'language', *names)))
  return tag('table', head, tag('tbody', *body), class_='numbers')


# --- Where the time went, samples, configuration


def where_time_went(spent: dict[str, float]) -> str:
  """A bar and a table of goodput's kinds."""
  total = sum(spent.values())
  if not total:
    return ''
  body = [
    tag(
      'tr',
      tags('td', goodput.MEANING[kind], messages.clock_text(seconds)),
      tags('td', f'{seconds / total:.1%}'),
      tag('td', tag('meter', value=f'{seconds / total:.4f}')),
    )
    for kind, seconds in spent.items()
    if seconds
  ]
  head = tag('tr', tags('th', 'wall time', 'h:mm:ss', 'share', ''))
  table = tag('table', tag('thead', head), *body, class_='numbers')
  return tag('div', table, class_='wide')


def samples(model_dir: str) -> tuple[str, ...]:
  """What the model wrote of held-out text, where the run has ended."""
  path = os.path.join(model_dir, SAMPLES)
  if not os.path.exists(path):
    return ()
  with open(path, encoding='utf-8') as f:
    found = json.load(f)
  made = [tags('h2', f'Held-out text, read by step {found["step"]:,}')]
  for name in OBJECTIVE_NAMES:
    mine = [s for s in found['samples'] if s['objective'] == name]
    if mine:
      made += [tags('h4', name), tag('div', *map(card, mine), class_='columns')]
  return tuple(made)


def card(sample: dict) -> str:
  """One sample: input, output, truth."""
  made = [tags('header', name_language(sample['language']))]
  for what in ('input', 'output', 'truth'):
    made.append(tags('h5', what))
    text = html.escape(sample[what])
    made.append(
      tag('p', text, lang=sample['language'], dir='auto', class_='text')
    )
  return tag('article', *made, class_=sample['objective'])


def configuration(model_dir: str) -> tuple[str, ...]:
  """config.gin, folded."""
  path = os.path.join(model_dir, 'config.gin')
  if not os.path.exists(path):
    return ()
  with open(path, encoding='utf-8') as f:
    text = f.read()
  return (
    tags('h2', 'Configuration'),
    tag('details', tags('summary', path), tags('pre', text)),
  )
