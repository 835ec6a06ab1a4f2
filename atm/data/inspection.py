"""Decodes training examples for display, and marks dropped and generated spans.

They are those that a run with the same seed meets first, made by the function
that makes its batches. Which tokens of a row were dropped is told by the
objective's own mask, and checked against what the encoder reads.

Letters: B rows, L tokens, K examples packed in a row.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from atm.data import batches as batches_lib
from atm.data import counter_rng, mixture_stats, objectives
from atm.data.batches import Batches, MixturePart
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
  """A row as a run meets it, as its example number n.

  Attributes:
    blocks: (what it is, its runs).
  """

  part: MixturePart
  n: int
  epoch: int
  row: int
  blocks: list[tuple[str, list[TextRun]]]

  def title(self) -> str:
    """Returns a line that tells which example it is."""
    return (
      f'{self.part.name}, example {self.n:,} of the run: row {self.row:,}, '
      f'epoch {self.epoch:,}'
    )


@dataclasses.dataclass
class ObjectiveCounts:
  """Tokens that some rows of one objective hold.

  Attributes:
    texts: lengths of the texts, without special pieces at their ends.
    encoder, decoder: [B] filled positions.
    spans: lengths of the dropped spans.
    budgets: [B] dropped tokens.
    prefix: share of each text that the encoder reads.
  """

  texts: np.ndarray
  encoder: np.ndarray
  decoder: np.ndarray
  spans: np.ndarray
  budgets: np.ndarray
  prefix: np.ndarray


@dataclasses.dataclass
class Inspection:
  """All that `atm inspect` shows of a mixture.

  Attributes:
    lines: the mixture's table.
    notes: lines below it.
    counts: by objective.
  """

  mixture: str
  vocabulary: Vocabulary
  lengths: Lengths
  directory: str
  seed: int
  tokens: float
  parts: list[MixturePart]
  lines: list[mixture_stats.MixtureLine]
  notes: list[str]
  examples: list[InspectedExample]
  counts: dict[object, ObjectiveCounts]

  def by_language(self) -> dict[str, list[InspectedExample]]:
    """Groups the examples by language code, in order, denoising first."""
    key = lambda e: (e.part.language, _get_rank(e.part.objective))
    groups: dict[str, list[InspectedExample]] = {}
    for each in sorted(self.examples, key=key):
      groups.setdefault(each.part.language, []).append(each)
    return groups


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
  examples = []
  for i in range(len(batches.parts)):
    n = find_examples(batches, i, count)
    part, epoch, row = batches.locate(n)
    assert (part == i).all()
    examples += [
      decode_example(batches, vocabulary, i, *where)
      for where in zip(n.tolist(), epoch.tolist(), row.tolist())
    ]
  return examples


def decode_example(
  batches: Batches, vocabulary: Vocabulary, i: int, n: int, epoch: int, row: int
) -> InspectedExample:
  """Decodes a row of part i, as example number n of a run."""
  part = batches.parts[i]
  arrays = batches.make_rows(*(np.array([x]) for x in (i, epoch, row)))
  arrays = {name: value[0] for name, value in arrays.items()}
  blocks = []
  for k in range(1, arrays['decoder_segment_ids'].max() + 1):
    source = arrays['encoder_input_tokens'][arrays['encoder_segment_ids'] == k]
    target = arrays['decoder_target_tokens'][arrays['decoder_segment_ids'] == k]
    read, written = [READ] * len(source), [WRITTEN] * len(target)
    if part.objective.name == 'denoise':
      key = counter_rng.make_key(batches.seed, part.id, epoch, row)
      marks = _mark_dropped(part, part.rows.row(row), key, source, target)
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


def _mark_dropped(part: MixturePart, tokens, key, source, target) -> list[str]:
  """Returns the marks of a row's ids, by the mask that its key draws."""
  (mask,) = part.objective.keep_mask(
    np.atleast_1d(key), np.array([len(tokens)]), len(tokens)
  )
  assert np.array_equal(tokens[mask], source[1:-1]), 'other tokens are dropped'
  assert np.array_equal(tokens, target[:-1]), 'another row'
  return [*np.where(mask, READ, DROPPED).tolist(), READ]


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
  if kind.name == 'denoise':
    tasks = np.array([p.id for p in batches.parts], np.int64)[part]
    key = counter_rng.make_key(batches.seed, tasks, epoch, row)
    texts = filled[1] - 1
    spans, budgets = measure_spans(kind, key, texts)
    assert np.array_equal(texts - budgets, filled[0] - 2)
  elif kind.name == 'clm':
    ends = arrays['decoder_target_tokens'] == batches.ids.eos
    own = ((decoder * ~ends)[..., None] == k).sum(1)
    read = source[there] - 3
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
  """Returns [most + 1] the spans of each length that rows should have.

  Spans are drawn from Poisson(mean) without 0 until a row's budget is spent;
  the last one is cut.
  """
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
    mean, wanted = (
      x @ np.arange(len(x)) / max(1e-9, x.sum()) for x in (found, expected)
    )
    return line + (
      f'{counts.budgets.sum() / counts.texts.sum():.2%} of the tokens are '
      f'dropped ({kind.density:.0%} wanted), in {found.sum():,} spans of '
      f'{mean:.2f} tokens ({wanted:.2f} expected)'
    )
  if kind.name == 'clm':
    return line + (
      f'the encoder reads {counts.prefix.mean():.1%} of a document '
      f'({kind.low:.0%} to {kind.high:.0%} wanted); {len(counts.texts):,} '
      'documents'
    )
  return line + f'there are {len(counts.texts):,} pairs'
