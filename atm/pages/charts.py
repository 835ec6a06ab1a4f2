"""Scores as a reader sees them: numbers, bars and heat maps, in HTML and SVG.

Nothing here needs a script or another file; colours are those of `html.STYLE`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atm.data.languages import LANGUAGES
from atm.evals.published import Published
from atm.pages.html import tag, tags

WIDTH, HEIGHT = 200, 16  # of a bar, in CSS pixels
NONE = '–'

LEGEND = (
  'A bar is the score, the line across its end the 95% interval of a bootstrap '
  'over questions, the dashes are chance, the ring is a published figure.'
)


def number(value: float | None, form: str = '.1f') -> str:
  """A score as text, a dash where there is none."""
  there = value is not None and not math.isnan(value)
  return format(value, form).replace('-', '−') if there else NONE


def interval(score: Mapping[str, Any]) -> str:
  """'59.8 to 62.5'."""
  low, high = (number(score.get(end)) for end in ('low', 'high'))
  return NONE if low == NONE else f'{low} to {high}'


def top_of(values: Sequence[float | None]) -> float:
  """The end of a scale that begins at 0: a multiple of 10, at most 100."""
  there = [v for v in values if v is not None and not math.isnan(v)]
  return min(100.0, 10.0 * max(1, math.ceil(max(there, default=100) / 10)))


def bar(
  score: Mapping[str, Any],
  top: float,
  chance: float | None = None,
  published: Published | None = None,
) -> str:
  """A score from 0 to `top` as SVG; its numbers are its label."""
  at = lambda value: f'{WIDTH * min(max(value / top, 0), 1):.1f}'
  rect = lambda x, width, kind: tag(
    'rect', x=x, y='5', width=width, height='6', rx='1', class_=kind
  )
  line = lambda x1, x2, y1, y2, kind: tag(
    'line', x1=x1, x2=x2, y1=str(y1), y2=str(y2), class_=kind
  )
  drawn, said = [rect('0', str(WIDTH), 'track')], [number(score['value'])]
  if number(score['value']) != NONE:
    drawn.append(rect('0', at(score['value']), 'value'))
  if interval(score) != NONE:
    low, high = at(score['low']), at(score['high'])
    drawn.append(line(low, high, 8, 8, 'interval'))
    drawn += [line(x, x, 5.5, 10.5, 'interval') for x in (low, high)]
    said.append(f'95% interval {interval(score)}')
  if chance is not None:
    x = at(chance)
    drawn.append(line(x, x, 1, 15, 'chance'))
    said.append(f'chance {number(chance)}')
  if published is not None:
    x = at(published.value)
    drawn.append(tag('circle', cx=x, cy='8', r='4', class_='published'))
    said.append(f'published {published.value:g}')
  box = f'-6 0 {WIDTH + 12} {HEIGHT}'
  label = {'role': 'img', 'aria-label': ', '.join(said)}
  return tag('svg', *drawn, viewBox=box, class_='bar', **label)


def difference_bar(score: Mapping[str, Any], end: float) -> str:
  """A difference and its interval from -end to +end as SVG."""
  at = lambda value: f'{WIDTH / 2 * (1 + min(max(value / end, -1), 1)):.1f}'
  line = lambda x1, x2, y1, y2, kind: tag(
    'line', x1=x1, x2=x2, y1=str(y1), y2=str(y2), class_=kind
  )
  low, high = at(score['low']), at(score['high'])
  drawn = [
    line(at(0), at(0), 1, 15, 'zero'),
    line(low, high, 8, 8, 'interval'),
    *(line(x, x, 5.5, 10.5, 'interval') for x in (low, high)),
    tag('circle', cx=at(score['value']), cy='8', r='3.5', class_='value'),
  ]
  said = f'{number(score["value"], "+.1f")}, 95% interval {interval(score)}'
  box = f'-6 0 {WIDTH + 12} {HEIGHT}'
  label = {'role': 'img', 'aria-label': said}
  kind = f'bar {"good" if score["value"] > 0 else "bad"}'
  return tag('svg', *drawn, viewBox=box, class_=kind, **label)


def heat_map(
  cells: Mapping[tuple[str, str], Mapping[str, Any]], signed: bool = False
) -> str:
  """Scores of directions: a row a source, a column a target, and means.

  Args:
    cells: by codes of source and target language, a score: value, low, high;
      bold where it has a true `sure`.
    signed: the scores are differences; green above 0, red below.
  """
  there = {code for pair in cells for code in pair}
  codes = [code for code in LANGUAGES if code in there]
  codes += sorted(there - set(codes))
  top = max((abs(_value(score)) for score in cells.values()), default=0.0)
  form = '+.1f' if signed else '.1f'
  head = tags('th', 'from', *codes, 'mean')
  body = []
  for source in codes:
    made = [tag('th', *_named(source), scope='row')]
    made += [_cell((source, to), cells, top, form) for to in codes]
    made.append(_mean(cells, form, lambda s, t, k=source: s == k))
    body.append(tag('tr', *made))
  last = [_mean(cells, form, lambda s, t, k=to: t == k) for to in codes]
  last = tags('th', 'mean'), *last, _mean(cells, form, lambda s, t: True)
  body.append(tag('tr', *last))
  note = 'A row is a source, a column a target. Colour from '
  note += f'−{top:.1f} to +{top:.1f}.' if signed else f'0 to {top:.1f}.'
  head = tag('thead', tag('tr', head))
  table = tag('table', head, tag('tbody', *body), class_='heat')
  note = tag('p', html.escape(note), class_='soft')
  return note + tag('div', table, class_='wide')


def _value(score: Mapping[str, Any] | None) -> float:
  value = score and score['value']
  return 0.0 if value is None or math.isnan(value) else value


def _named(code: str) -> tuple[str, str]:
  """A code, and its language where there is room for it."""
  name = LANGUAGES.get(code, '')
  return html.escape(code), tag('span', html.escape(f' {name}'))


def _cell(pair: tuple[str, str], cells: Mapping, top: float, form: str) -> str:
  if pair not in cells:
    return tag('td', NONE if pair[0] != pair[1] else '', class_='none')
  score = cells[pair]
  share = 70 * abs(_value(score)) / top if top else 0
  value = number(score['value'], form)
  title = f'{pair[0]} to {pair[1]}: {value}'
  if interval(score) != NONE:
    title += f' ({interval(score)})'
  heat = f'--heat: {share:.0f}%'
  kind = {'class_': 'bad' if _value(score) < 0 else 'good'}
  kind = kind if form.startswith('+') else {}
  text = tags('strong', value) if score.get('sure') else value
  return tag('td', text, title=title, style=heat, **kind)


def _mean(cells: Mapping, form: str, keep: Callable[[str, str], bool]) -> str:
  found = [_value(score) for pair, score in cells.items() if keep(*pair)]
  mean = sum(found) / len(found) if found else None
  return tag('td', number(mean, form), class_='mean')


STYLE = """
:root { --accent: var(--denoise) }
.good { --accent: var(--clm) }
.bad { --accent: var(--gone) }
.bar { width: 13.25rem; height: 1rem; flex: none }
.bar .track { fill: var(--line) }
.bar .value { fill: var(--accent) }
.bar .interval { stroke: var(--ink); stroke-width: 1.25 }
.bar .zero { stroke: var(--soft); stroke-width: 1.5 }
.bar .chance { stroke: var(--ink); stroke-width: 1.25;
  stroke-dasharray: 2 1.5 }
.bar .published { fill: var(--paper); stroke: var(--gone); stroke-width: 1.75 }
.scores :is(th, td) { overflow-wrap: normal;
  padding-inline-start: clamp(.5rem, 1.6vw, 1.5rem) }
.scores :is(th, td):first-child { padding-inline-start: 0; white-space: normal;
  min-width: 6rem }
.scores tbody th { font-weight: 400; text-align: start }
.scores tbody tr:first-child :is(th, td) { border-top: 1px solid var(--line);
  padding-top: .3rem }
.scores tbody tr + tr { color: var(--soft) }
.scores tfoot :is(th, td) { border-top: 1px solid var(--ink);
  padding-top: .3rem }
.scores .main { font-weight: 600 }
.scores small, .soft { color: var(--soft) }
.soft { font-size: .875rem; max-width: 48rem }
.heat th, .heat td { padding: .3rem .15rem; text-align: center;
  min-width: 2.6rem; font-size: .8125rem; font-weight: 400 }
.heat :is(th, td):nth-child(-n+2) { text-align: center }
.heat tbody th:first-child { text-align: start; padding-inline-end: .5rem;
  position: sticky; left: 0; background: var(--paper) }
.heat tbody tr:first-child th { border-top: 0; padding-top: .3rem }
.heat th span { color: var(--soft) }
.heat td { border: 1px solid var(--paper);
  background: color-mix(in srgb, var(--accent) var(--heat, 0%), var(--card)) }
.heat td:is(.none, .mean) { background: none }
.heat td.mean { color: var(--soft) }
@media (max-width: 40rem) { .heat th span { display: none }
  .bar { width: 8rem }
  .scores :is(th, td):first-child { min-width: 4rem } }
"""
