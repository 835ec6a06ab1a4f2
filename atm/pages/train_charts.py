"""Charts of a training run: losses, scores, updates and speed by step.

Charts of the same quantity have the same axes, so that they can be compared.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from atm.data.languages import name_language
from atm.data.objectives import OBJECTIVE_NAMES
from atm.pages.plots import COLOURS, INK, LARGE_FIGURE, draw_svg

POINTS = 400  # of a curve; more are averaged
EVAL = 'eval/loss/'
UNIGRAM = 'eval/unigram/'
FEW_SHOT = 'few_shot/'
NATS = 'nats a token'

Curve = tuple[np.ndarray, np.ndarray]  # steps, values
Line = tuple[Curve | float, dict]  # or a level, and how matplotlib draws it
Limits = tuple[float, float]  # the ends of an axis


@dataclasses.dataclass
class Chart:
  """Lines of one figure, under a caption.

  Attributes:
    unit: of the y axis.
    percent: the y axis has shares.
  """

  caption: str
  lines: list[Line]
  unit: str = ''
  percent: bool = False


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


# --- Lines


def loss_charts(rows: list[dict]) -> list[Chart]:
  """Returns training, held-out and unigram loss of each objective."""
  charts = []
  for name in OBJECTIVE_NAMES:
    colour = COLOURS[name]
    styles = {
      f'loss/{name}': dict(label='training', color=colour, lw=1, alpha=0.6),
      f'{EVAL}{name}': dict(
        label='held out', color=colour, lw=1.5, marker='o', ms=4
      ),
    }
    lines = [(curve(rows, key), style) for key, style in styles.items()]
    lines = [(points, style) for points, style in lines if len(points[0])]
    for level in metric_points(rows, f'{UNIGRAM}{name}')[:1, 1]:
      style = dict(label='unigram', color=INK, lw=1, ls='--', alpha=0.5)
      lines.append((level, style))
    if lines:
      charts.append(Chart(name, lines, NATS))
  return charts


def language_charts(
  rows: list[dict], objectives: dict[str, Iterable[str]]
) -> list[Chart]:
  """Returns the held-out loss by language, given the objectives of each."""
  styles = {
    name: dict(label=name, color=COLOURS[name], lw=1.5)
    for name in OBJECTIVE_NAMES
  }
  return [
    Chart(
      name_language(language),
      [(curve(rows, f'{EVAL}{k}/{language}'), styles[k]) for k in mine],
      NATS,
    )
    for language, mine in objectives.items()
  ]


def few_shot_charts(rows: list[dict]) -> list[Chart]:
  """Returns the scores of the few-shot suite during training, by set."""
  keys = sorted({k for row in rows for k in row if k.startswith(FEW_SHOT)})
  faint = dict(color=INK, lw=0.8, alpha=0.35)
  bold = dict(color=INK, lw=1.6, marker='o', ms=4)
  charts = []
  for key in (k for k in keys if k.count('/') == 1):
    tasks = [k for k in keys if k.startswith(f'{key}/')]
    lines = [(curve(rows, k), faint) for k in tasks]
    lines.append((curve(rows, key), bold))
    charts.append(Chart(key.removeprefix(FEW_SHOT), lines, 'score, 0 to 100'))
  return charts


def update_charts(rows: list[dict]) -> list[Chart]:
  """Returns what tells how updates went."""
  return _metric_charts(
    rows,
    ('learning_rate', 'learning rate', '', False),
    ('grad_norm', 'gradient', 'L2 norm', False),
    ('param_norm', 'parameters', 'L2 norm', False),
  )


def speed_charts(rows: list[dict]) -> list[Chart]:
  """Returns how fast a run was, and how well it used the devices."""
  return _metric_charts(
    rows,
    ('tokens_per_second', 'speed', 'tokens a second', False),
    ('mfu', 'model FLOPs utilization', "of the devices' peak", True),
    ('goodput', 'goodput', 'of the wall time', True),
  )


def _metric_charts(rows: list[dict], *metrics: tuple) -> list[Chart]:
  """Returns a chart for each (key, caption, unit, percent) that a run has."""
  style = dict(color=INK, lw=1.2)
  charts = []
  for key, caption, unit, percent in metrics:
    points = curve(rows, key)
    if len(points[0]):
      charts.append(Chart(caption, [(points, style)], unit, percent))
  return charts


# --- Figures


def axis_limits(
  charts: Sequence[Chart], from_zero: bool = False
) -> tuple[Limits, Limits]:
  """Returns the ends of the x and the y axis that hold lines of all charts.

  Args:
    charts: of one quantity.
    from_zero: the y axis begins at 0.
  """
  steps, values = [np.zeros(0)], [np.zeros(1 if from_zero else 0)]
  for points, _ in (line for chart in charts for line in chart.lines):
    curved = np.ndim(points) > 0
    steps.append(points[0] if curved else np.zeros(0))
    values.append(points[1] if curved else np.array([points]))
  x, y = _pad(np.concatenate(steps)), _pad(np.concatenate(values))
  x = max(x[0], -x[1] / 20), x[1]  # no steps before 0 where there is one step
  return x, (0.0, y[1]) if from_zero else y


def _pad(values: np.ndarray) -> Limits:
  """Returns ends around finite values, a twentieth of their span away."""
  values = values[np.isfinite(values)]
  low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
  margin = (high - low) / 20 or abs(high) / 20 or 1.0
  return float(low - margin), float(high + margin)


def draw_charts(
  charts: Sequence[Chart],
  size: tuple[int, int] = LARGE_FIGURE,
  shared: bool = False,
  from_zero: bool = False,
) -> list[tuple[str, str]]:
  """Returns captions and SVGs.

  Args:
    charts: what is drawn.
    size: of a figure, see `plots`.
    shared: the charts are of one quantity, and have the same axes.
    from_zero: y axes begin at 0.
  """
  figures = []
  for chart in charts:
    limits = axis_limits(charts if shared else [chart], from_zero)
    plot = partial(draw_lines, lines=chart.lines, limits=limits)
    label = ', '.join(filter(None, (chart.caption, chart.unit, 'by step')))
    svg = draw_svg(plot, label, 'step', chart.unit, size, chart.percent)
    figures.append((chart.caption, svg))
  return figures


def draw_lines(
  axes, lines: list[Line], limits: tuple[Limits, Limits] | None = None
) -> None:
  """Draws curves and levels in matplotlib's axes, with given ends of these."""
  for points, style in lines:
    if np.ndim(points):
      # A single point has no line.
      marker = {'marker': 'o', 'ms': 4} if len(points[0]) == 1 else {}
      axes.plot(*points, **style | marker)
    else:
      axes.axhline(points, **style)
  if limits:
    axes.set(xlim=limits[0], ylim=limits[1])
