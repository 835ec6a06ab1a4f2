"""Renders HTML pages from templates/*.html.jinja and style.css.

A page is one file that needs no other and runs no script. jinja2 escapes all
text; the only markup from elsewhere are the figures of `plots.draw_svg`.
"""

import functools
import os
import unicodedata
from collections.abc import Callable, Iterable

from atm import fileio, messages
from atm.data import mixture_stats
from atm.data.languages import name_language
from atm.pages import charts

# What stands in texts for what cannot be shown.
SIGNS = {
  '⁇': 'is one sign, and stands for characters that the vocabulary lacks.',
  '\ufffd': 'stands for bytes that are not a whole character.',
}


@functools.cache
def environment():
  """Returns the jinja2 environment of all pages, which escapes all text."""
  import jinja2  # heavy

  here = os.path.dirname(__file__)
  made = jinja2.Environment(
    loader=jinja2.FileSystemLoader([os.path.join(here, 'templates'), here]),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  made.filters.update(
    clock=messages.clock_text,
    direction_mark=direction_mark,
    epochs=mixture_stats.format_epochs,
    interval=charts.format_interval,
    language_name=name_language,
    number=charts.format_number,
    p_value=charts.format_p_value,
    percent='{:.2%}'.format,
    thousands='{:,}'.format,
  )
  made.globals.update(
    layout_difference_bar=charts.layout_difference_bar,
    layout_heat_map=charts.layout_heat_map,
    layout_score_bar=charts.layout_score_bar,
  )
  return made


def render(template: str, data: dict) -> str:
  """Returns the HTML of templates/TEMPLATE.html.jinja, filled with `data`."""
  return environment().get_template(f'{template}.html.jinja').render(data)


def render_markdown(template: str, data: dict, filters: dict) -> str:
  """Returns the Markdown of templates/TEMPLATE.md.jinja, filled with `data`.

  Nothing is escaped but by filters.
  """
  made = environment().overlay(autoescape=False)
  made.filters = {**made.filters, **filters}
  return made.get_template(f'{template}.md.jinja').render(data)


def write_page(path: str, template: str, data: dict) -> str:
  """Writes a page, whole or not at all; returns its path."""
  fileio.write_atomically(path, render(template, data))
  return path


def group_by(items: Iterable, key: Callable) -> dict[str, list]:
  """Returns items by their key, in the order in which keys come first."""
  groups: dict[str, list] = {}
  for item in items:
    groups.setdefault(key(item), []).append(item)
  return groups


def explain_signs(texts: Iterable[str]) -> list[tuple[str, str]]:
  """Returns (sign, meaning) of the signs that are in any of the texts."""
  there = set().union(*texts)
  return [(sign, meaning) for sign, meaning in SIGNS.items() if sign in there]


def direction_mark(text: str) -> str:
  """Returns the mark for dir="auto" of the direction most letters have."""
  # Without it the first letter decides, and an Arabic text may begin with an
  # English name.
  kinds = [unicodedata.bidirectional(c) for c in text]
  right = kinds.count('R') + kinds.count('AL')
  return '\u200f' if right > kinds.count('L') else '\u200e'
