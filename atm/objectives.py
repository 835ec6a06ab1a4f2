"""The two pre-training objectives of the paper (section 3), in numpy.

Denoising: 15% of a row's tokens are dropped in spans of Poisson(3) length; the
encoder reads what is left, with nothing where a span was; the decoder writes
the whole row. CLM: the encoder reads `[CLM]` and the first 20% to 80% of one
document; the decoder writes the rest.

Everything is a function of its arguments: the random numbers of a row come
from a counter hashed with (seed, epoch, row), so a row's noise depends neither
on its batch nor on which host makes it. Two stages:

  rows      ids of documents -> rows of ids, once, before training
  examples  rows of ids and a key -> encoder inputs and decoder targets

Letters: B rows, L row length, S encoder length, T decoder length.

The paper does not say where `<s>` and `</s>` stand. Here, as the released
tokenizer does it: the encoder reads `<s> ... </s>` (with `[CLM]` right after
`<s>`), the target ends in `</s>`, the decoder starts from `<s>`. A CLM
document cut at the row length has no `</s>`: it does not end there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

NAMES = ('denoise', 'clm')  # a batch's `objective` is an index into this
_U64 = np.uint64
_GAMMA = _U64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
  """The finaliser of SplitMix64 (Steele et al., 2014): uint64 -> uint64."""
  with np.errstate(over='ignore'):
    x = np.asarray(x).astype(_U64)
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))


def keys(*parts) -> np.ndarray:
  """One uint64 key from integers or integer arrays that broadcast."""
  key = np.zeros((), _U64)
  with np.errstate(over='ignore'):
    for part in parts:
      key = mix(key + _GAMMA + mix(np.asarray(part).astype(_U64) + _GAMMA))
  return key


def uniforms(key: np.ndarray, n: int) -> np.ndarray:
  """[B] keys -> [B, n] float64 in [0, 1): a SplitMix64 stream a key."""
  with np.errstate(over='ignore'):
    counter = np.arange(1, n + 1, dtype=_U64) * _GAMMA
    bits = mix(np.atleast_1d(key)[:, None] + counter)
  return (bits >> _U64(11)).astype(np.float64) * 2.0**-53


def noise_budget(length, density: float):
  """How many of `length` tokens are dropped: the nearest integer."""
  return np.floor(np.asarray(length) * density + 0.5).astype(np.int64)


def span_lengths(key, budget: np.ndarray, mean: float) -> np.ndarray:
  """[B, K] lengths of spans, each row summing exactly to its budget.

  Draws from Poisson(mean), without the zeros (a span of no tokens drops
  nothing); the draw that crosses the budget is cut, the rest are 0.
  """
  most = max(1, int(budget.max(initial=0)))
  ks = np.arange(0, int(mean + 12 * math.sqrt(mean) + 12))
  log_pmf = (
    ks * math.log(mean) - mean - np.array([math.lgamma(k + 1) for k in ks])
  )
  cdf = np.cumsum(np.exp(log_pmf[1:]))
  cdf /= cdf[-1]
  draws = 1 + np.searchsorted(cdf, uniforms(key, most), side='right')
  starts = np.cumsum(draws, axis=1) - draws
  return np.clip(budget[:, None] - starts, 0, draws)


def keep_mask(
  key, length: np.ndarray, width: int, density: float, mean: float
) -> np.ndarray:
  """Which tokens survive the noise: [B, width] bool, False beyond `length`.

  The kept tokens leave `kept + 1` gaps; the spans go into distinct gaps chosen
  uniformly, in an order that is uniform too, so no place and no span (the cut
  one least of all) is preferred.
  """
  budget = noise_budget(length, density)
  kept = length - budget
  spans = span_lengths(keys(key, 1), budget, mean)
  gap = np.arange(width + 1)
  draw = np.where(gap <= kept[:, None], uniforms(keys(key, 2), width + 1), 2.0)
  order = np.argsort(draw, axis=1, kind='stable')[:, : spans.shape[1]]
  in_gap = np.zeros((len(length), width + 1), np.int64)
  np.put_along_axis(in_gap, order, spans[:, : order.shape[1]], axis=1)
  place = gap[:-1] + np.cumsum(in_gap, axis=1)[:, :-1]
  mask = np.zeros((len(length), width + 1), bool)
  place = np.where(gap[:-1] < kept[:, None], place, width)
  np.put_along_axis(mask, place, True, axis=1)
  return mask[:, :-1]


def compact(tokens: np.ndarray, mask: np.ndarray) -> tuple:
  """Moves the masked tokens of each row to its front.

  Returns:
    ([B, L] with zeros behind, [B] how many).
  """
  order = np.argsort(~mask, axis=1, kind='stable')
  count = mask.sum(axis=1)
  front = np.arange(tokens.shape[1]) < count[:, None]
  return np.where(front, np.take_along_axis(tokens, order, axis=1), 0), count


@dataclasses.dataclass(frozen=True)
class Ids:
  """Ids of the special pieces that frame an example."""

  pad: int
  bos: int
  eos: int
  clm: int
  doc: int

  @classmethod
  def of(cls, vocabulary) -> Ids:
    v = vocabulary
    return cls(v.pad_id, v.bos_id, v.eos_id, v.clm_id, v.doc_id)


@dataclasses.dataclass(frozen=True)
class Denoise:
  """Drop spans, write everything (paper section 3: 80% of examples).

  Raises:
    ValueError: the density is not in (0, 0.5], or the mean is not above 0.
  """

  density: float = 0.15
  mean_span: float = 3.0
  name = 'denoise'
  joins = True  # documents into rows

  def __post_init__(self):
    if not 0 < self.density <= 0.5:
      raise ValueError(f'Denoise.density = {self.density}: expected (0, 0.5]')
    if self.mean_span <= 0:
      raise ValueError(f'Denoise.mean_span = {self.mean_span}: expected > 0')

  def row_length(self, S: int, T: int) -> int:
    """The longest row whose inputs fit in S and whose targets fit in T."""
    length = T - 1
    while length > 0 and length - noise_budget(length, self.density) > S - 2:
      length -= 1
    return _positive(length, S, T)

  def rows(
    self, documents: Iterable[Sequence[int]], ids: Ids, length: int
  ) -> Iterator[np.ndarray]:
    """Concatenates documents with `[DOC]` between, cut every `length` ids."""
    parts, held = [], 0
    for document in documents:
      if not len(document):
        continue
      separator = [[ids.doc]] if held else []
      for part in (*separator, document):
        parts.append(np.asarray(part, np.int32))
        held += len(parts[-1])
      if held >= length:
        flat = np.concatenate(parts)
        for start in range(0, held - length + 1, length):
          yield flat[start : start + length]
        rest = flat[held - held % length :]
        # A row need not begin with the separator of the row before it.
        rest = rest[1:] if len(rest) and rest[0] == ids.doc else rest
        parts, held = [rest], len(rest)
    if held > 1:
      yield np.concatenate(parts)

  def examples(self, tokens, length, key, ids: Ids, S: int, T: int) -> dict:
    """Rows [B, L] of `length` [B] ids to arrays of a batch, see `frame`."""
    mask = keep_mask(key, length, tokens.shape[1], self.density, self.mean_span)
    kept, count = compact(tokens, mask)
    return frame(
      _between((ids.bos,), kept, count, (ids.eos,), S),
      _between((), tokens, length, (ids.eos,), T),
      ids,
    )


@dataclasses.dataclass(frozen=True)
class CLM:
  """Read the beginning, write the rest (paper section 3: 20% of examples).

  Raises:
    ValueError: not 0 < low <= high < 1.
  """

  low: float = 0.2
  high: float = 0.8
  name = 'clm'
  joins = False

  def __post_init__(self):
    if not 0 < self.low <= self.high < 1:
      raise ValueError(
        f'CLM.low = {self.low}, CLM.high = {self.high}: expected '
        '0 < low <= high < 1'
      )

  def row_length(self, S: int, T: int) -> int:
    """The longest row of which every split fits; at most T."""
    by_prefix = math.floor((S - 3) / self.high)
    return _positive(min(T, by_prefix), S, T)

  def rows(
    self, documents: Iterable[Sequence[int]], ids: Ids, length: int
  ) -> Iterator[np.ndarray]:
    """One document a row, with `</s>` where it ends, cut at `length`."""
    for document in documents:
      if len(document) >= 2:
        row = [*document[:length], ids.eos][:length]
        yield np.asarray(row, np.int32)

  def split(self, length, key) -> np.ndarray:
    """[B] lengths of the prefix: uniform in low..high of the row."""
    share = self.low + (self.high - self.low) * uniforms(key, 1)[:, 0]
    return np.clip(np.rint(share * length), 1, length - 1).astype(np.int64)

  def examples(self, tokens, length, key, ids: Ids, S: int, T: int) -> dict:
    """Rows [B, L] of `length` [B] ids to arrays of a batch, see `frame`."""
    ends = np.take_along_axis(tokens, length[:, None] - 1, 1)[:, 0] == ids.eos
    # The share is of the document's own tokens: its `</s>` is not one.
    prefix = self.split(length - ends, key)
    place = np.arange(tokens.shape[1])
    head, _ = compact(tokens, place < prefix[:, None])
    inside = (place >= prefix[:, None]) & (place < length[:, None])
    rest, count = compact(tokens, inside)
    return frame(
      _between((ids.bos, ids.clm), head, prefix, (ids.eos,), S),
      _between((), rest, count, (), T),
      ids,
    )


def _positive(length: int, S: int, T: int) -> int:
  if length < 4:
    raise ValueError(
      f"TASK_FEATURE_LENGTHS {{'inputs': {S}, 'targets': {T}}} leave no room "
      'for an example: expected at least 8 each'
    )
  return length


def _between(before, body, count, after, width: int) -> tuple:
  """Sets `before` and `after` around each row of `body`.

  Returns:
    ([B, width] int32, [B] lengths).
  """
  B, head = len(body), len(before)
  out = np.zeros((B, width + body.shape[1] + 3), np.int32)
  out[:, :head] = before
  out[:, head : head + body.shape[1]] = body
  length = count + head
  for piece in after:
    out[np.arange(B), length] = piece
    length = length + 1
  assert length.max(initial=0) <= width
  return out[:, :width], length


def frame(inputs: tuple, targets: tuple, ids: Ids) -> dict[str, np.ndarray]:
  """The arrays of a batch, by t5x's names, from (ids, lengths) of both sides.

  Segment ids are 1 on the example and 0 on padding; loss weights are 1 on
  targets. Neither is read off the ids, whatever the id of padding.
  """
  source, S_len = inputs
  target, T_len = targets
  in_source = np.arange(source.shape[1]) < S_len[:, None]
  in_target = np.arange(target.shape[1]) < T_len[:, None]
  target = np.where(in_target, target, ids.pad).astype(np.int32)
  shifted = np.full_like(target, ids.bos)
  shifted[:, 1:] = target[:, :-1]
  return {
    'encoder_input_tokens': np.where(in_source, source, ids.pad).astype(
      np.int32
    ),
    'encoder_segment_ids': in_source.astype(np.int32),
    'decoder_input_tokens': np.where(in_target, shifted, ids.pad).astype(
      np.int32
    ),
    'decoder_target_tokens': target,
    'decoder_segment_ids': in_target.astype(np.int32),
    'decoder_loss_weights': in_target.astype(np.float32),
  }
