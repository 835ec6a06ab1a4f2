"""HTML elements and the style that all pages share."""

from __future__ import annotations

import html
import unicodedata

from atm.data.inspection import (
  TextRun,
)


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


def document(title: str, body: tuple[str, ...], style: str = '') -> str:
  """A whole HTML file; `style` is CSS beside that of all pages."""
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'{tags("title", title)}'
    f'{tag("style", STYLE + style)}</head>{tag("body", *body)}</html>\n'
  )


def direction(runs: list[TextRun]) -> str:
  """A mark for dir="auto", by which most letters decide, not the first.

  An Arabic text may begin with an English name.
  """
  text = ''.join(run.text for run in runs if not run.special)
  kinds = [unicodedata.bidirectional(c) for c in text]
  right = kinds.count('R') + kinds.count('AL')
  return '&rlm;' if right > kinds.count('L') else '&lrm;'


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
