"""Draws matplotlib figures as inline SVG of a fixed size in CSS pixels.

A figure is never scaled up, so all digits on a page have one size, whatever the
number of figures beside it.
"""

import dataclasses
import io
import re
from collections.abc import Callable, Sequence

# Width and height in CSS pixels. The larger one fits into a phone's 390 pixels,
# of the smaller ones two stand there side by side.
LARGE_FIGURE, SMALL_FIGURE = (340, 215), (165, 140)
FONT_SIZE = 12  # CSS pixels, of all texts in all figures

# Colours that stand for those of the page while a figure is drawn.
INK, ACCENT = '#010101', '#010102'
COLOURS = {'denoise': '#010103', 'clm': '#010104', 'pair': '#010105'}
# Those of style.css on white, which the colour-blind tell apart, too.
PNG_COLOURS = {'denoise': '#1a6fb8', 'clm': '#b85000', 'pair': '#5a1a6b'}
PNG_INK = '#1f2328'
_STYLE = {
  'svg.fonttype': 'none', 'svg.hashsalt': 'atm', 'font.size': FONT_SIZE,
  **dict.fromkeys(('xtick.labelsize', 'ytick.labelsize', 'axes.titlesize',
                   'axes.labelsize', 'legend.fontsize'), FONT_SIZE),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Panel:
  """One figure of several.

  Attributes:
    caption: what it shows.
    plot: called with matplotlib's axes and what stands for each of INK and
      COLOURS, {colour: colour}.
    x, y: what the axes count.
    whole: the x axis has whole numbers.
  """

  caption: str
  plot: Callable
  x: str
  y: str
  whole: bool = False


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
  from matplotlib.figure import Figure

  # SVG's unit is matplotlib's point of 1/72 inch, and here a CSS pixel.
  with matplotlib.rc_context(_STYLE):
    figure = Figure([side / 72 for side in size], layout='constrained')
    axes = figure.subplots()
    plot(axes)
    _style_axes(axes, x, y, size, INK, percent, whole)
    out = io.StringIO()
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(out, format='svg', transparent=True, metadata=nothing)
  return _fit_page(out.getvalue(), label, size)


def _style_axes(
  axes, x: str, y: str, size: tuple[int, int], ink: str, percent=False,
  whole=True,
) -> None:  # fmt: skip
  """Gives axes their ticks, labels and grid, as in `draw_svg`."""
  import matplotlib.ticker  # heavy

  ticks = matplotlib.ticker.MaxNLocator
  steps = [1, 2, 2.5, 5, 10]
  axes.xaxis.set_major_locator(ticks(size[0] // 40, steps=steps, integer=whole))
  axes.yaxis.set_major_locator(ticks(size[1] // 35, steps=steps))
  axes.xaxis.set_major_formatter(lambda value, _: format_tick(value))
  form = (lambda v: f'{format_tick(v * 100)}%') if percent else format_tick
  axes.yaxis.set_major_formatter(lambda value, _: form(value))
  axes.set_xlabel(x, loc='right', color=ink)
  if y:
    axes.set_title(y, loc='left', color=ink)
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set_color(ink)
  axes.tick_params(labelcolor=ink, length=0)
  axes.grid(axis='y', color=ink, alpha=0.15)
  axes.set_axisbelow(True)


def draw_png(panels: Sequence[Panel], columns: int = 3) -> bytes:
  """Returns figures beside each other as PNG, under one legend.

  Args:
    panels: what is drawn; a name stands for one line in all.
    columns: how many stand in a row.
  """
  import matplotlib  # heavy
  from matplotlib.figure import Figure

  colours = {COLOURS[name]: x for name, x in PNG_COLOURS.items()}
  colours[INK] = PNG_INK
  columns = min(columns, len(panels))
  rows = -(-len(panels) // columns)
  width, height = LARGE_FIGURE
  with matplotlib.rc_context(_STYLE):
    figure = Figure(
      [width * columns / 72, (height * rows + 30) / 72], layout='constrained'
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
      axes.axis('off')
    for axes, panel in zip(grid.flat, panels):
      panel.plot(axes, colours)
      title = f'{panel.caption}\n{panel.y}'
      _style_axes(axes, panel.x, title, LARGE_FIGURE, PNG_INK,
                  whole=panel.whole)  # fmt: skip
    legends = [axes.get_legend_handles_labels() for axes in grid.flat]
    known = {name: line for pair in legends for line, name in zip(*pair)}
    figure.legend(
      known.values(),
      known.keys(),
      loc='outside upper left',
      ncols=5,
      frameon=False,
    )
    out = io.BytesIO()
    # Twice as fine as a page's pixels. No version, so that equal figures are
    # equal files.
    figure.savefig(
      out, format='png', dpi=144, facecolor='white', metadata={'Software': None}
    )
  return out.getvalue()


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
