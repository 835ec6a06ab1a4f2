"""The two pre-training objectives of the paper (section 3), in numpy.

Denoising: 15% of a row's tokens are dropped in spans of Poisson(3) length; the
encoder reads what is left, with nothing where a span was; the decoder writes
the whole row. CLM: the encoder reads `[CLM]` and the first 20% to 80% of one
document; the decoder writes the rest.

Everything is a function of its arguments: a row's random numbers come from its
key (`counter_rng`), so its noise depends neither on its batch nor on its host.
Each objective has

  row_length  the longest row for lengths S, T
  rows        documents of ids -> rows of ids, once, before training
  pack        rows of one example -> rows of several (`packs`), planned by
              bounds that hold for every random split
  examples    rows of ids and their keys -> arrays of a batch

and takes the special ids from a `packing.SpecialIds`. Packed examples have
segment numbers from 1, and positions that start at 0 in each.

Letters: B rows, L row length, S encoder length, T decoder length, N examples.

The paper does not say where `<s>` and `</s>` stand. Here, as the released
tokenizer does it: the encoder reads `<s> ... </s>` (with `[CLM]` right after
`<s>`), the target ends in `</s>`, the decoder starts from `<s>`. A CLM
document cut at the row length has no `</s>`: it does not end there. A public
model keeps its own first decoder input, and where its vocabulary has no `<s>`
the encoder reads none.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

import numpy as np

from atm.data import counter_rng, packing, span_corruption
from atm.messages import check_fields, check_flag, check_number

# A batch's `objective` is an index into these.
OBJECTIVE_NAMES = ('denoise', 'clm', 'pair')


@dataclasses.dataclass(frozen=True)
class Denoise:
  """Drops spans, writes everything (paper section 3: 80% of examples).

  Raises ValueError unless 0 < density <= 0.5 and mean_span > 0.
  """

  density: float = 0.15
  mean_span: float = 3.0
  name = 'denoise'
  variant = ''  # of the objective of this name, see `Ul2Denoise`
  joins = True  # documents into rows
  packs = False
  checks: ClassVar[dict[str, Callable]] = {
    'density': partial(check_number, 'density', above=0, most=0.5, whole=False),
    # No span is longer than a row.
    'mean_span': partial(
      check_number, 'mean_span', above=0, most=2**20, whole=False
    ),
  }

  def __post_init__(self):
    check_fields(self)

  def row_length(self, S: int, T: int) -> int:
    """Returns the longest row whose inputs fit in S and targets in T."""
    noise = lambda n: span_corruption.count_noise_tokens(n, self.density)
    length = T - 1
    while length > 0 and length - noise(length) > S - 2:
      length -= 1
    return _check_length(length, S, T)

  def rows(self, documents, ids, length: int) -> Iterator[np.ndarray]:
    """Joins documents with `[DOC]` between; cuts them every `length` ids."""
    ids.require('doc')
    pieces, count = [], 0
    for document in filter(len, documents):
      for piece in ([ids.doc],) * (count > 0) + (document,):
        pieces.append(np.asarray(piece, np.int32))
        count += len(pieces[-1])
      if count >= length:
        flat = np.concatenate(pieces)
        for start in range(0, count - length + 1, length):
          yield flat[start : start + length]
        rest = flat[count - count % length :]
        pieces, count = [rest], len(rest)
    if count > 1:
      yield np.concatenate(pieces)

  def keep_mask(self, key, length, width: int) -> np.ndarray:
    """Draws which tokens survive, see `span_corruption.draw_keep_mask`."""
    return span_corruption.draw_keep_mask(
      key, length, width, self.density, self.mean_span
    )

  def head(self, ids) -> tuple[int, ...]:
    """Returns what the encoder reads before the text."""
    return ids.opening

  def examples(self, tokens, length, key, ids, S: int, T: int) -> dict:
    """Makes arrays of rows [B, L] of `length` [B] ids, see `frame_batch`."""
    mask = self.keep_mask(key, length, tokens.shape[1])
    inside = np.arange(tokens.shape[1]) < length[:, None]
    source = self.head(ids), tokens[mask], mask.sum(1), (ids.eos,)
    target = (), tokens[inside], length, (ids.eos,)
    row, sizes = np.arange(len(tokens)), (len(tokens), S, T)
    return packing.frame_batch(row, source, target, sizes, ids)


@dataclasses.dataclass(frozen=True)
class CLM:
  """Reads the beginning, writes the rest (paper section 3: 20% of examples).

  The paper has one document a row. With `packs` a row holds as many as fit
  however they are split, with `[DOC]` between. Raises ValueError unless
  0 < low <= high < 1.
  """

  low: float = 0.2
  high: float = 0.8
  packs: bool = False
  name = 'clm'
  variant = ''
  joins = False
  checks: ClassVar[dict[str, Callable]] = {
    'low': partial(check_number, 'low', above=0, below=1, whole=False),
    'high': partial(check_number, 'high', above=0, below=1, whole=False),
    'packs': partial(check_flag, 'packs'),
  }

  def __post_init__(self):
    check_fields(self)
    if not 0 < self.low <= self.high < 1:
      raise ValueError(f'{self}: expected 0 < low <= high < 1')

  def row_length(self, S: int, T: int) -> int:
    """Returns the longest row of which every split fits; at most T."""
    return _check_length(min(T, math.floor((S - 3) / self.high)), S, T)

  def rows(self, documents, ids, length: int) -> Iterator[np.ndarray]:
    """Yields a document a row, with `</s>` where it ends, cut at `length`."""
    ids.require('clm', 'doc')
    for document in documents:
      if len(document) >= 2:
        yield np.asarray([*document[:length], ids.eos][:length], np.int32)

  def pack(self, rows, ids, S: int, T: int) -> Iterator[np.ndarray]:
    """Joins rows of one document each into rows that every split fits."""

    def most(row):
      n = len(row) - (row[-1] == ids.eos)
      least, greatest = self._cut(np.array([self.low, self.high]), n)
      return greatest + 3, len(row) - least

    for chosen in packing.pack(rows, most, S, T):
      pieces = [piece for row in chosen for piece in ([ids.doc], row)]
      yield np.concatenate(pieces[1:]).astype(np.int32)

  def _cut(self, share, length):
    return np.clip(np.rint(share * length), 1, length - 1).astype(np.int64)

  def split(self, length, draw) -> np.ndarray:
    """Returns [N] prefix lengths of documents of `length` [N] tokens.

    Uniform in low..high of them, `</s>` not counted; `draw`: [N] in [0, 1).
    """
    return self._cut(self.low + (self.high - self.low) * draw, length)

  def examples(self, tokens, length, key, ids, S: int, T: int) -> dict:
    """Makes arrays of rows [B, L] of `length` [B] ids, see `frame_batch`."""
    flat = tokens[np.arange(tokens.shape[1]) < length[:, None]]
    row_end = np.cumsum(length)
    between = np.flatnonzero(flat == ids.doc)
    start = np.sort(np.concatenate([row_end - length, between + 1]))
    end = np.sort(np.concatenate([row_end, between]))
    row = np.searchsorted(row_end, start, side='right')
    rank = packing.rank_in_row(row)
    # The share is of the document's own tokens: its `</s>` is not one.
    own = end - start - (flat[end - 1] == ids.eos)
    draw = counter_rng.uniform(key, rank.max() + 1)[row, rank]
    prefix = self.split(own, draw)
    rest = end - start - prefix
    read = flat[packing.expand_ranges(start, prefix)]
    written = flat[packing.expand_ranges(start + prefix, rest)]
    source = (*ids.opening, ids.clm), read, prefix, (ids.eos,)
    target = (), written, rest, ()
    return packing.frame_batch(row, source, target, (len(tokens), S, T), ids)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Inputs and targets as they are: fine-tuning data.

  A row is `[k, n_1, m_1, ..., n_k, m_k]` and the ids of k pairs, n_i of inputs
  and m_i of targets, end to end.
  """

  packs: bool = True
  name = 'pair'
  variant = ''
  joins = False
  checks: ClassVar[dict[str, Callable]] = {
    'packs': partial(check_flag, 'packs'),
  }

  def __post_init__(self):
    check_fields(self)

  def row_length(self, S: int, T: int) -> int:
    """Returns the length of the longest pair."""
    return _check_length(min(S, T), S, T) and S + T

  def rows(self, pairs, ids, length: int) -> Iterator[np.ndarray]:
    """Yields a pair (inputs, targets) a row; leaves out empty targets."""
    for source, target in pairs:
      if len(target):
        head = [1, len(source), len(target)]
        yield np.concatenate([head, source, target]).astype(np.int32)

  def pack(self, rows, ids, S: int, T: int) -> Iterator[np.ndarray]:
    """Joins rows of one pair each into rows of S and T at most."""
    for chosen in packing.pack(rows, lambda row: (row[1], row[2]), S, T):
      sizes, bodies = [row[1:3] for row in chosen], [row[3:] for row in chosen]
      yield np.concatenate([[len(chosen)], *sizes, *bodies]).astype(np.int32)

  def targets(self, row: np.ndarray) -> np.ndarray:
    """Returns the ids of a row's targets, end to end."""
    n, m = row[1 : 1 + 2 * row[0]].reshape(-1, 2).T
    start = 1 + 2 * row[0] + np.cumsum(n + m) - m
    return row[packing.expand_ranges(start, m)]

  def examples(self, tokens, length, key, ids, S: int, T: int) -> dict:
    """Makes arrays of rows [B, L], see `frame_batch`; draws nothing."""
    del length, key
    count = tokens[:, 0].astype(np.int64)
    row = np.repeat(np.arange(len(tokens)), count)
    rank = packing.rank_in_row(row)
    sizes = tokens[row[:, None], 1 + 2 * rank[:, None] + np.arange(2)]
    n, m = sizes.T.astype(np.int64)
    start = 1 + 2 * count[row] + packing.get_starts(n + m, row)
    flat, start = tokens.reshape(-1), start + row * tokens.shape[1]
    source = (), flat[packing.expand_ranges(start, n)], n, ()
    target = (), flat[packing.expand_ranges(start + n, m)], m, ()
    return packing.frame_batch(row, source, target, (len(tokens), S, T), ids)


def _check_length(length: int, S: int, T: int) -> int:
  """Returns the length; raises ValueError if no example fits."""
  if length < 4:
    raise ValueError(
      f"TASK_FEATURE_LENGTHS {{'inputs': {S}, 'targets': {T}}} leave no room "
      'for an example: expected at least 8 each'
    )
  return length
