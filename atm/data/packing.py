"""Packs examples into rows and frames them for the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from atm.data.vocabulary import (
  BOS_TOKEN,
  CLM_TOKEN,
  DOC_TOKEN,
  EOS_TOKEN,
  MASK_TOKEN,
  PAD_TOKEN,
)
from atm.messages import check_arguments, check_count, quote


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """Ids of the special pieces that frame an example."""

  pad: int
  bos: int | None  # None where the vocabulary has none
  eos: int
  # None where the vocabulary has no such piece; pairs need neither.
  clm: int | None
  doc: int | None
  # The decoder's first input; None: `bos`.
  start: int | None = None
  # Of mBART-25, whose targets end in the code of their language: with that the
  # decoder starts, too.
  codes: tuple[int, ...] = ()
  mask: int | None = None

  @classmethod
  def of(cls, vocabulary, start: int | None = None) -> SpecialIds:
    """Takes the ids from a vocabulary; `start` is the model's `start_id`."""
    v, ids = vocabulary, vocabulary.special_ids()
    tokens = PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, CLM_TOKEN, DOC_TOKEN
    codes = v.languages.values() if v.input_format.name == 'mbart' else ()
    return cls(*map(ids.get, tokens), start, tuple(codes), ids.get(MASK_TOKEN))

  @property
  def opening(self) -> tuple[int, ...]:
    """What every encoder input begins with: `<s>`, or nothing without one."""
    return () if self.bos is None else (self.bos,)

  @property
  def first(self) -> int:
    """The decoder's first input; padding where none is known."""
    known = (i for i in (self.start, self.bos) if i is not None)
    return next(known, self.pad)

  def require(self, *names: str) -> None:
    """Raises ValueError unless the vocabulary has all of these pieces."""
    for name in names:
      if getattr(self, name) is None:
        raise ValueError(
          f'the vocabulary has no [{name.upper()}], which denoising and CLM '
          'need: train on pairs, or from a vocabulary of `atm vocab`'
        )


@check_arguments(
  S=partial(check_count, 'S'),
  T=partial(check_count, 'T'),
  open_rows=partial(check_count, 'open_rows'),
)
def pack(items: Iterable, most: Callable, S: int, T: int, open_rows: int = 64):
  """Yields lists of items that fit a row together: best fit over `open_rows`.

  Args:
    items: read once; each goes into one list, and they alone decide the order.
    most: item -> the most positions it takes, (encoder, decoder).
    S, T: encoder and decoder positions of a row.
    open_rows: rows open at a time; the fullest leaves when none has room.

  Raises:
    ValueError: an item fits no row.
  """
  left, rows = np.zeros((0, 2), np.int64), []
  for item in items:
    need = np.array(most(item))
    if need.shape != (2,) or not ((need >= 0) & (need <= (S, T))).all():
      raise ValueError(
        f'most({quote(item)}) = {quote(need.tolist())}: expected at most '
        f'(S, T) = {(S, T)}'
      )
    after = (left - need).min(axis=1) if rows else np.zeros(0)
    fits = np.flatnonzero(after >= 0)
    if len(fits):
      best = fits[np.argmin((left[fits] - need).sum(axis=1))]
      rows[best].append(item)
      left[best] -= need
      continue
    if len(rows) == open_rows:
      fullest = int(np.argmin(left.sum(axis=1)))
      yield rows.pop(fullest)
      left = np.delete(left, fullest, axis=0)
    rows.append([item])
    left = np.concatenate([left, [np.array([S, T]) - need]])
  yield from rows


# --- Runs of ids, and where they stand in a batch


def get_starts(length: np.ndarray, row: np.ndarray) -> np.ndarray:
  """Returns [N] where each run starts in its row, runs laid end to end."""
  before = np.cumsum(length) - length
  return before - before[np.searchsorted(row, row)]


def rank_in_row(row: np.ndarray) -> np.ndarray:
  """Returns [N] how many of sorted rows [N] before each are the same row."""
  return np.arange(len(row)) - np.searchsorted(row, row)


def expand_ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
  """Returns the indices of runs [start, start + length), end to end."""
  before = np.cumsum(length) - length
  return np.repeat(start - before, length) + np.arange(length.sum())


def _run_lengths(run: tuple) -> np.ndarray:
  """Returns [N] lengths of runs, see `frame_batch`."""
  before, _, count, after = run
  return count + len(before) + len(after)


def _lay_out(row, run: tuple, B: int, width: int, pad: int) -> tuple:
  """Lays runs out, see `frame_batch`, in rows of `width`.

  Returns (tokens, segments, positions), each int32 [B, width], and [N] indices
  into the flat tokens where a run starts.
  """
  before, flat, count, after = run
  length = _run_lengths(run)
  start = get_starts(length, row)
  total = np.bincount(row, length, minlength=B)
  assert total.max(initial=0) <= width
  position = np.arange(width, dtype=np.int32)
  inside = position < total[:, None]
  at = start + row * width
  framing = [(at + i, piece) for i, piece in enumerate(before)]
  last = at + len(before) + count
  framing += [(last + i, piece) for i, piece in enumerate(after)]
  tokens = np.full((B, width), pad, np.int32)
  body = inside.copy()
  for where, piece in framing:
    tokens.reshape(-1)[where] = piece
    body.reshape(-1)[where] = False
  tokens[body] = flat
  first = np.zeros((B, width), np.int32)
  segments = inside.astype(np.int32)
  # One run a row, as denoising has, is all of segment 1.
  if len(row) > len(np.unique(row)):
    first[inside] = np.repeat(start, length)
    segments[inside] = np.repeat(rank_in_row(row) + 1, length)
  return tokens, segments, (position - first) * inside, at


def frame_batch(
  row: np.ndarray, source: tuple, target: tuple, sizes: tuple, ids: SpecialIds
) -> dict[str, np.ndarray]:
  """Returns the arrays of a batch, by t5x's names.

  Segment ids number the examples of a row from 1, 0 is padding; positions
  start at 0 in each; loss weights are 1 on targets. None is read off the ids,
  whatever the id of padding.

  Args:
    row: [N], sorted: the row of each example.
    source, target: runs of encoder inputs and of decoder targets: (ids before
      each, all ids end to end, [N] how many, ids after each).
    sizes: (B, S, T).
  """
  B, S, T = sizes
  encoder = _lay_out(row, source, B, S, ids.pad)
  targets, segments, positions, start = _lay_out(row, target, B, T, ids.pad)
  shifted, first = np.roll(targets, 1, axis=1), ids.first
  if ids.codes:
    last = targets.reshape(-1)[start + _run_lengths(target) - 1]
    first = np.where(np.isin(last, ids.codes), last, first)
  shifted.reshape(-1)[start] = first
  shifted[segments == 0] = ids.pad
  return {
    'encoder_input_tokens': encoder[0],
    'encoder_segment_ids': encoder[1],
    'encoder_positions': encoder[2],
    'decoder_input_tokens': shifted,
    'decoder_target_tokens': targets,
    'decoder_segment_ids': segments,
    'decoder_positions': positions,
    'decoder_loss_weights': (segments > 0).astype(np.float32),
  }
