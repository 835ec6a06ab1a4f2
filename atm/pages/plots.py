"""Draws matplotlib figures as inline SVG."""

import io
import re
from collections.abc import Callable


def draw_svg(
  plot: Callable, size: tuple[float, float] = (3.6, 2.2), percent: bool = True
) -> str:
  """Returns a figure as SVG that takes its colours and font from the page.

  plot(axes) draws in INK, ACCENT and COLOURS; `percent`: the y axis has shares.
  """
  import markupsafe
  import matplotlib  # heavy
  from matplotlib.figure import Figure

  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'atm'}):
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots()
    plot(axes)
    if percent:
      axes.yaxis.set_major_formatter(lambda y, _: f'{y * 100:g}%')
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.spines['bottom'].set_color(INK)
    axes.tick_params(labelcolor=INK, length=0)
    axes.grid(axis='y', color=INK, alpha=0.15)
    axes.set_axisbelow(True)
    out = io.StringIO()
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(out, format='svg', transparent=True, metadata=nothing)
  svg = out.getvalue()
  svg = svg[svg.index('<svg') :]
  for what in (
    r'<style.*?</style>', r' xmlns(:xlink)?="[^"]*"', r'font-family: [^;]*;',
    r'(?<=<g) id="[^"]*"',  # would stand on the page many times
  ):  # fmt: skip
    svg = re.sub(what, '', svg, flags=re.S)
  svg = svg.replace(INK, 'currentColor').replace(ACCENT, 'var(--accent)')
  for name, colour in COLOURS.items():
    svg = svg.replace(colour, f'var(--{name})')
  return markupsafe.Markup(svg)  # templates do not escape it


# Colours that stand for those of the page while a figure is drawn.
INK, ACCENT = '#010101', '#010102'
COLOURS = {'denoise': '#010103', 'clm': '#010104', 'pair': '#010105'}
