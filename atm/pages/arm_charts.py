"""Charts of training runs in arms, and those of their losses by FLOPs.

Each chart has sentences that say what it shows, computed from its data, and
what it cannot show.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atm.data.objectives import OBJECTIVE_NAMES
from atm.evals import arms as arms_lib
from atm.evals.arms import Estimate
from atm.pages.charts import format_number
from atm.pages.plots import COLOURS, INK, Panel, draw_svg
from atm.pages.train_charts import NATS

# Lines of arms differ in colour and marker, behind the third in dashes, too.
ARM_MARKERS, ARM_DASHES = ('o', 's', '^'), ('-', '--', ':')
SUPERSCRIPTS = str.maketrans('0123456789-', '⁰¹²³⁴⁵⁶⁷⁸⁹⁻')

Arms = dict[str, list[Mapping[str, Any]]]  # name -> runs of its seeds


@dataclasses.dataclass(frozen=True)
class ArmFigure:
  """Means of all arms by x, with their intervals.

  Attributes:
    caption: what it shows.
    x, unit: what the axes count.
    points: arm -> [(x, estimate)].
    differences: arm, but the first -> [(x, estimate)].
    levels: name -> what to compare with: a number, or {x: number}.
    form: of a number.
    sentences: what it shows, and what it cannot.
    scale: x is divided by it.
    percent: the y axis is from 0 to 100.
    whole: x are few whole numbers, and intervals are bars.
    main: it is no part of another.
  """

  caption: str
  x: str
  unit: str
  points: dict[str, list[tuple[float, Estimate]]]
  differences: dict[str, list[tuple[float, Estimate]]]
  levels: dict[str, float | dict[float, float]]
  form: str
  sentences: list[str]
  scale: float = 1.0
  percent: bool = False
  whole: bool = False
  main: bool = True

  def plot(self, axes, colours: Mapping[str, str] | None = None) -> None:
    """Draws lines, intervals and levels in matplotlib's axes."""
    colours = colours or {INK: INK, **{c: c for c in COLOURS.values()}}
    for k, (arm, points) in enumerate(self.points.items()):
      colour = colours[list(COLOURS.values())[k % len(COLOURS)]]
      x = np.array([at for at, _ in points]) / self.scale
      if self.whole:  # bars of arms stand beside each other
        x = x + 0.06 * (k - (len(self.points) - 1) / 2)
      value, low, high = np.array(
        [dataclasses.astuple(each) for _, each in points]
      ).T
      axes.plot(
        x, value, color=colour, lw=1.5, marker=ARM_MARKERS[k % 3], ms=4.5,
        ls=ARM_DASHES[k // 3 % 3], label=arm.replace('$', r'\$'),
      )  # fmt: skip
      if self.whole:
        axes.vlines(x, low, high, color=colour, lw=1, alpha=0.7)
      else:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    for name, level in self.levels.items():
      dash = ':' if name == 'oracle' else '--'
      style = dict(color=colours[INK], lw=1, ls=dash, alpha=0.6, label=name)
      if isinstance(level, Mapping):
        axes.plot(np.array([*level]) / self.scale, [*level.values()], **style)
      else:
        axes.axhline(level, **style)
    if self.percent:
      axes.set_ylim(0, 104)

  def panel(self) -> Panel:
    """Returns the figure as one of several in a PNG."""
    return Panel(self.caption, self.plot, self.x, self.unit, self.whole)

  def page_data(self) -> dict[str, Any]:
    """Returns the figure's SVG, sentences and table."""
    label = f'{self.caption}, {self.unit}, by {self.x}; a table follows'
    heads, rows = self.table()
    svg = draw_svg(self.plot, label, self.x, self.unit, whole=self.whole)
    return {
      'caption': self.caption, 'svg': svg, 'sentences': self.sentences,
      'heads': heads, 'rows': rows, 'levels': self.levels,
    }  # fmt: skip

  def table(self) -> tuple[list[str], list[list[str]]]:
    """Returns heads and rows: all means and differences by x."""
    heads = [self.x, *self.points]
    heads += [f'{arm} minus {next(iter(self.points))}'
              for arm in self.differences]  # fmt: skip
    columns = [*self.points.values(), *self.differences.values()]
    places = sorted({x for column in columns for x, _ in column})
    signed = [False] * len(self.points) + [True] * len(self.differences)
    rows = [
      [
        _format_place(x / self.scale),
        *(
          format_estimate(dict(column).get(x), self.form, sign)
          for column, sign in zip(columns, signed)
        ),
      ]
      for x in places
    ]
    return heads, rows


def overview_table(
  figures: Sequence[ArmFigure],
) -> tuple[list[str], list[list[tuple[str, bool]]]]:
  """Returns heads and rows: the last point of each figure.

  A score by FLOPs ends where that by shots does, and has no row of its own.
  Cells are texts, and whether they are differences whose interval leaves out 0.
  """
  # The first arm may lack scores, and is in all figures of losses.
  arms = list(dict.fromkeys(arm for f in figures for arm in f.points))
  others = list(dict.fromkeys(
    arm for figure in figures for arm in figure.differences
  ))  # fmt: skip
  heads = ['last point', *arms, *(f'{arm} minus {arms[0]}' for arm in others)]
  rows, seen = [], set()
  for figure in figures:
    if figure.caption in seen:
      continue
    seen.add(figure.caption)
    last = lambda columns, arm: columns[arm][-1][1] if arm in columns else None
    means = [last(figure.points, arm) for arm in arms]
    changes = [last(figure.differences, arm) for arm in others]
    place = max(x for points in figure.points.values() for x, _ in points)
    at = f', {place:g} shots' if figure.whole else ''
    rows.append([
      (figure.caption + at, False),
      *((format_estimate(each, figure.form), False) for each in means),
      *(
        (format_estimate(each, figure.form, True), bool(each and each.sign))
        for each in changes
      ),
    ])  # fmt: skip
  return heads, rows


def _format_place(x: float) -> str:
  """Formats an x of a table with four digits."""
  return f'{x:,.4g}'


def format_estimate(
  estimate: Estimate | None, form: str, signed: bool = False
) -> str:
  """Formats a mean with its interval, '4.10 [4.02, 4.18]'."""
  if estimate is None:
    return ''
  sign = '+' if signed else ''
  value = format_number(estimate.value, f'{sign}{form}')
  if math.isnan(estimate.low):
    return value
  ends = (format_number(x, f'{sign}{form}')
          for x in (estimate.low, estimate.high))  # fmt: skip
  return f'{value} [{", ".join(ends)}]'


def format_flops(flops: float) -> str:
  """Formats FLOPs as '3.2 × 10¹¹'."""
  exponent = math.floor(math.log10(flops)) if flops else 0
  digits = f'{flops / 10**exponent:.3g}'
  return f'{digits} × 10{str(exponent).translate(SUPERSCRIPTS)}'


def group_arms(runs: Sequence[Mapping[str, Any]]) -> Arms:
  """Returns runs by arm, in the order in which arms come first."""
  arms: Arms = {}
  for run in runs:
    arms.setdefault(run['arm'], []).append(run)
  return arms


def scale_flops(flops: float) -> tuple[float, str]:
  """Returns what FLOPs are divided by at an axis, and the axis's name."""
  exponent = 3 * (math.floor(math.log10(flops)) // 3)
  power = str(exponent).translate(SUPERSCRIPTS)
  return 10.0**exponent, f'training FLOPs, 10{power}'


# --- Losses


def loss_figures(arms: Arms) -> list[ArmFigure]:
  """Returns the held-out loss of each objective by training FLOPs."""
  runs = [run for mine in arms.values() for run in mine]
  names = [
    name
    for name in runs[0]['losses']
    if '/' not in name and all(name in run['losses'] for run in runs)
  ]
  known = [name for name in OBJECTIVE_NAMES if name in names]
  others = [name for name in names if name not in known]
  figures = [_loss_figure(arms, name) for name in [*known, *others]]
  return [figure for figure in figures if figure is not None]


def _loss_figure(arms: Arms, name: str) -> ArmFigure | None:
  """Returns one objective's figure, None where no FLOPs are common."""
  runs = [run for mine in arms.values() for run in mine]
  grid = arms_lib.common_grid([np.array(run['flops']) for run in runs])
  grid = grid[grid > 0]  # the loss of no training would flatten the rest
  if not len(grid):
    return None
  losses = {
    arm: np.array(
      [np.interp(grid, run['flops'], run['losses'][name]) for run in mine]
    )
    for arm, mine in arms.items()
  }
  points = {
    arm: [(x, arms_lib.estimate_mean([mine[:, i]])) for i, x in enumerate(grid)]
    for arm, mine in losses.items()
  }
  first, *others = losses
  differences = {
    arm: [
      (
        x,
        arms_lib.estimate_difference(
          [losses[first][:, i]], [losses[arm][:, i]]
        ),
      )
      for i, x in enumerate(grid)
    ]
    for arm in others
  }
  sentences = [_describe_loss(first, arm, differences[arm]) for arm in others]
  sentences.append(describe_seeds(arms) + (
    ' Points before the last are of runs that went on: none of that length was '
    'trained.'
  ))  # fmt: skip
  scale, x = scale_flops(grid[-1])
  level = runs[0]['unigram'].get(name)
  levels = {} if level is None else {'unigram': level}
  return ArmFigure(
    f'held-out loss, {name}', x, NATS, points, differences, levels, '.3f',
    sentences, scale,
  )  # fmt: skip


def _describe_loss(first: str, arm: str, points) -> str:
  """Says how an arm's loss differs from the first arm's."""
  flops, last = points[-1]
  where = (
    f'At {format_flops(flops)} FLOPs, the last point that all runs reached, '
  )
  change = format_estimate(
    Estimate(*map(abs, dataclasses.astuple(last)))
    if last.sign > 0
    else Estimate(-last.value, -last.high, -last.low)
    if last.sign < 0
    else last,
    '.3f', signed=not last.sign,
  )  # fmt: skip
  if math.isnan(last.low):
    return (
      f'{where}{arm} minus {first} is {change} {NATS}. One run an arm has no '
      'interval: other seeds may turn this around.'
    )
  signs = [each.sign for _, each in points]
  if not last.sign:
    text = f'{where}{arm} and {first} cannot be told apart: {change} {NATS}.'
  else:
    word = 'above' if last.sign > 0 else 'below'
    text = f'{where}{arm} is {word} {first} by {change} {NATS}.'
  below, above = signs.count(-1), signs.count(1)
  return (
    f'{text} Of {len(points)} points, {arm} is below in {below} and above in '
    f'{above} by the whole interval.'
  )


def language_table(arms: Arms) -> tuple[list[str], list[list[str]]]:
  """Returns heads and rows: losses by objective and language, at the last x."""
  runs = [run for mine in arms.values() for run in mine]
  names = [
    name
    for name in runs[0]['losses']
    if '/' in name and all(name in run['losses'] for run in runs)
  ]
  figures = [(name, _loss_figure(arms, name)) for name in sorted(names)]
  figures = [(name, figure) for name, figure in figures if figure is not None]
  if not figures:
    return [], []
  tables = [(name, figure.table()) for name, figure in figures]
  heads = ['held-out loss', *tables[0][1][0][1:]]
  return heads, [[name, *rows[-1][1:]] for name, (_, rows) in tables]


def describe_seeds(arms: Arms) -> str:
  """Says what intervals of seeds cover, and what they do not."""
  counts = sorted({len(mine) for mine in arms.values()})
  seeds = ' or '.join(map(str, counts))
  sizes = [run['parameters'] for mine in arms.values() for run in mine]
  low, high = (f'{x / 1e6:.3g}' for x in (min(sizes), max(sizes)))
  size = low if low == high else f'{low} to {high}'
  return (
    f'Intervals are of {seeds} {"seed" if counts == [1] else "seeds"} an arm, '
    'each point by itself. Other text, learning rates and sizes than '
    f'{size} million parameters are not covered.'
  )
