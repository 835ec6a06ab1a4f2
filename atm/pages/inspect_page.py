"""Writes the page of `atm inspect`: one HTML file that needs no other.

The functions here prepare plain data; templates/inspect.html.jinja lays it out.
"""

import os
from functools import partial
from typing import Any

import numpy as np

from atm import storage
from atm.data.inspection import (
  InspectedExample,
  Inspection,
  ObjectiveCounts,
  count_spans,
)
from atm.pages import render
from atm.pages.plots import ACCENT, INK, draw_svg

INSPECT_PAGE = 'index.html'


def write_inspect_page(look: Inspection, directory: str) -> str:
  """Writes the page; returns its path."""
  storage.make_folder(directory)
  path = os.path.join(directory, INSPECT_PAGE)
  return render.write_page(path, 'inspect', inspect_page_data(look))


def inspect_page_data(look: Inspection) -> dict[str, Any]:
  """Returns what the page shows."""
  rows = sum(len(part.rows) for part in look.parts)
  (S, T), vocab = look.lengths.both, look.vocabulary
  return {
    'name': look.mixture,
    'facts': [
      ('tasks', f'{len(look.parts):,}'),
      ('rows', f'{rows:,}'),
      ('tokens in rows', f'{sum(part.rows.tokens for part in look.parts):,}'),
      ('lengths', f'encoder {S:,}, decoder {T:,}'),
      ('vocabulary', f'{vocab.size:,} pieces, {vocab.sha256[:12]}'),
      ('seed', f'{look.seed}'),
      ('rows are in', look.directory),
    ],
    'over': look.over,
    'sources': render.group_by(look.lines, lambda line: line.source),
    'notes': look.notes,
    'histograms': [
      (kind.name, len(counts.encoder), _histograms(kind, counts))
      for kind, counts in look.counts.items()
    ],
    'languages': [
      (language, _columns(examples))
      for language, examples in look.by_language().items()
    ],
    'signs': list_signs(look),
  }


def list_signs(look: Inspection) -> list[tuple[str, str]]:
  """Returns the signs in the examples, and what they stand for."""
  blocks = (runs for each in look.examples for _, runs in each.blocks)
  return render.explain_signs(run.text for runs in blocks for run in runs)


def _columns(examples: list[InspectedExample]) -> dict[str, dict[str, list]]:
  """Returns {form: {objective: examples}} of the examples of a language."""
  forms = render.group_by(
    examples, lambda each: f'{each.part.source} {each.part.form}'.strip()
  )
  return {
    form: render.group_by(some, lambda each: each.part.objective.name)
    for form, some in forms.items()
  }


# --- Histograms


def _histograms(kind, counts: ObjectiveCounts) -> list[tuple[str, str]]:
  """Returns captions and SVGs of the histograms of one objective."""
  text = {'denoise': 'row', 'clm': 'document', 'pair': 'pair'}[kind.name]
  lengths = (
    (f'length of a {text}', counts.texts),
    ('filled positions of the encoder', counts.encoder),
    ('filled positions of the decoder', counts.decoder),
  )
  plots = [
    (name, 'tokens', 'of the rows', partial(_length_bars, lengths=values))
    for name, values in lengths
  ]
  if kind.name == 'denoise':
    name = f'length of a dropped span; dots: Poisson({kind.mean_span:g}) '
    name += 'without 0, the last span of a row cut'
    found, expected = count_spans(kind, counts)
    plot = partial(_span_bars, found=found, expected=expected)
    plots.append((name, 'tokens', 'of the spans', plot))
  elif kind.name == 'clm':
    name, edges = 'share the encoder reads of a document', np.linspace(0, 1, 21)
    plot = partial(_share_bars, values=counts.prefix, edges=edges)
    plots.append((name, 'share', 'of the documents', plot))
  return [
    (name, draw_svg(plot, name, x, y, percent=True, whole=x == 'tokens'))
    for name, x, y, plot in plots
  ]


def _share_bars(axes, values: np.ndarray, edges: np.ndarray) -> None:
  shares = np.full(len(values), 1 / max(1, len(values)))
  axes.hist(values, edges, weights=shares, color=ACCENT, rwidth=0.9)


def _length_bars(axes, lengths: np.ndarray) -> None:
  """Draws at most 24 bars of as many whole numbers each."""
  most = lengths.max(initial=0) + 1
  width = -(-most // 24)
  _share_bars(axes, lengths, np.arange(0, most + width, width))


def _span_bars(axes, found: np.ndarray, expected: np.ndarray) -> None:
  k = np.arange(1, np.flatnonzero(found).max(initial=1) + 1)
  axes.bar(k, found[k] / max(1e-9, found.sum()), color=ACCENT)
  dots = expected[k] / max(1e-9, expected.sum())
  axes.plot(k, dots, 'o', ms=4, color=INK)
