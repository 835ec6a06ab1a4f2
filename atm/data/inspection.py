"""Decodes training examples for display, and marks dropped and generated spans.

They are those that a run with the same seed meets first, made by the function
that makes its batches. Which tokens of a row were dropped is told by the
objective's own mask, and checked against what the encoder reads.

Letters: B rows, L tokens, K examples packed in a row.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import numpy as np

from atm.data import batches as batches_lib
from atm.data import mixture_stats, objectives
from atm.data.batches import Batches, MixturePart, make_noise_keys
from atm.data.task_registry import Lengths
from atm.data.vocabulary import Vocabulary

MEASURED_ROWS = 2000  # of each objective
ROWS_AT_ONCE = 256  # of them in memory
# How a token stands: read by the model, dropped from what it reads, or left to
# the decoder to write on.
READ, DROPPED, WRITTEN = 'read', 'dropped', 'written'


@dataclasses.dataclass
class TextRun:
  """Characters of one mark, or the name of one special piece."""

  text: str
  mark: str
  special: bool = False


@dataclasses.dataclass
class InspectedExample:
  """A row as a run meets it, as its example number n."""

  part: MixturePart
  n: int
  epoch: int
  row: int
  blocks: list[tuple[str, list[TextRun]]]  # (caption, runs) of each

  def title(self) -> str:
    """Returns a line that tells which example it is."""
    return (
      f'{self.part.name}, example {self.n:,} of the run: row {self.row:,} of '
      f'{len(self.part.rows):,}, time {self.epoch + 1:,} through the rows'
    )


@dataclasses.dataclass
class ObjectiveCounts:
  """Tokens that B rows of one objective hold."""

  texts: np.ndarray  # lengths, without the special pieces at their ends
  encoder: np.ndarray  # [B] filled positions
  decoder: np.ndarray  # [B] filled positions
  spans: np.ndarray  # lengths of the dropped spans
  budgets: np.ndarray  # [B] dropped tokens
  prefix: np.ndarray  # share of each text that the encoder reads


@dataclasses.dataclass
class Inspection:
  """All that `atm inspect` shows of a mixture."""

  mixture: str
  vocabulary: Vocabulary
  lengths: Lengths
  directory: str
  seed: int
  over: str  # the run that epochs are of, see `mixture_stats.Reading`
  parts: list[MixturePart]
  lines: list[mixture_stats.MixtureLine]  # of its table
  notes: list[str]  # lines below the table
  examples: list[InspectedExample]
  counts: dict[object, ObjectiveCounts]  # by objective

  def by_language(self) -> dict[str, list[InspectedExample]]:
    """Groups the examples by language code, in order, denoising first."""
    key = lambda each: (each.part.language, _get_rank(each.part.objective))
    ordered = sorted(self.examples, key=key)
    groups = itertools.groupby(ordered, lambda each: each.part.language)
    return {language: list(examples) for language, examples in groups}


def _get_rank(objective) -> int:
  return objectives.OBJECTIVE_NAMES.index(objective.name)


# --- Rows that a run meets


def split_runs(
  vocabulary: Vocabulary, ids: Iterable[int], marks: Iterable[str]
) -> list[TextRun]:
  """Joins [L] ids to runs of equal marks; special pieces stand alone.

  A character of which any byte was dropped counts as dropped.
  """
  ids, runs, broken = [int(i) for i in ids], [], False
  for i, text, mark in zip(ids, vocabulary.surfaces(ids), marks):
    if vocabulary.is_special(i):
      runs.append(TextRun(vocabulary.pieces([i])[0], mark, True))
    elif not text:
      broken |= mark == DROPPED and vocabulary.is_byte(i)
    else:
      mark, broken = DROPPED if broken else mark, False
      if runs and not runs[-1].special and runs[-1].mark == mark:
        runs[-1].text += text
      else:
        runs.append(TextRun(text, mark))
  return runs


def find_examples(batches: Batches, part: int, count: int) -> np.ndarray:
  """Returns [count] numbers of a run's first examples of one part."""
  positions = np.flatnonzero(batches.pattern == part)
  k = np.arange(count)
  return positions[k % len(positions)] + k // len(positions) * batches_lib.CYCLE


def pick_examples(
  batches: Batches, vocabulary: Vocabulary, count: int
) -> list[InspectedExample]:
  """Decodes the first `count` examples of every part."""
  return [
    decode_example(batches, vocabulary, n)
    for i in range(len(batches.parts))
    for n in find_examples(batches, i, count).tolist()
  ]


def decode_example(
  batches: Batches, vocabulary: Vocabulary, n: int
) -> InspectedExample:
  """Decodes example number n of a run."""
  located = batches.locate(np.array([n]))
  i, epoch, row = (int(array[0]) for array in located)
  part, blocks, arrays = batches.parts[i], [], batches.make_rows(*located)
  arrays = {name: value[0] for name, value in arrays.items()}
  for k in range(1, arrays['decoder_segment_ids'].max() + 1):
    source = arrays['encoder_input_tokens'][arrays['encoder_segment_ids'] == k]
    target = arrays['decoder_target_tokens'][arrays['decoder_segment_ids'] == k]
    read, written = [READ] * len(source), [WRITTEN] * len(target)
    if part.objective.name == 'denoise':
      tokens = part.rows.row(row)
      size = len(tokens)
      key = make_noise_keys(batches.parts, batches.seed, *located)
      (mask,) = part.objective.keep_mask(key, np.array([size]), size)
      read_of = source[len(part.objective.head(batches.ids)) : -1]
      assert np.array_equal(tokens[mask], read_of), 'others are dropped'
      assert np.array_equal(tokens, target[:-1]), 'another row'
      marks = [*np.where(mask, READ, DROPPED).tolist(), READ]
      chosen = [
        ('the text, all of which the decoder writes', target, marks),
        ('what the encoder reads', source, read),
      ]
    elif part.objective.name == 'clm':
      what = 'what the encoder reads, and the decoder writes on'
      chosen = [(what, [*source, *target], read + written)]
    else:
      chosen = [('input', source, read), ('target', target, written)]
    blocks += [(what, split_runs(vocabulary, *run)) for what, *run in chosen]
  return InspectedExample(part, n, epoch, row, blocks)


# --- Tokens that some rows hold


def measure_objectives(
  batches: Batches, count: int
) -> dict[object, ObjectiveCounts]:
  """Measures the first `count` rows that a run reads of each objective."""
  part, epoch, row = batches.locate(np.arange(batches_lib.CYCLE))
  kinds, measured = dict.fromkeys(p.objective for p in batches.parts), {}
  for kind in sorted(kinds, key=_get_rank):
    of_kind = np.array([p.objective == kind for p in batches.parts])
    chosen = np.flatnonzero(of_kind[part])[:count]
    pieces = [
      _measure_rows(batches, kind, part[at], epoch[at], row[at])
      for at in np.split(chosen, range(ROWS_AT_ONCE, len(chosen), ROWS_AT_ONCE))
    ]
    measured[kind] = ObjectiveCounts(*map(np.concatenate, zip(*pieces)))
  return measured


def _measure_rows(batches: Batches, kind, part, epoch, row) -> tuple:
  """Returns the arrays of ObjectiveCounts, of [B] rows."""
  arrays = batches.make_rows(part, epoch, row)
  decoder = arrays['decoder_segment_ids']
  k = np.arange(1, decoder.max() + 1)
  source = (arrays['encoder_segment_ids'][..., None] == k).sum(1)  # [B, K]
  target = (decoder[..., None] == k).sum(1)
  there, filled = target > 0, (source.sum(1), target.sum(1))
  spans = budgets = prefix = np.zeros(0, np.int64)
  framing = len(batches.ids.opening) + 1  # with `</s>`
  if kind.name == 'denoise':
    key = make_noise_keys(batches.parts, batches.seed, part, epoch, row)
    texts = filled[1] - 1
    spans, budgets = measure_spans(kind, key, texts)
    framing = len(kind.head(batches.ids)) + 1
    assert np.array_equal(texts - budgets, filled[0] - framing)
  elif kind.name == 'clm':
    ends = arrays['decoder_target_tokens'] == batches.ids.eos
    own = ((decoder * ~ends)[..., None] == k).sum(1)
    read = source[there] - framing - 1
    texts = read + own[there]
    prefix = read / texts
  else:
    texts = (source + target)[there]
  return texts, *filled, spans, budgets, prefix


def measure_spans(kind: objectives.Denoise, key, length) -> tuple:
  """Returns lengths of all spans dropped from [B] rows; [B] tokens in them."""
  width = length.max()
  gone = ~kind.keep_mask(key, length, width)
  gone &= np.arange(width) < length[:, None]
  edges = np.diff(np.pad(gone, ((0, 0), (1, 1))).astype(np.int8), axis=1)
  # Row by row: so the k-th beginning and the k-th end are those of one span.
  return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1], gone.sum(1)


def expect_span_counts(
  budgets: np.ndarray, mean: float, most: int
) -> np.ndarray:
  """Returns [most + 1] counts of spans of each length that rows should have."""
  # As `span_corruption.draw_span_lengths` draws them: from Poisson(mean)
  # without 0 until a row's budget is spent; the last one is cut.
  width = max(most, budgets.max(initial=0)) + 2
  logs = [k * math.log(mean) - math.lgamma(k + 1) for k in range(width)]
  pmf = np.where(np.arange(width), np.exp(logs) / math.expm1(mean), 0)
  longer = 1 - np.cumsum(pmf) + pmf  # or as long
  starts = np.eye(1, width)[0]  # the probability that a span starts so far in
  for j in range(1, width):
    starts[j] = starts[:j] @ pmf[j:0:-1]
  before = np.cumsum(starts) - starts
  expected = np.zeros(most + 1)
  for budget, rows in zip(*np.unique(budgets, return_counts=True)):
    k = np.arange(1, min(most, budget) + 1)
    expected[k] += rows * before[budget - k] * pmf[k]
    expected[k] += rows * starts[budget - k] * longer[k]
  return expected


def count_spans(kind: objectives.Denoise, counts: ObjectiveCounts) -> tuple:
  """Returns spans of each length, from 0: those there are, those expected."""
  most = max(24, counts.spans.max(initial=0))
  found = np.bincount(counts.spans, minlength=most + 1)
  return found, expect_span_counts(counts.budgets, kind.mean_span, most)


def summarize_counts(kind, counts: ObjectiveCounts) -> str:
  """Returns a line of what was drawn beside what was to be drawn."""
  line = f'{kind.name}: in the first {len(counts.encoder):,} rows '
  if kind.name == 'denoise':
    found, expected = count_spans(kind, counts)
    mean = lambda spans: spans @ np.arange(len(spans)) / max(1e-9, spans.sum())
    return line + (
      f'{counts.budgets.sum() / counts.texts.sum():.2%} of the tokens are '
      f'dropped ({kind.density:.0%} wanted), in {found.sum():,} spans of '
      f'{mean(found):.2f} tokens ({mean(expected):.2f} expected)'
    )
  if kind.name == 'clm':
    return line + (
      f'the encoder reads {counts.prefix.mean():.1%} of a document '
      f'({kind.low:.0%} to {kind.high:.0%} wanted); {len(counts.texts):,} '
      'documents'
    )
  return line + f'there are {len(counts.texts):,} pairs'
