"""Writes the page of `atm report`: a training run as one HTML file.

Made of what lies in MODEL_DIR: metrics.jsonl, goodput.jsonl, config.gin, and
samples.json where the run has ended. So it may be made while a run goes on. The
functions here prepare plain data; templates/train.html.jinja lays it out.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from atm import messages
from atm.data.languages import name_language
from atm.data.objectives import OBJECTIVE_NAMES
from atm.pages import render
from atm.pages.figures import COLOURS, INK, draw_svg
from atm.train import goodput, metric_writer

TRAIN_PAGE = 'report.html'
SAMPLES_FILE = 'samples.json'
POINTS = 400  # of a curve; more are averaged
EVAL = 'eval/loss/'
UNIGRAM = 'eval/unigram/'
FEW_SHOT = 'few_shot/'
PARTS = ('first', 'last', 'unigram')  # of held-out losses


def write_train_page(model_dir: str) -> str:
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
  path = os.path.join(model_dir, TRAIN_PAGE)
  return render.write_page(path, 'train', train_page_data(model_dir, rows))


def train_page_data(model_dir: str, rows: list[dict]) -> dict[str, Any]:
  """Returns what the page shows of a run's folder and its metrics."""
  config = _read(model_dir, 'config.gin')
  samples = _read(model_dir, SAMPLES_FILE)
  large, small = (4.8, 2.8), (3.6, 2.2)
  started_from = re.findall(r"^INIT_FROM = [\\\s]*'(.+)'$", config or '', re.M)
  return {
    'name': os.path.basename(os.path.abspath(model_dir)),
    'facts': [*(('started from', path) for path in started_from),
              *_facts(rows)],
    'loss': _figures(_loss_plots(rows), large),
    'by_language': _by_language(rows, small),
    'few_shot': _figures(_few_shot_plots(rows), large),
    'updates': _figures(
      _metric_plots(rows, ('learning_rate', 'grad_norm', 'param_norm')), small
    ),
    'speed': _figures(
      _metric_plots(rows, ('tokens_per_second', 'mfu', 'goodput')), small
    ),
    'time': [
      (meaning, messages.clock_text(seconds), share)
      for meaning, seconds, share in wall_time(model_dir)
    ],
    'samples': samples and _samples(json.loads(samples)),
    'config': config,
    'config_path': os.path.join(model_dir, 'config.gin'),
  }  # fmt: skip


def _read(model_dir: str, name: str) -> str | None:
  """Returns the text of a run's file, None where there is none."""
  path = os.path.join(model_dir, name)
  if not os.path.exists(path):
    return None
  with open(path, encoding='utf-8') as f:
    return f.read()


def _facts(rows: list[dict]) -> list[tuple[str, str]]:
  """Returns names and values of the last row, and of all together."""
  trained = [row for row in rows if 'loss' in row]
  last = trained[-1] if trained else {}
  tokens = sum(r['tokens/input'] + r['tokens/target'] for r in trained)
  facts = [('step', f'{rows[-1]["step"]:,}'), ('tokens read', f'{tokens:,.0f}')]
  for key, name, form in (
    ('loss', 'training loss', '{:.3f}'),
    ('tokens_per_second', 'tokens a second', '{:,.0f}'),
    ('mfu', 'model FLOPs used', '{:.1%}'),
    ('goodput', 'goodput', '{:.1%}'),
    ('skipped', 'updates skipped', '{:,.0f}'),
  ):
    if key in last:
      facts.append((name, form.format(last[key])))
  for name, change in held_out_losses(rows)[None].items():
    facts.append((f'held out, {name}', f'{change["last"]:.3f}'))
  return facts


# --- Losses


def curve(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns steps and values of a metric; of many points, neighbours' means."""
  found = [(r['step'], r[key]) for r in rows if r.get(key) is not None]
  points = np.array(found, np.float64).reshape(-1, 2)
  if len(points) > POINTS:
    pieces = np.array_split(points, POINTS)
    points = np.array([piece.mean(0) for piece in pieces])
  return points[:, 0], points[:, 1]


def loss_curves(rows: list[dict]) -> dict[str, dict[str, Any]]:
  """Returns the curves of each objective that the run has.

  Returns:
    {objective: {'training', 'held out': (steps, values), 'unigram': the loss of
    a unigram model, or None}}.
  """
  curves = {}
  for name in OBJECTIVE_NAMES:
    both = {
      'training': curve(rows, f'loss/{name}'),
      'held out': curve(rows, f'{EVAL}{name}'),
    }
    if any(len(steps) for steps, _ in both.values()):
      _, unigram = curve(rows, f'{UNIGRAM}{name}')
      curves[name] = {**both, 'unigram': next(iter(unigram), None)}
  return curves


def held_out_losses(rows: list[dict]) -> dict[str | None, dict[str, dict]]:
  """Returns the first and the last held-out loss of a run.

  Returns:
    {language, or None for all: {objective: {'first', 'last', 'unigram'}}},
    nats a token; `unigram` is None where it is not known. Objectives without a
    loss are left out.
  """
  keys = {key for row in rows for key in row if key.startswith(EVAL)}
  parts = [key.removeprefix(EVAL).split('/') for key in keys]
  languages = sorted({part[1] for part in parts if len(part) == 2})
  made = {}
  for language in (*languages, None):
    ends = {
      name: _first_and_last(
        rows, name if language is None else f'{name}/{language}'
      )
      for name in OBJECTIVE_NAMES
    }
    made[language] = {name: ends for name, ends in ends.items() if ends}
  return made


def _first_and_last(rows: list[dict], key: str) -> dict[str, float] | None:
  values = curve(rows, f'{EVAL}{key}')[1]
  unigram = curve(rows, f'{UNIGRAM}{key}')[1]
  if not len(values):
    return None
  return {
    'first': values[0],
    'last': values[-1],
    'unigram': next(iter(unigram), None),
  }


def _by_language(rows: list[dict], size) -> dict[str, Any] | None:
  """Returns curves and a table of the held-out loss by language."""
  losses = held_out_losses(rows)
  objectives = list(losses.pop(None))
  if list(losses) in ([], ['all']):  # pairs are of no language
    return None

  def plot(axes, language):
    for name in losses[language]:
      points = curve(rows, f'{EVAL}{name}/{language}')
      axes.plot(*points, color=COLOURS[name], lw=1.5)

  plots = {
    name_language(language): functools.partial(plot, language=language)
    for language in losses
  }
  columns = [(name, part) for name in objectives for part in PARTS]
  table = []
  for language, mine in losses.items():
    values = [mine.get(name, {}).get(part) for name, part in columns]
    cells = ('' if value is None else f'{value:.2f}' for value in values)
    table.append([name_language(language), *cells])
  return {
    'objectives': objectives,
    'figures': _figures(plots, size),
    'columns': ['language', *(f'{name}, {part}' for name, part in columns)],
    'rows': table,
  }


# --- Figures


def _figures(plots: dict[str, Callable], size) -> list[tuple[str, str]]:
  """Returns captions and SVGs of plots of `size` inches."""
  draw = functools.partial(draw_svg, size=size, percent=False)
  return [(name, draw(plot)) for name, plot in plots.items()]


def _loss_plots(rows: list[dict]) -> dict[str, Callable]:
  """Returns a plot for each objective: training, held out, and the unigram."""

  def plot(axes, name, curves):
    axes.plot(*curves['training'], color=COLOURS[name], lw=1, alpha=0.6)
    axes.plot(
      *curves['held out'], color=COLOURS[name], lw=1.5, marker='o', ms=3
    )
    if curves['unigram'] is not None:
      axes.axhline(curves['unigram'], color=INK, lw=1, ls='--', alpha=0.5)

  title = '{}: line training, dots held out, dashes a unigram model'
  return {
    title.format(name): functools.partial(plot, name=name, curves=curves)
    for name, curves in loss_curves(rows).items()
  }


def _metric_plots(rows: list[dict], keys: tuple[str, ...]) -> dict:
  """Returns a plot for each of some metrics that the run has."""
  curves = {key: curve(rows, key) for key in keys}
  return {
    key.replace('_', ' '): lambda axes, points=points: axes.plot(
      *points, color=INK, lw=1.2
    )
    for key, points in curves.items()
    if len(points[0])
  }


def _few_shot_plots(rows: list[dict]) -> dict[str, Callable]:
  """Returns a plot for each metric of the few-shot suite during training."""
  keys = sorted({k for row in rows for k in row if k.startswith(FEW_SHOT)})
  plots, faint = {}, dict(color=INK, lw=0.8, alpha=0.25)
  for key in (k for k in keys if k.count('/') == 1):
    mine = [k for k in keys if k.startswith(f'{key}/')]
    title = f'{key.removeprefix(FEW_SHOT)}: the mean, and each task in grey'
    plots[title] = lambda axes, key=key, mine=mine: [
      *(axes.plot(*curve(rows, k), **faint) for k in mine),
      axes.plot(*curve(rows, key), color=INK, lw=1.6, marker='o', ms=3),
    ]
  return plots


# --- Where the time went, samples


def wall_time(model_dir: str) -> list[tuple[str, float, float]]:
  """Returns (what it was spent on, seconds, share) of a run's wall time."""
  spent = goodput.summary(goodput.read(model_dir))
  total = sum(spent.values())
  return [
    (goodput.MEANING[kind], seconds, seconds / total)
    for kind, seconds in spent.items()
    if seconds
  ]


def _samples(found: dict[str, Any]) -> dict[str, Any]:
  """Returns what the model wrote of held-out text, by objective."""
  by_objective = {
    name: [s for s in found['samples'] if s['objective'] == name]
    for name in OBJECTIVE_NAMES
  }
  return {
    'step': f'{found["step"]:,}',
    'objectives': [(k, some) for k, some in by_objective.items() if some],
  }
