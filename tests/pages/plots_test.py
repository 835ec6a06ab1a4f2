"""Figures take their colours from the page and fit in it many times."""

from atm.pages import plots

from synthetic import Page


def test_a_figure_has_the_colours_of_the_page_and_no_names_of_its_own():
  """Seen to fail with one of the substitutions left out."""

  def plot(axes):
    axes.plot([0, 1], color=plots.ACCENT)
    axes.plot([1, 0], color=plots.COLOURS['clm'])

  svg = plots.draw_svg(plot)
  assert 'var(--accent)' in svg and 'var(--clm)' in svg
  assert 'currentColor' in svg and '#0101' not in svg
  drawn = Page(svg)
  assert drawn.elements[0][0] == 'svg'
  for tag, attributes in drawn.elements:
    assert tag != 'style' and 'xmlns' not in attributes
    assert tag != 'g' or 'id' not in attributes
  assert '100%' in drawn.text
  assert '100%' not in Page(plots.draw_svg(plot, percent=False)).text
