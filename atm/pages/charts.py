"""Computes how scores are drawn: numbers as text, bars and heat maps.

The results are plain data, which templates/macros.html.jinja draws as HTML and
SVG in the colours of style.css.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from atm.data.languages import LANGUAGES
from atm.evals.published import Published

WIDTH = 200  # of a bar, in CSS pixels
NONE = '–'


def is_missing(value: float | None) -> bool:
  """Returns whether a score is None or nan."""
  return value is None or math.isnan(value)


def format_number(value: float | None, form: str = '.1f') -> str:
  """Formats a score, or a dash where there is none; 0 has no sign."""
  if is_missing(value):
    return NONE
  text = format(value, form)
  # Also what is 0 where it is rounded: '+0.0' looks like a gain.
  return text.replace('-', '−') if float(text) else text.lstrip('+-')


def difference_class(difference: float | None) -> str:
  """Returns the class of style.css of a difference: better, worse, same."""
  # As it is written: one that is rounded to 0.0 is the same.
  if is_missing(difference) or not float(f'{difference:.1f}'):
    return 'same'
  return 'better' if difference > 0 else 'worse'


def format_interval(score: Mapping[str, Any]) -> str:
  """Formats the interval of a score as '59.8 to 62.5'."""
  low, high = (format_number(score.get(end)) for end in ('low', 'high'))
  return NONE if low == NONE else f'{low} to {high}'


def format_p_value(p: float) -> str:
  """Formats p with a digit more where it is below 0.001."""
  return f'{p:.3f}' if p >= 0.001 else f'{p:.4f}'


def axis_end(values: Iterable[float | None]) -> float:
  """Returns the end of an axis from 0: a multiple of 10, at most 100."""
  most = max((v for v in values if not is_missing(v)), default=100)
  return min(100.0, 10.0 * max(1, math.ceil(most / 10)))


def layout_score_bar(
  score: Mapping[str, Any],
  end: float,
  chance: float | None = None,
  published: Published | None = None,
) -> dict[str, Any]:
  """Returns the shapes of a score's bar on an axis from 0 to `end`.

  `score` has a value, and low and high where there is an interval; `chance` is
  drawn as dashes, the published figure as a ring.
  """
  at = lambda value: f'{WIDTH * min(max(value / end, 0), 1):.1f}'
  rectangles, lines, circles = [(WIDTH, 'track')], [], []
  label = format_number(score['value'])
  if not is_missing(score['value']):
    rectangles.append((at(score['value']), 'value'))
  if format_interval(score) != NONE:
    lines += _interval_lines(at(score['low']), at(score['high']))
    label += f', 95% interval {format_interval(score)}'
  if chance is not None:
    lines.append((at(chance), at(chance), 1, 15, 'chance'))
    label += f', chance {format_number(chance)}'
  if published is not None:
    circles.append((at(published.value), 4, 'published'))
    label += f', published {published.value:g}'
  return {
    'class': 'bar', 'label': label, 'width': WIDTH, 'rectangles': rectangles,
    'lines': lines, 'circles': circles,
  }  # fmt: skip


def layout_difference_bar(
  difference: Mapping[str, Any], end: float
) -> dict[str, Any]:
  """Returns shapes, as `layout_score_bar`, of a difference, -end to +end.

  Its dot is filled where `sure`, and hollow where it may be chance.
  """
  at = lambda value: f'{WIDTH / 2 * (1 + min(max(value / end, -1), 1)):.1f}'
  value = difference['value']
  label = f'{format_number(value, "+.1f")}, 95% interval '
  lines = _interval_lines(at(difference['low']), at(difference['high']))
  return {
    'class': f'bar {difference_class(value)}',
    'label': label + format_interval(difference), 'width': WIDTH,
    'rectangles': [], 'lines': [(at(0), at(0), 1, 15, 'zero'), *lines],
    'circles': [(at(value), 3.5, f'value{" sure" * difference["sure"]}')],
  }  # fmt: skip


def _interval_lines(low: str, high: str) -> list[tuple]:
  """Returns (x1, x2, y1, y2, class) of an interval and of its ends."""
  ends = [(x, x, 5.5, 10.5, 'interval') for x in (low, high)]
  return [(low, high, 8, 8, 'interval'), *ends]


def layout_heat_map(
  cells: Mapping[tuple[str, str], Mapping[str, Any]], signed: bool = False
) -> dict[str, Any]:
  """Returns the rows of a table of directions, with means.

  Args:
    cells: by codes of source and target language, a score: value, low, high;
      bold where it has a true `sure`, without colour where a true `cut`.
    signed: the scores are differences, in the colours of `difference_class`.
  """
  present = {code for pair in cells for code in pair}
  codes = [code for code in LANGUAGES if code in present]
  codes += sorted(present - set(codes))
  values = {
    pair: 0.0 if is_missing(score['value']) else score['value']
    for pair, score in cells.items()
  }
  end = max(map(abs, values.values()), default=0.0)

  def mean(keep) -> float | None:
    some = [value for pair, value in values.items() if keep(pair)]
    return sum(some) / len(some) if some else None

  def cell(pair) -> dict[str, Any] | None:
    if pair not in cells:
      return None
    share = 70 * abs(values[pair]) / end if end else 0  # % of the accent colour
    kind = difference_class(values[pair]) if signed else ''
    if cells[pair].get('cut'):
      kind, share = 'cut', 0
    return {'sure': False, **cells[pair], 'class': kind, 'share': share}

  return {
    'end': end,
    'form': '+.1f' if signed else '.1f',
    'signed': signed,
    'any_cut': any(score.get('cut') for score in cells.values()),
    'codes': {code: LANGUAGES.get(code, '') for code in codes},
    'cells': {(a, b): cell((a, b)) for a in codes for b in codes},
    'row_means': {a: mean(lambda pair, a=a: pair[0] == a) for a in codes},
    'column_means': [mean(lambda pair, b=b: pair[1] == b) for b in codes],
    'mean': mean(bool),
  }
