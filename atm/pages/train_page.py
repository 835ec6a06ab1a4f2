"""Writes the page of `atm report`: a training run as one HTML file.

Made of what lies in MODEL_DIR: metrics.jsonl, goodput.jsonl, config.gin, and
samples.json where the run has ended. So it may be made while a run goes on. The
functions here prepare plain data; templates/train.html.jinja lays it out.
"""

import functools
import os
import re
from functools import partial
from typing import Any

import numpy as np

from atm import fileio
from atm.data.languages import name_language
from atm.data.objectives import OBJECTIVE_NAMES
from atm.messages import check_arguments, check_path
from atm.pages import render
from atm.pages.plots import COLOURS, INK, draw_svg
from atm.train import goodput, metric_writer

TRAIN_PAGE = 'report.html'
SAMPLES_FILE = 'samples.json'
SAMPLE = dict.fromkeys(
  ('objective', 'language', 'input', 'output', 'truth'), str
)
POINTS = 400  # of a curve; more are averaged
EVAL = 'eval/loss/'
UNIGRAM = 'eval/unigram/'
FEW_SHOT = 'few_shot/'
LARGE_FIGURE = 4.8, 2.8  # inches

Curve = tuple[np.ndarray, np.ndarray]  # steps, values
Line = tuple[Curve | float, dict]  # or a level, and how matplotlib draws it


@check_arguments(model_dir=partial(check_path, 'MODEL_DIR'))
def write_train_page(model_dir: str) -> str:
  """Writes MODEL_DIR/report.html; returns its path.

  Raises:
    FileNotFoundError: there is no run in MODEL_DIR.
  """
  rows = metric_writer.read_metrics(model_dir)
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
  samples = read_samples(model_dir)
  origins = re.findall(r"^INIT_FROM = [\\\s]*'(.+)'$", config or '', re.M)
  return {
    'name': os.path.basename(os.path.abspath(model_dir)),
    'facts': [*(('started from', path) for path in origins),
              *_list_facts(rows)],
    'loss': _figures(loss_lines(rows), LARGE_FIGURE),
    'by_language': _by_language(rows),
    'few_shot': _figures(_few_shot_lines(rows), LARGE_FIGURE),
    'updates': _figures(
      _metric_lines(rows, 'learning_rate', 'grad_norm', 'param_norm')
    ),
    'speed': _figures(
      _metric_lines(rows, 'tokens_per_second', 'mfu', 'goodput')
    ),
    'time': wall_time(model_dir),
    'objectives': OBJECTIVE_NAMES,
    'samples': samples,
    'config': config,
    'config_path': os.path.join(model_dir, 'config.gin'),
  }  # fmt: skip


def _read(model_dir: str, name: str) -> str | None:
  """Returns the text of a run's file, None where there is none."""
  path = os.path.join(model_dir, name)
  if not os.path.exists(path):
    return None
  fileio.check_regular(path)
  with open(path, 'rb') as f:
    return f.read().decode('utf-8', 'replace')


def read_samples(model_dir: str) -> dict | None:
  """Returns samples.json of a run, None where there is none yet.

  Raises ValueError if it is not as `atm pretrain` writes it.
  """
  path = os.path.join(model_dir, SAMPLES_FILE)
  if not os.path.exists(path):
    return None
  samples = fileio.read_json(path)
  fileio.check_json(samples, {'step': int, 'samples': [SAMPLE]}, path)
  return samples


def _list_facts(rows: list[dict]) -> list[tuple[str, str]]:
  """Returns names and values of the last row, and of all together."""
  trained = [row for row in rows if row.get('loss') is not None]
  last = trained[-1] if trained else {}
  counts = ('tokens/input', 'tokens/target')
  tokens = sum(row.get(key) or 0 for row in trained for key in counts)
  facts = [('step', f'{rows[-1]["step"]:,}'), ('tokens read', f'{tokens:,.0f}')]
  for key, name, form in (
    ('loss', 'training loss', '{:.3f}'),
    ('tokens_per_second', 'tokens a second', '{:,.0f}'),
    ('mfu', 'model FLOPs utilization', '{:.1%}'),
    ('goodput', 'goodput', '{:.1%}'),
    ('skipped', 'updates skipped', '{:,.0f}'),
  ):
    if last.get(key) is not None:
      facts.append((name, form.format(last[key])))
  for name, change in held_out_losses(rows)[None].items():
    facts.append((f'held out, {name}', f'{change["last"]:.3f}'))
  return facts


# --- Losses


def metric_points(rows: list[dict], key: str) -> np.ndarray:
  """Returns steps and values of a metric [points, 2]."""
  found = [(r['step'], r[key]) for r in rows if r.get(key) is not None]
  return np.array(found, np.float64).reshape(-1, 2)


def curve(rows: list[dict], key: str) -> Curve:
  """Returns steps and values of a metric; of many points, neighbours' means."""
  points = metric_points(rows, key)
  if len(points) > POINTS:
    pieces = np.array_split(points, POINTS)
    points = np.array([piece.mean(0) for piece in pieces])
  return points[:, 0], points[:, 1]


def loss_lines(rows: list[dict]) -> dict[str, list[Line]]:
  """Returns training, held-out and unigram loss of each objective."""
  plots = {}
  for name in OBJECTIVE_NAMES:
    colour = COLOURS[name]
    styles = {
      f'loss/{name}': dict(label='training', color=colour, lw=1, alpha=0.6),
      f'{EVAL}{name}': dict(
        label='held out', color=colour, lw=1.5, marker='o', ms=3
      ),
    }
    lines = [(curve(rows, key), style) for key, style in styles.items()]
    lines = [(points, style) for points, style in lines if len(points[0])]
    for level in metric_points(rows, f'{UNIGRAM}{name}')[:1, 1]:
      style = dict(label='unigram', color=INK, lw=1, ls='--', alpha=0.5)
      lines.append((level, style))
    if lines:
      plots[name] = lines
  return plots


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
  losses: dict[str | None, dict[str, dict]] = {}
  for language in (*languages, None):
    losses[language] = {}
    for name in OBJECTIVE_NAMES:
      key = name if language is None else f'{name}/{language}'
      values = metric_points(rows, f'{EVAL}{key}')[:, 1]
      unigram = next(iter(metric_points(rows, f'{UNIGRAM}{key}')[:, 1]), None)
      if len(values):
        losses[language][name] = {
          'first': values[0], 'last': values[-1], 'unigram': unigram
        }  # fmt: skip
  return losses


def _by_language(rows: list[dict]) -> dict[str, Any] | None:
  """Returns curves and a table of the held-out loss by language."""
  losses = held_out_losses(rows)
  objectives = list(losses.pop(None))
  if list(losses) in ([], ['all']):  # pairs are of no language
    return None
  styles = {name: dict(color=COLOURS[name], lw=1.5) for name in OBJECTIVE_NAMES}
  plots = {
    name_language(language): [
      (curve(rows, f'{EVAL}{name}/{language}'), styles[name]) for name in mine
    ]
    for language, mine in losses.items()
  }
  return {
    'objectives': objectives, 'figures': _figures(plots), 'losses': losses
  }  # fmt: skip


# --- Figures


def _figures(
  plots: dict[str, list[Line]], size: tuple[float, float] = (3.6, 2.2)
) -> list[tuple[str, str]]:
  """Returns captions and SVGs of plots of `size` inches."""
  draw = functools.partial(draw_svg, size=size, percent=False)
  return [
    (name, draw(functools.partial(draw_lines, lines=lines)))
    for name, lines in plots.items()
  ]


def draw_lines(axes, lines: list[Line]) -> None:
  """Draws curves and levels in matplotlib's axes."""
  for points, style in lines:
    if np.ndim(points):
      axes.plot(*points, **style)
    else:
      axes.axhline(points, **style)


def _metric_lines(rows: list[dict], *keys: str) -> dict[str, list[Line]]:
  """Returns a plot for each of some metrics that the run has."""
  curves = {key.replace('_', ' '): curve(rows, key) for key in keys}
  style = dict(color=INK, lw=1.2)
  return {k: [(line, style)] for k, line in curves.items() if len(line[0])}


def _few_shot_lines(rows: list[dict]) -> dict[str, list[Line]]:
  """Returns a plot for each metric of the few-shot suite during training."""
  keys = sorted({k for row in rows for k in row if k.startswith(FEW_SHOT)})
  faint = dict(color=INK, lw=0.8, alpha=0.25)
  bold = dict(color=INK, lw=1.6, marker='o', ms=3)
  plots = {}
  for key in (k for k in keys if k.count('/') == 1):
    tasks = [k for k in keys if k.startswith(f'{key}/')]
    title = f'{key.removeprefix(FEW_SHOT)}: the mean, and each task in grey'
    plots[title] = [(curve(rows, k), faint) for k in tasks]
    plots[title].append((curve(rows, key), bold))
  return plots


def wall_time(model_dir: str) -> list[tuple[str, float, float]]:
  """Returns (what it was spent on, seconds, share) of a run's wall time."""
  spent = goodput.sum_by_kind(goodput.read_goodput(model_dir))
  total = sum(spent.values())
  return [
    (goodput.MEANING[kind], seconds, seconds / total)
    for kind, seconds in spent.items()
    if seconds
  ]
