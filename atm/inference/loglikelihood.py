"""Log-probabilities of given targets; those of one input share its row.

The choices of one question have often one encoder input. It is read once, and
so are its keys and values: the targets stand behind each other in the decoder,
each a segment that sees itself and the whole input.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from atm.model.config import Config
from atm.model.transformer import AlexaTM


@dataclasses.dataclass
class TargetsRow:
  """One encoder input, and targets of it.

  Attributes:
    source: encoder ids.
    numbers: of the targets, in order.
    length: tokens of all of them.
  """

  source: Sequence[int]
  numbers: list[int]
  length: int


def pack_targets(sources, targets, room: int) -> list[TargetsRow]:
  """Pairs of ids in as few rows as there are inputs; long rows are the last.

  Args:
    sources: encoder ids of each pair.
    targets: decoder ids of each pair.
    room: tokens of targets that a row has, unless one alone has more.
  """
  rows: list[TargetsRow] = []
  newest: dict[tuple, TargetsRow] = {}
  for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
    row = newest.get(tuple(source))
    if row is None or row.length + len(target) > room:
      row = newest[tuple(source)] = TargetsRow(source, [], 0)
      rows.append(row)
    row.numbers.append(number)
    row.length += len(target)
  return sorted(rows, key=lambda row: (len(row.source), row.length))


def padded_length(length: int) -> int:
  """T of a batch: at most an eighth more, or 15; so few shapes compile."""
  step = max(16, 1 << max(0, (length - 1).bit_length() - 4))
  return -(-length // step) * step


def decoder_batch(
  rows: Sequence[TargetsRow], targets, shape: tuple[int, int], config: Config
) -> dict[str, np.ndarray]:
  """The decoder's part of a batch, int32 [B, T] each; 0 is no segment."""
  names = 'input_tokens', 'target_tokens', 'segment_ids', 'positions'
  made = {f'decoder_{name}': np.zeros(shape, np.int32) for name in names}
  inputs, labels, segments, positions = made.values()
  inputs[:], labels[:] = config.pad_id, config.pad_id
  for i, row in enumerate(rows):
    start = 0
    for segment, number in enumerate(row.numbers, 1):
      ids = targets[number]
      at = slice(start, start + len(ids))
      labels[i, at], segments[i, at] = ids, segment
      inputs[i, at] = [config.start_id, *ids[:-1]]
      positions[i, at] = np.arange(len(ids))
      start += len(ids)
  return made


def sum_targets(
  row: TargetsRow, targets, given, logs: np.ndarray, likeliest: np.ndarray
) -> list[tuple[int, float, bool]]:
  """(number, summed log-probability, whether greedy) of a row's targets.

  Args:
    row: of `pack_targets`.
    targets: decoder ids of each pair.
    given: how many of each target's first tokens do not count.
    logs, likeliest: [T], of the row's tokens.
  """
  made, start = [], 0
  for number in row.numbers:
    end = start + len(targets[number])
    at = slice(start + given[number], end)
    total = float(logs[at].sum(dtype=np.float64))
    made.append((number, total, bool(likeliest[at].all())))
    start = end
  return made


@functools.partial(jax.jit, static_argnums=0)
def score_tokens(model: AlexaTM, params, batch: dict):
  """See `AlexaTM.log_probabilities`."""
  return model.apply(
    {'params': params}, batch, method=AlexaTM.log_probabilities
  )
