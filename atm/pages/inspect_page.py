"""The page of `atm inspect`: one HTML file that needs no other.

Its own colours and letters are in STYLE; figures are SVG, drawn by matplotlib,
and take theirs from the page.
"""

from __future__ import annotations

import html
import os

import numpy as np

from atm.data import mixture_stats
from atm.data.inspection import (
  DROPPED,
  WRITTEN,
  InspectedExample,
  Inspection,
  ObjectiveCounts,
  TextRun,
  count_spans,
)
from atm.data.languages import name_language
from atm.pages import figures as figures_lib
from atm.pages import html as html_lib

PAGE = 'index.html'


def write(look: Inspection, directory: str) -> str:
  """Writes the page; returns its path."""
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, PAGE)
  with open(path, 'w', encoding='utf-8') as f:
    f.write(page(look))
  return path


def page(look: Inspection) -> str:
  """The whole page, which needs no other file."""
  groups = look.by_language()
  links = (
    html_lib.tag('a', html.escape(name_language(k)), href=f'#in-{k}')
    for k in groups
  )
  body = (
    html_lib.tag(
      'h1',
      html.escape(look.mixture),
      html_lib.tags('small', 'a look at the data'),
    ),
    html_lib.tag(
      'dl',
      *(
        html_lib.tag('div', *map(html_lib.tags, ('dt', 'dd'), x))
        for x in facts(look)
      ),
    ),
    html_lib.tags('h2', 'Mixture'),
    html_lib.tag('div', table(look), class_='wide'),
    html_lib.tag('ul', html_lib.tags('li', *look.notes)),
    html_lib.tags('h2', 'Lengths, and what is dropped'),
    *(figures(kind, counts) for kind, counts in look.counts.items()),
    html_lib.tags('h2', 'Examples'),
    html_lib.tag('p', LEGEND),
    html_lib.tag('nav', *links),
    *(section(language, examples) for language, examples in groups.items()),
  )
  return html_lib.document(f'{look.mixture}: a look at the data', body)


def facts(look: Inspection) -> list[tuple[str, str]]:
  """What was looked at: names and values."""
  rows = sum(len(part.rows) for part in look.parts)
  S, T = look.lengths.both
  return [
    ('tasks', f'{len(look.parts):,}'),
    ('rows', f'{rows:,}'),
    ('tokens', f'{sum(part.rows.tokens for part in look.parts):,}'),
    ('lengths', f'encoder {S:,}, decoder {T:,}'),
    ('vocabulary', f'{look.words.size:,} pieces, {look.words.sha256[:12]}'),
    ('seed', f'{look.seed}'),
    ('rows are in', look.directory),
  ]


def table(look: Inspection) -> str:
  """The mixture's table, a group of rows for each source."""
  found, bodies = look.lines, []
  for source in dict.fromkeys(line.source for line in found):
    mine = [line for line in found if line.source == source]
    weight = sum(line.weight for line in mine)
    cells = [html_lib.tags('th', source, '', '', '', f'{weight:.2%}', '')]
    for line in mine:
      epochs = mixture_stats.format_epochs(line.epochs)
      cells.append(
        html_lib.tags('td', name_language(line.language), line.form,
             f'{line.sentences:,}',
             f'{line.tokens:,}', f'{line.weight:.2%}', epochs)
      )  # fmt: skip
    bodies.append(
      html_lib.tag('tbody', *(html_lib.tag('tr', row) for row in cells))
    )
  names = ('language', 'form', 'sentences', 'tokens', 'weight', 'epochs')
  head = html_lib.tag('thead', html_lib.tag('tr', html_lib.tags('th', *names)))
  over = f'Epochs are over {look.tokens:,.0f} tokens.'
  return html_lib.tag('table', html_lib.tags('caption', over), head, *bodies)


def section(language: str, examples: list[InspectedExample]) -> str:
  """The examples of a language: a column for each objective."""
  made = [
    html_lib.tag(
      'h3', html.escape(name_language(language)), id=f'in-{language}'
    )
  ]
  forms: dict[str, dict[str, list[str]]] = {}
  for each in examples:
    form = f'{each.part.source} {each.part.form}'.strip()
    columns = forms.setdefault(form, {})
    columns.setdefault(each.part.objective.name, []).append(card(each))
  for form, columns in forms.items():
    cards = (html_lib.tag('div', *column) for column in columns.values())
    made += [
      html_lib.tags('h4', form),
      html_lib.tag('div', *cards, class_='columns'),
    ]
  return html_lib.tag('section', *made)


def card(each: InspectedExample) -> str:
  """One example, its blocks one below the other."""
  language = '' if each.part.language == 'all' else each.part.language
  made, before = [html_lib.tags('header', each.title())], None
  for what, runs in each.blocks:
    if what != before:
      made.append(html_lib.tags('h5', what))
    before = what
    text = html_lib.direction(runs), *map(marked, runs)
    made.append(
      html_lib.tag('p', *text, lang=language, dir='auto', class_='text')
    )
  return html_lib.tag('article', *made, class_=each.part.objective.name)


def marked(run: TextRun) -> str:
  """A run of text; special pieces do not count for the text's direction."""
  text = (
    html_lib.tags('bdi', run.text) if run.special else html.escape(run.text)
  )
  wrap = {DROPPED: 'del', WRITTEN: 'ins'}.get(run.mark)
  return html_lib.tag(wrap, text) if wrap else text


# --- Histograms


def figures(kind, counts: ObjectiveCounts) -> str:
  """The histograms of one objective."""
  text = {'denoise': 'row', 'clm': 'document', 'pair': 'pair'}[kind.name]
  drawn = {
    f'tokens of a {text}': lambda a: lengths_in(a, counts.texts),
    'filled places of the encoder': lambda a: lengths_in(a, counts.encoder),
    'filled places of the decoder': lambda a: lengths_in(a, counts.decoder),
  }
  if kind.name == 'denoise':
    name = f'tokens of a dropped span; dots: Poisson({kind.mean_span:g}) '
    name += 'without 0, the last span of a row cut'
    drawn[name] = lambda a: spans_in(a, *count_spans(kind, counts))
  elif kind.name == 'clm':
    name, edges = 'share the encoder reads of a document', np.linspace(0, 1, 21)
    drawn[name] = lambda a: bars(a, counts.prefix, edges)
  made = (
    html_lib.tag(
      'figure', figures_lib.draw(plot), html_lib.tags('figcaption', name)
    )
    for name, plot in drawn.items()
  )
  head = html_lib.tags('h4', f'{kind.name}, {len(counts.encoder):,} rows')
  return head + html_lib.tag('div', *made, class_=f'figures {kind.name}')


def bars(axes, values: np.ndarray, edges: np.ndarray) -> None:
  shares = np.full(len(values), 1 / max(1, len(values)))
  axes.hist(values, edges, weights=shares, color=figures_lib.ACCENT, rwidth=0.9)


def lengths_in(axes, lengths: np.ndarray) -> None:
  """At most 24 bars of as many whole numbers each."""
  most = lengths.max(initial=0) + 1
  width = -(-most // 24)
  bars(axes, lengths, np.arange(0, most + width, width))


def spans_in(axes, found: np.ndarray, expected: np.ndarray) -> None:
  k = np.arange(1, np.flatnonzero(found).max(initial=1) + 1)
  axes.bar(k, found[k] / max(1e-9, found.sum()), color=figures_lib.ACCENT)
  dots = expected[k] / max(1e-9, expected.sum())
  axes.plot(k, dots, 'o', ms=4, color=figures_lib.INK)
  axes.xaxis.get_major_locator().set_params(integer=True)


LEGEND = (
  '<del>Dropped</del> is left out of what the encoder reads, with nothing in '
  'its place. <ins>Written on</ins> is what the decoder adds to it. Special '
  'pieces, such as <bdi>[DOC]</bdi>, are no text.'
)
