"""Pads batches to few shapes, and selects the program that decodes them.

Letters as in `generate`. `atm infer` runs these programs, `atm plan` compiles
them.
"""

from collections.abc import Sequence

import numpy as np

from atm.inference import beam_search, generate


def next_power_of_two(n: int) -> int:
  """Returns the least power of two that is not below n, for n of at least 1."""
  return 1 << (n - 1).bit_length()


def encoder_shape(
  config, mesh, longest: int, rows: int, batch_size: int
) -> tuple[int, int]:
  """Returns the padded shape (B, S) of encoder inputs.

  A batch that is not full grows in powers of two up to a full one; B divides
  by the data shards.

  Args:
    config: of the model.
    mesh: where they are decoded.
    longest: ids of the longest.
    rows, batch_size: inputs in the batch, and in a full one.
  """
  shards = mesh.size // mesh.shape['tensor']
  B = min(next_power_of_two(rows), batch_size)
  S = min(config.positions, next_power_of_two(max(16, longest)))
  return -(-B // shards) * shards, S


def decoder_shape(
  config, longest: int, max_tokens: int
) -> tuple[int, int, int]:
  """Returns (n, T, room) of the decoder.

  Args:
    config: of the model.
    longest: ids of the longest prefix, its start token included.
    max_tokens: asked for.

  Returns:
    The padded lengths of prefix and output, powers of two, and how many tokens
    may really be written, T or less.

  Raises:
    ValueError: Config.positions has no room for a token.
  """
  room = config.positions - longest
  if room < 1:
    raise ValueError(
      f'a prefix of {longest - 1} tokens: expected at most '
      f'{config.positions - 2}, for Config.positions = {config.positions}'
    )
  room = min(max_tokens, room)
  return next_power_of_two(longest), next_power_of_two(room), room


def pad_inputs(
  config, mesh, rows: Sequence[Sequence[int]], batch_size: int
) -> dict[str, np.ndarray]:
  """Returns `tokens` and `segments` of encoder ids, int32 [B, S] each.

  Rows behind the last input are of padding alone, in segment 0.
  """
  shape = encoder_shape(
    config, mesh, max(map(len, rows)), len(rows), batch_size
  )
  tokens = np.full(shape, config.pad_id, np.int32)
  segments = np.zeros(shape, np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)], segments[i, : len(row)] = row, 1
  return {'tokens': tokens, 'segments': segments}


def pad_batch(
  config, mesh, rows, prefixes, numbers, max_tokens: int, batch_size: int
) -> tuple[dict[str, np.ndarray], int, int]:
  """Returns (batch, T, room): all that a program reads of a few inputs.

  Args:
    config, mesh, batch_size: see `encoder_shape`.
    max_tokens: see `decoder_shape`.
    rows: encoder ids of each input.
    prefixes: decoder ids of each, start token included.
    numbers: of the inputs, for sampling.

  Raises:
    ValueError: see `decoder_shape`.
  """
  n, T, room = decoder_shape(config, max(map(len, prefixes)), max_tokens)
  batch = pad_inputs(config, mesh, rows, batch_size)
  B = len(batch['tokens'])
  prefix = np.full((B, n), config.pad_id, np.int32)
  prefix[:, 0], lengths = config.start_id, np.ones(B, np.int32)
  number = np.zeros(B, np.int32)
  number[: len(rows)] = np.asarray(numbers, np.int64) % 2**31
  for i, row in enumerate(prefixes):
    prefix[i, : len(row)], lengths[i] = row, len(row)
  return batch | dict(prefix=prefix, lengths=lengths, number=number), T, room


def select_program(net, params, sampler, batch: dict, config, T: int) -> tuple:
  """Returns (jitted function, arguments, keyword arguments) for a batch.

  Args:
    net, params, sampler, T: see `generate.generate`.
    batch: of `pad_batch`; or shapes with shardings.
    config: the `sampling.Config` of sampler.
  """
  batch = dict(batch)
  numbers = batch.pop('number')
  named = dict(batch, T=T, results=config.results)
  if config.beams > 1:
    named |= dict(k=config.beams)
    return beam_search.beam_search, (net, params, sampler), named
  named |= dict(numbers=numbers, seed=config.seed)
  return generate.generate, (net, params, sampler), named
