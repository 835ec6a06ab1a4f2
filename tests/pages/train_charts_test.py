"""Charts of a run: what they draw, and that equal quantities have equal axes.

Fault seen: points beyond POINTS dropped instead of averaged.
"""

import numpy as np
import pytest

from atm.pages import plots, train_charts

from synthetic import Page


def rows_of(**losses):
  """Returns rows of two steps, with held-out losses by objective/language."""
  return [
    {'step': step, **{f'eval/loss/{k}': v - step for k, v in losses.items()}}
    for step in (0, 1)
  ]


def test_long_curves_are_averaged():
  rows = [{'step': i, 'x': float(i % 2)} for i in range(10_000)]
  steps, values = train_charts.curve(rows, 'x')
  assert len(steps) == train_charts.POINTS and steps[-1] > 9_900
  np.testing.assert_allclose(values, 0.5, atol=0.03)
  short = train_charts.curve([{'step': 3, 'x': 1.0}, {'step': 4}], 'x')
  assert [a.tolist() for a in short] == [[3.0], [1.0]]


def test_charts_of_languages_have_the_same_axes():
  """Fault seen: each had a scale of its own, and all looked alike."""
  rows = rows_of(**{'clm/ar': 9.0, 'clm/en': 4.0, 'clm/hi': 40.0})
  charts = train_charts.language_charts(
    rows, {language: ['clm'] for language in ('ar', 'en', 'hi')}
  )
  x, y = train_charts.axis_limits(charts)
  assert y[0] < 3.0 and y[1] > 40.0 and x[0] < 0 and x[1] > 1
  figures = train_charts.draw_charts(charts, plots.SMALL_FIGURE, shared=True)
  assert [caption for caption, _ in figures] == ['Arabic', 'English', 'Hindi']
  assert len({' '.join(Page(svg).text.split()) for _, svg in figures}) == 1
  assert 'nats a token' in Page(figures[0][1]).text
  own = train_charts.draw_charts(charts, plots.SMALL_FIGURE)
  assert len({' '.join(Page(svg).text.split()) for _, svg in own}) == 3


def test_charts_of_objectives_have_the_same_axes():
  rows = rows_of(denoise=3.0, clm=8.0)
  rows[0]['eval/unigram/clm'] = 12.0
  charts = train_charts.loss_charts(rows)
  assert [chart.caption for chart in charts] == ['denoise', 'clm']
  assert train_charts.axis_limits(charts)[1][1] > 12.0  # a level counts
  figures = train_charts.draw_charts(charts, shared=True)
  assert len({' '.join(Page(svg).text.split()) for _, svg in figures}) == 1


@pytest.mark.parametrize('values', [[2.0, 2.0], [np.nan, np.inf], [0.0]])
def test_axes_have_a_span_whatever_is_drawn(values):
  steps = np.arange(len(values), dtype=float)
  chart = train_charts.Chart('a', [((steps, np.array(values)), {})])
  for low, high in train_charts.axis_limits([chart]):
    assert np.isfinite([low, high]).all() and low < high


def test_a_single_point_is_seen_and_no_step_is_before_zero():
  """Fault seen: charts of one evaluation were empty, around step 0."""
  rows = [{'step': 0, 'eval/loss/clm/ar': 8.0}]
  charts = train_charts.language_charts(rows, {'ar': ['clm']})
  ((_, svg),) = train_charts.draw_charts(charts, plots.SMALL_FIGURE)
  assert '<use' in svg  # a marker
  texts = Page(svg).text.split()
  assert '0' in texts and not any('−' in text for text in texts)


def test_speed_begins_at_zero_and_scores_have_a_unit():
  rows = [
    {'step': i, 'mfu': 0.25 + i / 1e4, 'few_shot/xnli': 33.0 + i,
     'few_shot/xnli/xnli_ar': 31.0}
    for i in range(3)
  ]  # fmt: skip
  (chart,) = train_charts.speed_charts(rows)
  assert chart.percent and chart.unit == "of the devices' peak"
  assert train_charts.axis_limits([chart], from_zero=True)[1][0] == 0
  ((_, svg),) = train_charts.draw_charts([chart], from_zero=True)
  assert '0%' in Page(svg).text and '20%' in Page(svg).text
  (few,) = train_charts.few_shot_charts(rows)
  assert (few.caption, few.unit) == ('xnli', 'score, 0 to 100')
  assert len(few.lines) == 2
