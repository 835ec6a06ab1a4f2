"""Rows that a training run reads, told apart for a person.

They are those that a run with the same seed meets first, made by the function
that makes its batches. Which tokens of a row were dropped is told by the
objective's own mask, and held against what the encoder reads.

Letters: B rows, L tokens, K examples packed in a row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from atm.data import batches as batches_lib
from atm.data import counter_rng, mixture_stats, objectives, span_corruption
from atm.data.batches import Batches, MixturePart
from atm.data.registry import Lengths
from atm.data.vocabulary import UNK_TOKEN, Vocabulary

MEASURED_ROWS = 2000  # rows of each objective that are counted
AT_ONCE = 256  # of them in memory
# How a token stands: read by the model, dropped from what it reads, or left to
# the decoder to write on.
READ, DROPPED, WRITTEN = 'read', 'dropped', 'written'


@dataclasses.dataclass
class TextRun:
  """Characters that stand alike, or the name of one special piece."""

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
    return (
      f'{self.part.name}, example {self.n:,} of the run: row {self.row:,}, '
      f'epoch {self.epoch:,}'
    )


@dataclasses.dataclass
class ObjectiveCounts:
  """What some rows of one objective hold, in tokens.

  Attributes:
    texts: lengths of the texts, without special pieces at their ends.
    encoder, decoder: [B] filled places.
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
  """All that is shown.

  Attributes:
    lines: the mixture's table.
    notes: what stands below it.
    counts: by objective.
  """

  mixture: str
  words: Vocabulary
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
    """Languages in order of their codes, denoising first."""
    order = lambda e: (e.part.language, rank(e.part.objective))
    made: dict[str, list[InspectedExample]] = {}
    for each in sorted(self.examples, key=order):
      made.setdefault(each.part.language, []).append(each)
    return made


def rank(objective) -> int:
  return objectives.OBJECTIVE_NAMES.index(objective.name)


# --- From ids to characters


class Reader:
  """Tells which characters a token stands for."""

  def __init__(self, words: Vocabulary):
    self._sp = sentencepiece.SentencePieceProcessor()
    self._sp.LoadFromSerializedProto(words.model)
    special = words.special_ids()
    self._special = {i for name, i in special.items() if name != UNK_TOKEN}

  def is_special(self, i: int) -> bool:
    return i in self._special or self._sp.IsControl(i)

  def characters(self, ids: Sequence[int]) -> list[str]:
    """[L] ids -> [L] texts; joined, they are what the vocabulary decodes.

    A special piece has none; a character of several byte pieces stands with the
    last of them.
    """
    plain = [i for i in ids if not self.is_special(i)]
    found = iter(self._sp.DecodeIdsAsProto(plain).pieces)
    return ['' if self.is_special(i) else next(found).surface for i in ids]

  def runs(self, ids: Iterable[int], marks: Iterable[str]) -> list[TextRun]:
    """[L] ids and how each stands -> runs of those that stand alike.

    A character of which any byte was dropped counts as dropped.
    """
    ids, made, broken = [int(i) for i in ids], [], False
    for i, text, mark in zip(ids, self.characters(ids), marks):
      if self.is_special(i):
        made.append(TextRun(self._sp.IdToPiece(i), mark, True))
      elif not text:
        broken |= mark == DROPPED and self._sp.IsByte(i)
      else:
        mark, broken = DROPPED if broken else mark, False
        if made and not made[-1].special and made[-1].mark == mark:
          made[-1].text += text
        else:
          made.append(TextRun(text, mark))
    return made


# --- Rows that a run meets


def find_examples(batches: Batches, part: int, count: int) -> np.ndarray:
  """[count] the first examples of a run that are of one part."""
  places = np.flatnonzero(batches.pattern == part)
  k = np.arange(count)
  return places[k % len(places)] + k // len(places) * batches_lib.CYCLE


def pick_examples(
  batches: Batches, reader: Reader, count: int
) -> list[InspectedExample]:
  """The first `count` examples of every part."""
  made = []
  for i in range(len(batches.parts)):
    n = find_examples(batches, i, count)
    part, epoch, row = batches.locate(n)
    assert (part == i).all()
    for where in zip(n.tolist(), epoch.tolist(), row.tolist()):
      made.append(decode_example(batches, reader, i, *where))
  return made


def decode_example(
  batches: Batches, reader: Reader, i: int, n: int, epoch: int, row: int
) -> InspectedExample:
  """A row of part i, as example number n of a run."""
  part, one = batches.parts[i], lambda x: np.array([x])
  made = batches_lib.make_examples(
    batches.parts, one(i), batches.ids, batches.lengths, batches.seed,
    one(epoch), one(row),
  )  # fmt: skip
  made = {name: value[0] for name, value in made.items()}
  blocks = []
  for k in range(1, made['decoder_segment_ids'].max() + 1):
    source = made['encoder_input_tokens'][made['encoder_segment_ids'] == k]
    target = made['decoder_target_tokens'][made['decoder_segment_ids'] == k]
    if part.objective.name == 'denoise':
      key = counter_rng.make_key(batches.seed, part.id, epoch, row)
      blocks += decode_denoised(
        reader, part, part.rows.row(row), key, source, target
      )
    elif part.objective.name == 'clm':
      marks = [READ] * len(source) + [WRITTEN] * len(target)
      what = 'what the encoder reads, and the decoder writes on'
      blocks.append((what, reader.runs([*source, *target], marks)))
    else:
      blocks.append(('input', reader.runs(source, [READ] * len(source))))
      blocks.append(('target', reader.runs(target, [WRITTEN] * len(target))))
  return InspectedExample(part, n, epoch, row, blocks)


def decode_denoised(
  reader: Reader, part: MixturePart, tokens, key, source, target
) -> list:
  """The blocks of a row [L] and its key, and of the ids made of them."""
  kind = part.objective
  mask = span_corruption.draw_keep_mask(
    np.atleast_1d(key), np.array([len(tokens)]), len(tokens), kind.density,
    kind.mean_span,
  )[0]  # fmt: skip
  assert np.array_equal(tokens[mask], source[1:-1]), 'other tokens are dropped'
  assert np.array_equal(tokens, target[:-1]), 'another row'
  marks = [*np.where(mask, READ, DROPPED).tolist(), READ]
  return [
    ('the text, all of which the decoder writes', reader.runs(target, marks)),
    ('what the encoder reads', reader.runs(source, [READ] * len(source))),
  ]


# --- What some rows hold


def measure_objectives(
  batches: Batches, count: int
) -> dict[object, ObjectiveCounts]:
  """Objective -> Counts of its first `count` rows in a run's first cycle."""
  part, epoch, row = batches.locate(np.arange(batches_lib.CYCLE))
  kinds, made = dict.fromkeys(p.objective for p in batches.parts), {}
  for kind in sorted(kinds, key=rank):
    mine = np.array([p.objective == kind for p in batches.parts])
    chosen = np.flatnonzero(mine[part])[:count]
    pieces = [
      _measure_rows(batches, kind, part[at], epoch[at], row[at])
      for at in np.split(chosen, range(AT_ONCE, len(chosen), AT_ONCE))
    ]
    made[kind] = ObjectiveCounts(
      *(np.concatenate(found) for found in zip(*pieces))
    )
  return made


def _measure_rows(batches: Batches, kind, part, epoch, row) -> tuple:
  """The arrays of Counts, of [B] rows."""
  made = batches_lib.make_examples(
    batches.parts, part, batches.ids, batches.lengths, batches.seed, epoch, row
  )
  decoder = made['decoder_segment_ids']
  k = np.arange(1, decoder.max() + 1)
  source = (made['encoder_segment_ids'][..., None] == k).sum(1)  # [B, K]
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
    ends = made['decoder_target_tokens'] == batches.ids.eos
    own = ((decoder * ~ends)[..., None] == k).sum(1)
    read = source[there] - 3
    texts = read + own[there]
    prefix = read / texts
  else:
    texts = (source + target)[there]
  return texts, *filled, spans, budgets, prefix


def measure_spans(kind: objectives.Denoise, key, length) -> tuple:
  """Lengths of all spans dropped from [B] rows, and [B] tokens in them."""
  width = length.max()
  mask = span_corruption.draw_keep_mask(
    key, length, width, kind.density, kind.mean_span
  )
  gone = ~mask & (np.arange(width) < length[:, None])
  edges = np.diff(np.pad(gone, ((0, 0), (1, 1))).astype(np.int8), axis=1)
  # Row by row: so the k-th beginning and the k-th end are those of one span.
  return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1], gone.sum(1)


def expect_span_counts(
  budgets: np.ndarray, mean: float, most: int
) -> np.ndarray:
  """[most + 1] how many spans of each length rows of [B] budgets should have.

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
  made = np.zeros(most + 1)
  for budget, rows in zip(*np.unique(budgets, return_counts=True)):
    k = np.arange(1, min(most, budget) + 1)
    made[k] += rows * before[budget - k] * pmf[k]
    made[k] += rows * starts[budget - k] * longer[k]
  return made


def count_spans(kind: objectives.Denoise, counts: ObjectiveCounts) -> tuple:
  """How many spans of each length, from 0, there are, and should be."""
  most = max(24, counts.spans.max(initial=0))
  found = np.bincount(counts.spans, minlength=most + 1)
  return found, expect_span_counts(counts.budgets, kind.mean_span, most)


def summarize_counts(kind, counts: ObjectiveCounts) -> str:
  """What was drawn beside what was to be drawn."""
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
