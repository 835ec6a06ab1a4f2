"""Teacher-forced decoding: log-probabilities of given targets, and logits.

The choices of one question often have the same encoder input. Such pairs share
a row: the input is read once, and so are its keys and values; the targets stand
behind each other in the decoder, each a segment that attends to itself and to
the whole input.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from atm.inference import bucketing
from atm.inference.outputs import fetch_array
from atm.model.config import ModelConfig
from atm.model.quantized import JittedByWeights
from atm.model.transformer import AlexaTM
from atm.parallel import sharding


@dataclasses.dataclass
class TargetsRow:
  """One encoder input, as ids, with targets of it: the numbers of their pairs.

  `length` is that of all targets together, in tokens.
  """

  source: Sequence[int]
  numbers: list[int]
  length: int


def pack_targets(sources, targets, room: int) -> list[TargetsRow]:
  """Packs pairs of encoder and decoder ids into few rows, the longest last.

  A row has at most `room` tokens of targets, unless a single one has more.
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
  """Returns T of a batch: at most an eighth more, or 15; few shapes compile."""
  step = max(16, 1 << max(0, (length - 1).bit_length() - 4))
  return -(-length // step) * step


def decoder_batch(
  rows: Sequence[TargetsRow], targets, B: int, config: ModelConfig, starts=None
) -> dict[str, np.ndarray]:
  """Returns the decoder's part of a batch, int32 [B, T] each.

  `starts` are the decoder's first ids of each pair, by default the start token.
  """
  shape = B, padded_length(max(row.length for row in rows))
  names = 'input_tokens', 'target_tokens', 'segment_ids', 'positions'
  batch = {f'decoder_{name}': np.zeros(shape, np.int32) for name in names}
  inputs, labels, segments, positions = batch.values()
  inputs[:], labels[:] = config.pad_id, config.pad_id
  for i, row in enumerate(rows):
    start = 0
    for segment, number in enumerate(row.numbers, 1):  # 0 is padding
      ids = targets[number]
      at = slice(start, start + len(ids))
      labels[i, at], segments[i, at] = ids, segment
      first = config.start_id if starts is None else starts[number]
      inputs[i, at] = [first, *ids[:-1]]
      positions[i, at] = np.arange(len(ids))
      start += len(ids)
  return batch


def sum_targets(
  row: TargetsRow, targets, given, logs: np.ndarray, likeliest: np.ndarray
) -> list[tuple[int, float, bool]]:
  """Returns (number, summed log-probability, is greedy) of a row's targets.

  `logs` and `likeliest` are [T], of its tokens; see `score_pairs`.
  """
  sums, start = [], 0
  for number in row.numbers:
    end = start + len(targets[number])
    at = slice(start + given[number], end)
    total = float(logs[at].sum(dtype=np.float64))
    sums.append((number, total, bool(likeliest[at].all())))
    start = end
  return sums


def check_given(targets, given: Sequence[int] | None) -> Sequence[int]:
  """Returns how many ids of each target are not scored; None: 0 of each.

  Raises:
    ValueError: nothing of a target is left to score.
  """
  given = [0] * len(targets) if given is None else given
  for i, (row, n) in enumerate(zip(targets, given, strict=True)):
    if not 0 <= n < len(row):
      raise ValueError(f'given[{i}] = {n}: expected 0 to {len(row) - 1}')
  return given


def score_pairs(
  model: AlexaTM, params, mesh, rules, sources, targets, given, batch_size: int,
  starts: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
  """Scores pairs of encoder and decoder ids, see `api.Model.likelihoods`.

  `starts` are as of `decoder_batch`.
  """
  given = check_given(targets, given)
  config = model.config
  totals, greedy = np.zeros(len(sources)), np.zeros(len(sources), bool)
  packed = pack_targets(sources, targets, config.positions)
  for start in range(0, len(packed), batch_size):
    rows = packed[start : start + batch_size]
    inputs = bucketing.pad_inputs(
      config, mesh, [row.source for row in rows], batch_size
    )
    batch = {
      'encoder_input_tokens': inputs['tokens'],
      'encoder_segment_ids': inputs['segments'],
      **decoder_batch(rows, targets, len(inputs['tokens']), config, starts),
    }
    batch = sharding.shard_batch(batch, mesh, rules)
    with sharding.use_mesh(mesh, rules):
      tokens = score_tokens(model, params, batch)
    for row, *of_tokens in zip(rows, *map(fetch_array, tokens)):
      for i, *sums in sum_targets(row, targets, given, *of_tokens):
        totals[i], greedy[i] = sums
  counts = [len(row) - n for row, n in zip(targets, given)]
  return totals, np.array(counts, np.int64), greedy


@functools.partial(JittedByWeights, static_argnums=0)
def score_tokens(model: AlexaTM, params, batch: dict):
  """Compiles `AlexaTM.log_probabilities`."""
  return model.apply(
    {'params': params}, batch, method=AlexaTM.log_probabilities
  )


@functools.partial(JittedByWeights, static_argnums=0)
def next_token_logits(model: AlexaTM, params, tokens, decoder_tokens, segments):
  """Returns float32 logits [B, T, V] of the token after each decoder token."""
  logits = model.apply(
    {'params': params},
    tokens,
    decoder_tokens,
    encoder_segment_ids=segments,
    decoder_segment_ids=jnp.ones_like(decoder_tokens),
    enable_dropout=False,
  )
  return logits.astype(jnp.float32)
