"""The page of `atm inspect`: one HTML file that needs no other.

Its own colours and letters are in STYLE; figures are SVG, drawn by matplotlib,
and take theirs from the page.
"""

from __future__ import annotations

import html
import io
import os
import re
import unicodedata
from collections.abc import Callable

import numpy as np

from atm import mixture
from atm.samples import (
  DROPPED,
  WRITTEN,
  Counts,
  Example,
  Look,
  Run,
  name_of,
  span_counts,
)

PAGE = 'index.html'


def tag(name: str, *content: str, **attributes: str) -> str:
  """An element; its content is HTML, its attributes are text."""
  given = ''.join(
    f' {key.rstrip("_")}="{html.escape(value)}"'
    for key, value in attributes.items()
  )
  return f'<{name}{given}>{"".join(content)}</{name}>'


def tags(name: str, *texts: str) -> str:
  """An element for each text."""
  return ''.join(tag(name, html.escape(text)) for text in texts)


def write(look: Look, directory: str) -> str:
  """Writes the page; returns its path."""
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, PAGE)
  with open(path, 'w', encoding='utf-8') as f:
    f.write(page(look))
  return path


def page(look: Look) -> str:
  """The whole page, which needs no other file."""
  groups = look.by_language()
  links = (tag('a', html.escape(name_of(k)), href=f'#in-{k}') for k in groups)
  body = (
    tag('h1', html.escape(look.mixture), tags('small', 'a look at the data')),
    tag('dl', *(tag('div', *map(tags, ('dt', 'dd'), x)) for x in facts(look))),
    tags('h2', 'Mixture'),
    tag('div', table(look), class_='wide'),
    tag('ul', tags('li', *look.notes)),
    tags('h2', 'Lengths, and what is dropped'),
    *(figures(kind, counts) for kind, counts in look.counts.items()),
    tags('h2', 'Examples'),
    tag('p', LEGEND),
    tag('nav', *links),
    *(section(language, examples) for language, examples in groups.items()),
  )
  return document(f'{look.mixture}: a look at the data', body)


def document(title: str, body: tuple[str, ...], style: str = '') -> str:
  """A whole HTML file; `style` is CSS beside that of all pages."""
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'{tags("title", title)}'
    f'{tag("style", STYLE + style)}</head>{tag("body", *body)}</html>\n'
  )


def facts(look: Look) -> list[tuple[str, str]]:
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


def table(look: Look) -> str:
  """The mixture's table, a group of rows for each source."""
  found, bodies = look.lines, []
  for source in dict.fromkeys(line.source for line in found):
    mine = [line for line in found if line.source == source]
    weight = sum(line.weight for line in mine)
    cells = [tags('th', source, '', '', '', f'{weight:.2%}', '')]
    for line in mine:
      epochs = mixture.epochs_text(line.epochs)
      cells.append(
        tags('td', name_of(line.language), line.form, f'{line.sentences:,}',
             f'{line.tokens:,}', f'{line.weight:.2%}', epochs)
      )  # fmt: skip
    bodies.append(tag('tbody', *(tag('tr', row) for row in cells)))
  names = ('language', 'form', 'sentences', 'tokens', 'weight', 'epochs')
  head = tag('thead', tag('tr', tags('th', *names)))
  over = f'Epochs are over {look.tokens:,.0f} tokens.'
  return tag('table', tags('caption', over), head, *bodies)


def section(language: str, examples: list[Example]) -> str:
  """The examples of a language: a column for each objective."""
  made = [tag('h3', html.escape(name_of(language)), id=f'in-{language}')]
  forms: dict[str, dict[str, list[str]]] = {}
  for each in examples:
    form = f'{each.part.source} {each.part.form}'.strip()
    columns = forms.setdefault(form, {})
    columns.setdefault(each.part.objective.name, []).append(card(each))
  for form, columns in forms.items():
    cards = (tag('div', *column) for column in columns.values())
    made += [tags('h4', form), tag('div', *cards, class_='columns')]
  return tag('section', *made)


def card(each: Example) -> str:
  """One example, its blocks one below the other."""
  language = '' if each.part.language == 'all' else each.part.language
  made, before = [tags('header', each.title())], None
  for what, runs in each.blocks:
    if what != before:
      made.append(tags('h5', what))
    before = what
    text = direction(runs), *map(marked, runs)
    made.append(tag('p', *text, lang=language, dir='auto', class_='text'))
  return tag('article', *made, class_=each.part.objective.name)


def marked(run: Run) -> str:
  """A run of text; special pieces do not count for the text's direction."""
  text = tags('bdi', run.text) if run.special else html.escape(run.text)
  wrap = {DROPPED: 'del', WRITTEN: 'ins'}.get(run.mark)
  return tag(wrap, text) if wrap else text


def direction(runs: list[Run]) -> str:
  """A mark for dir="auto", by which most letters decide, not the first.

  An Arabic text may begin with an English name.
  """
  text = ''.join(run.text for run in runs if not run.special)
  kinds = [unicodedata.bidirectional(c) for c in text]
  right = kinds.count('R') + kinds.count('AL')
  return '&rlm;' if right > kinds.count('L') else '&lrm;'


# --- Histograms


def figures(kind, counts: Counts) -> str:
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
    drawn[name] = lambda a: spans_in(a, *span_counts(kind, counts))
  elif kind.name == 'clm':
    name, edges = 'share the encoder reads of a document', np.linspace(0, 1, 21)
    drawn[name] = lambda a: bars(a, counts.prefix, edges)
  made = (
    tag('figure', draw(plot), tags('figcaption', name))
    for name, plot in drawn.items()
  )
  head = tags('h4', f'{kind.name}, {len(counts.encoder):,} rows')
  return head + tag('div', *made, class_=f'figures {kind.name}')


def bars(axes, values: np.ndarray, edges: np.ndarray) -> None:
  shares = np.full(len(values), 1 / max(1, len(values)))
  axes.hist(values, edges, weights=shares, color=ACCENT, rwidth=0.9)


def lengths_in(axes, lengths: np.ndarray) -> None:
  """At most 24 bars of as many whole numbers each."""
  most = lengths.max(initial=0) + 1
  width = -(-most // 24)
  bars(axes, lengths, np.arange(0, most + width, width))


def spans_in(axes, found: np.ndarray, expected: np.ndarray) -> None:
  k = np.arange(1, np.flatnonzero(found).max(initial=1) + 1)
  axes.bar(k, found[k] / max(1e-9, found.sum()), color=ACCENT)
  dots = expected[k] / max(1e-9, expected.sum())
  axes.plot(k, dots, 'o', ms=4, color=INK)
  axes.xaxis.get_major_locator().set_params(integer=True)


def draw(
  plot: Callable, size: tuple[float, float] = (3.6, 2.2), percent: bool = True
) -> str:
  """A figure as SVG that takes its colours and its font from the page.

  Args:
    plot: called with the axes; draws in INK, ACCENT and COLOURS.
    size: in inches.
    percent: the y axis has shares.
  """
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
  return svg


# Colours that stand for those of the page while a figure is drawn.
INK, ACCENT = '#010101', '#010102'
COLOURS = {'denoise': '#010103', 'clm': '#010104', 'pair': '#010105'}
LEGEND = (
  '<del>Dropped</del> is left out of what the encoder reads, with nothing in '
  'its place. <ins>Written on</ins> is what the decoder adds to it. Special '
  'pieces, such as <bdi>[DOC]</bdi>, are no text.'
)
STYLE = """
:root { color-scheme: light dark; --paper: #fcfbf9; --card: #fff;
  --ink: #1f2328; --soft: #646b75; --line: #e4e1db; --gone: #c62f2f;
  --gone-back: #fbe4e1; --new-back: #e3f0e4; --denoise: #3a6ea5;
  --clm: #3f8f57; --pair: #8a63a8 }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c;
  --card: #1d2025; --ink: #e4e3df; --soft: #9aa1ab; --line: #33373e;
  --gone: #ff8f85; --gone-back: #4a2422; --new-back: #1f3a28;
  --denoise: #7fb0e6; --clm: #79c793; --pair: #c19ee0 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 84rem; padding: 2rem 1.25rem 6rem;
  background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, 'Noto Sans', sans-serif;
  font-variant-numeric: tabular-nums }
h1 { font-size: 2rem; margin: 0 0 1rem }
h1 small { font-size: 1rem; font-weight: 400; margin-inline-start: .75rem }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line) }
h3 { font-size: 1.35rem; margin: 2.5rem 0 0; scroll-margin-top: 5rem }
h4 { font-size: 1rem; margin: 1.25rem 0 .5rem }
h5 { margin: .9rem 0 .25rem }
h5, header, caption, dt, figcaption { font-size: .8125rem; font-weight: 400 }
h1 small, h4, header, caption, dt, figcaption, thead { color: var(--soft) }
dl { display: flex; flex-wrap: wrap; gap: .75rem 2.5rem; margin: 0 }
dd { margin: 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9375rem }
caption { text-align: start; padding-bottom: .5rem }
th, td { padding: .2rem 0; padding-inline-start: clamp(.4rem, 2.3vw, 2rem);
  text-align: end; white-space: nowrap }
th:first-child, td:first-child { padding-inline-start: 0 }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: start }
thead th { font-weight: 400 }
tbody tr:first-child th { border-top: 1px solid var(--line);
  padding-top: .6rem }
ul { padding-inline-start: 1.1rem }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap;
  gap: .25rem 1.1rem; padding: .6rem 0; background: var(--paper);
  border-bottom: 1px solid var(--line) }
a { color: inherit; text-decoration-color: var(--line);
  text-underline-offset: .25em }
.denoise { --accent: var(--denoise) }
.clm { --accent: var(--clm) }
.pair { --accent: var(--pair) }
.figures, .columns { display: grid; gap: 1.25rem; align-items: start }
.figures { grid-template-columns: repeat(auto-fill,
  minmax(min(100%, 17rem), 1fr)) }
.columns { grid-template-columns: repeat(auto-fit,
  minmax(min(100%, 26rem), 1fr)) }
.large { grid-template-columns: repeat(auto-fit,
  minmax(min(100%, 26rem), 1fr)) }
.small { grid-template-columns: repeat(auto-fill,
  minmax(min(100%, 11rem), 1fr)) }
.figures + .wide { margin-top: 1.25rem }
.numbers :is(th, td):nth-child(2) { text-align: end }
figure { margin: 0 }
b[class] { color: var(--accent) }
details { margin-bottom: 1rem }
pre { font: .8125rem/1.5 ui-monospace, monospace; overflow-x: auto }
svg { width: 100%; height: auto; display: block }
article { background: var(--card); border: 1px solid var(--line);
  border-top: 3px solid var(--accent); border-radius: .25rem;
  padding: .75rem 1rem .25rem; margin-bottom: 1.25rem }
h5 { color: var(--accent) }
.text { margin: 0 0 .75rem; line-height: 1.75 }
.text + .text { border-top: 1px dotted var(--line); padding-top: .75rem }
.text:lang(ar) { font-size: 1.125rem; line-height: 1.9 }
del { color: var(--gone); background: var(--gone-back);
  text-decoration: line-through 1px
    color-mix(in srgb, currentColor 50%, transparent) }
ins { background: var(--new-back); text-decoration: none }
bdi { font: .75em ui-monospace, monospace; color: var(--soft);
  border: 1px solid var(--line); border-radius: .25em; padding: 0 .3em;
  margin: 0 .15em; white-space: nowrap }
del bdi { color: inherit; border-color: currentColor }
@media (max-width: 40rem) { nav { position: static }
  h3 { scroll-margin-top: 0 } table { font-size: .8125rem } }
"""
