"""Figures take their colours from the page and fit in it many times."""

import re

import pytest

from atm.pages import plots

from synthetic import Page


def test_a_figure_has_the_colours_of_the_page_and_no_names_of_its_own():
  """Seen to fail with one of the substitutions left out."""

  def plot(axes):
    axes.plot([0, 1], color=plots.ACCENT)
    axes.plot([1, 0], color=plots.COLOURS['clm'])

  svg = plots.draw_svg(plot, 'a <b>', 'step', 'shares', percent=True)
  assert 'var(--accent)' in svg and 'var(--clm)' in svg
  assert 'currentColor' in svg and '#0101' not in svg
  drawn = Page(svg)
  assert drawn.elements[0][0] == 'svg'
  for tag, attributes in drawn.elements:
    assert tag != 'style' and 'xmlns' not in attributes
    assert tag != 'g' or 'id' not in attributes
  assert drawn.elements[0][1]['aria-label'] == 'a <b>'
  for text in ('100%', 'step', 'shares'):
    assert text in drawn.text
  assert '100%' not in Page(plots.draw_svg(plot, '', '')).text


def test_digits_have_one_size_in_figures_of_any_size():
  """Fault seen: digits of 36 pixels beside some of 7, as figures were scaled.

  Figures have the size that they are shown in, which fits into a phone.
  """
  plot = lambda axes: axes.plot([0, 1400], [7.5, 2.5])
  for size in (plots.LARGE_FIGURE, plots.SMALL_FIGURE):
    svg = plots.draw_svg(plot, '', 'step', 'nats a token', size)
    drawn = Page(svg)
    shown = drawn.elements[0][1]
    width, height = map(str, size)
    assert (shown['width'], shown['height']) == (width, height)
    assert shown['viewbox'] == f'0 0 {width} {height}' and size[0] <= 350
    sizes = re.findall(r'font-size: ([^;]*)', svg)
    assert set(sizes) == {f'{plots.FONT_SIZE}px'} and len(sizes) > 5


def test_a_png_has_all_panels_in_real_colours():
  """Twice the same bytes, under one legend of all names."""
  used = []

  def plot(axes, colours):
    used.append(colours)
    axes.plot([0, 1], color=colours[plots.COLOURS['clm']], label='a')

  panels = [plots.Panel(f'panel {i}', plot, 'x', 'y') for i in range(4)]
  made = plots.draw_png(panels)
  assert made == plots.draw_png(panels) and made.startswith(b'\x89PNG')
  width, height = (int.from_bytes(made[at : at + 4], 'big') for at in (16, 20))
  assert (width, height) == (3 * 340 * 2, (2 * 215 + 30) * 2)
  assert used[0][plots.COLOURS['clm']] == plots.PNG_COLOURS['clm']
  assert len(plots.draw_png(panels[:1])) < len(made)


@pytest.mark.parametrize(
  'value, text',
  [
    (1400, '1,400'), (0.0002, '0.0002'), (-0.0, '0'), (12e6, '12M'),
    (0.1 + 0.2, '0.3'), (-3.5, '−3.5'), (150_000, '150,000'),
  ],
)  # fmt: skip
def test_numbers_at_an_axis(value, text):
  assert plots.format_tick(value) == text
