"""Draws matplotlib figures as inline SVG of a fixed size in CSS pixels.

A figure is never scaled up, so all digits on a page have one size, whatever the
number of figures beside it.
"""

import io
import re
from collections.abc import Callable

# Width and height in CSS pixels. The larger one fits into a phone's 390 pixels,
# of the smaller ones two stand there side by side.
LARGE_FIGURE, SMALL_FIGURE = (340, 215), (165, 140)
FONT_SIZE = 12  # CSS pixels, of all texts in all figures

# Colours that stand for those of the page while a figure is drawn.
INK, ACCENT = '#010101', '#010102'
COLOURS = {'denoise': '#010103', 'clm': '#010104', 'pair': '#010105'}


def draw_svg(
  plot: Callable,
  label: str,
  x: str,
  y: str = '',
  size: tuple[int, int] = LARGE_FIGURE,
  percent: bool = False,
  whole: bool = True,
) -> str:
  """Returns a figure as SVG that takes its colours and font from the page.

  Args:
    plot: called with matplotlib's axes; draws in INK, ACCENT and COLOURS.
    label: says to those who do not see the figure what it shows.
    x: what the x axis counts.
    y: unit of the y axis, '' where there is none.
    size: LARGE_FIGURE or SMALL_FIGURE.
    percent: the y axis has shares.
    whole: the x axis has whole numbers.
  """
  import matplotlib  # heavy
  import matplotlib.ticker
  from matplotlib.figure import Figure

  # SVG's unit is matplotlib's point of 1/72 inch, and here a CSS pixel.
  style = {
    'svg.fonttype': 'none', 'svg.hashsalt': 'atm', 'font.size': FONT_SIZE,
    **dict.fromkeys(('xtick.labelsize', 'ytick.labelsize', 'axes.titlesize',
                     'axes.labelsize', 'legend.fontsize'), FONT_SIZE),
  }  # fmt: skip
  with matplotlib.rc_context(style):
    figure = Figure([side / 72 for side in size], layout='constrained')
    axes = figure.subplots()
    plot(axes)
    ticks = matplotlib.ticker.MaxNLocator
    steps = [1, 2, 2.5, 5, 10]
    axes.xaxis.set_major_locator(
      ticks(size[0] // 40, steps=steps, integer=whole)
    )
    axes.yaxis.set_major_locator(ticks(size[1] // 35, steps=steps))
    axes.xaxis.set_major_formatter(lambda value, _: format_tick(value))
    form = (lambda v: f'{format_tick(v * 100)}%') if percent else format_tick
    axes.yaxis.set_major_formatter(lambda value, _: form(value))
    axes.set_xlabel(x, loc='right', color=INK)
    if y:
      axes.set_title(y, loc='left', color=INK)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.spines['bottom'].set_color(INK)
    axes.tick_params(labelcolor=INK, length=0)
    axes.grid(axis='y', color=INK, alpha=0.15)
    axes.set_axisbelow(True)
    out = io.StringIO()
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(out, format='svg', transparent=True, metadata=nothing)
  return _fit_page(out.getvalue(), label, size)


def _fit_page(svg: str, label: str, size: tuple[int, int]) -> str:
  """Returns matplotlib's SVG as markup in the font and colours of a page."""
  import markupsafe  # heavy

  svg = svg[svg.index('<svg') :]
  for what in (
    r'<style.*?</style>', r' xmlns(:xlink)?="[^"]*"', r'font-family: [^;]*;',
    r'(?<=<g) id="[^"]*"',  # would stand on the page many times
    r' (?:width|height)="[0-9.]+pt"',
  ):  # fmt: skip
    svg = re.sub(what, '', svg, flags=re.S)
  svg = svg.replace(INK, 'currentColor').replace(ACCENT, 'var(--accent)')
  for name, colour in COLOURS.items():
    svg = svg.replace(colour, f'var(--{name})')
  label = markupsafe.escape(label)
  head = f'<svg role="img" aria-label="{label}" width="{size[0]}"'
  return markupsafe.Markup(  # templates do not escape it
    svg.replace('<svg', f'{head} height="{size[1]}"', 1)
  )


def format_tick(value: float) -> str:
  """Formats a number at an axis: '1,400', '0.002', '12M'."""
  value = round(value, 12) + 0.0  # no minus in front of 0
  if abs(value) >= 1e6:
    return f'{value / 1e6:,g}M'.replace('-', '−')
  form = ',.0f' if abs(value) >= 1e5 else ',g'
  return format(value, form).replace('-', '−')
