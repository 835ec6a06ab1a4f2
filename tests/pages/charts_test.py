"""Bars and heat maps are to scale, and say their numbers."""

from atm.evals import published
from atm.pages import charts

from synthetic import draw_macro


def drawn_bar(drawing):
  return draw_macro('macros', 'svg_bar(drawing)', drawing=drawing)


def test_a_bar_is_to_scale():
  score = {'value': 25.0, 'low': 20.0, 'high': 30.0}
  theirs = published.Published(40, 'medium', '')
  drawn = drawn_bar(charts.layout_score_bar(score, 50, 10, theirs))
  of = lambda kind: next(a for _, a in drawn.elements if a.get('class') == kind)
  assert of('value')['width'] == '100.0' and of('published')['cx'] == '160.0'
  assert (of('interval')['x1'], of('interval')['x2']) == ('80.0', '120.0')
  assert of('chance')['x1'] == '40.0'
  nothing = {'value': None, 'low': None, 'high': None}
  assert (
    drawn_bar(charts.layout_score_bar(nothing, 50)).elements[0][1]['aria-label']
    == charts.NONE
  )
  assert [charts.axis_end(x) for x in ([3.1, None], [41, 100.2], [])] == [
    10,
    100,
    100,
  ]


def test_a_difference_is_to_scale_from_minus_to_plus_its_end():
  score = {'value': -5.0, 'low': -10.0, 'high': 20.0, 'sure': False}
  drawn = drawn_bar(charts.layout_difference_bar(score, 10))
  of = lambda kind: next(a for _, a in drawn.elements if a.get('class') == kind)
  assert of('bar worse')['aria-label'] == '−5.0, 95% interval −10.0 to 20.0'
  assert of('zero')['x1'] == '100.0' and of('value')['cx'] == '50.0'
  assert (of('interval')['x1'], of('interval')['x2']) == ('0.0', '200.0')


def test_a_row_of_a_heat_map_is_a_source():
  """Seen to fail with rows and columns swapped, or means over both."""
  score = lambda value, sure=False: {
    'value': value, 'low': None, 'high': None, 'sure': sure
  }  # fmt: skip
  cells = {
    ('xx', 'ar'): score(-2.0),
    ('ar', 'xx'): score(4.0, sure=True),
    ('en', 'ar'): score(1.0),
  }
  data = {'map': charts.layout_heat_map(cells, signed=True)}
  drawn = draw_macro('macros', 'heat_map(map)', **data)
  assert drawn.rows == [
    ['from', 'ar', 'en', 'xx', 'mean'],
    ['ar Arabic', '', '–', '+4.0', '+4.0'],
    ['en English', '+1.0', '', '–', '+1.0'],
    ['xx ', '−2.0', '–', '', '−2.0'],
    ['mean', '−0.5', '–', '+4.0', '+1.0'],
  ]
  (worse,) = [
    a for tag, a in drawn.elements if (tag, a.get('class')) == ('td', 'worse')
  ]
  assert worse == {
    'class': 'worse', 'title': 'xx to ar: −2.0', 'style': '--heat: 35%'
  }  # fmt: skip
  assert [tag for tag, _ in drawn.elements].count('strong') == 1


def test_no_difference_has_no_colour_and_no_sign():
  """Fault seen: 0.0 was a red dot, and '+0.0' in the table."""
  score = {'low': 0.0, 'high': 0.0, 'sure': False}
  for value in (0.0, -0.0, 0.04, -0.04):
    bar = charts.layout_difference_bar(score | {'value': value}, 1)
    assert bar['class'] == 'bar same'
    assert bar['label'].startswith('0.0, ')
    cells = {('ar', 'en'): score | {'value': value}}
    cell = charts.layout_heat_map(cells, signed=True)['cells']['ar', 'en']
    assert cell['class'] == 'same'
  kinds = map(charts.difference_class, (0.05001, -0.06, None, float('nan')))
  assert list(kinds) == ['better', 'worse', 'same', 'same']


def test_a_dot_is_filled_where_the_difference_is_significant():
  score = {'value': 2.0, 'low': 1.0, 'high': 3.0}
  for sure, kind in ((True, 'value sure'), (False, 'value')):
    bar = charts.layout_difference_bar(score | {'sure': sure}, 4)
    assert [circle[-1] for circle in bar['circles']] == [kind]


def test_scores_of_cut_prompts_have_no_colour_in_a_heat_map():
  cells = {
    ('ar', 'en'): {'value': 4.0, 'cut': True},
    ('en', 'ar'): {'value': 2.0, 'cut': False},
  }
  drawn = draw_macro(
    'macros', 'heat_map(map)', map=charts.layout_heat_map(cells)
  )
  heats = {
    a['title']: (a.get('class'), a['style'])
    for _, a in drawn.elements
    if 'title' in a
  }
  assert heats == {
    'ar to en: 4.0': ('cut', '--heat: 0%'),
    'en to ar: 2.0': (None, '--heat: 35%'),
  }
  assert 'every prompt was cut' in drawn.text


def test_numbers_are_written_with_a_minus_or_a_dash():
  assert charts.format_number(-1.25, '+.2f') == '−1.25'
  assert charts.format_number(-0.01) == charts.format_number(0.0, '+.1f')
  assert charts.format_number(float('nan')) == charts.NONE
  assert charts.format_interval({'low': 1, 'high': 2.06}) == '1.0 to 2.1'
  assert charts.format_interval({'value': 1}) == charts.NONE
  assert charts.format_p_value(0.0012) == '0.001'
  assert charts.format_p_value(0.0009) == '0.0009'
