"""Pads batches to few shapes, and selects the program that decodes them.

Letters as in `generate`. `atm infer` runs these programs, `atm plan` compiles
them.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from atm.inference import beam_search, generate, prompt_lookup
from atm.parallel.distributed import count_cores

# Halves of 4 rows spare 9% of the time on two cores; fewer were not measured.
HALF_ROWS = 4


def next_power_of_two(n: int) -> int:
  """Returns the least power of two that is not below n, for n of at least 1."""
  return 1 << (n - 1).bit_length()


def encoder_shape(
  config, mesh, longest: int, rows: int, batch_size: int
) -> tuple[int, int]:
  """Returns the padded shape (B, S) of `rows` encoder inputs, of `batch_size`.

  `longest` is the ids of the longest; B divides by the mesh's data shards.
  """
  shards = mesh.size // mesh.shape['tensor']
  # A batch that is not full grows in powers of two: few shapes compile.
  B = min(next_power_of_two(rows), batch_size)
  S = min(config.positions, next_power_of_two(max(16, longest)))
  return -(-B // shards) * shards, S


def decoder_shape(
  config, longest: int, max_tokens: int, read: int = 0
) -> tuple[int, int, int]:
  """Returns (n, T, room): padded lengths, and tokens that may be written.

  n of prefixes, the longest of `longest` ids with its start token, and T of
  outputs are powers of two. `read` positions are not the decoder's: those of an
  input where one stack has both. Raises ValueError if there is no room for a
  token.
  """
  room = min(max_tokens, count_room(config.positions - read, longest))
  return next_power_of_two(longest), next_power_of_two(room), room


def count_room(
  positions: int, prefix: int, name: str = 'Config.positions'
) -> int:
  """Returns the tokens that fit behind a prefix of so many ids, at least 1.

  `name` is what a user calls `positions`.
  """
  if positions <= prefix:
    raise ValueError(
      f'a prefix of {prefix - 1} tokens: expected at most {positions - 2}, for '
      f'{name} = {positions}'
    )
  return positions - prefix


def check_forced(max_tokens: int, forced: int) -> None:
  """Raises ValueError where `forced` ids leave no room for a token."""
  if max_tokens <= forced:
    raise ValueError(
      f'max_tokens = {max_tokens}: expected {forced + 1} or more, for an '
      f'output begins with {forced} that count'
    )


def pad_inputs(
  config, mesh, rows: Sequence[Sequence[int]], batch_size: int
) -> dict[str, np.ndarray]:
  """Returns `tokens` and `segments` of rows of ids, int32 [B, S] each."""
  shape = encoder_shape(
    config, mesh, max(map(len, rows)), len(rows), batch_size
  )
  tokens = np.full(shape, config.pad_id, np.int32)
  segments = np.zeros(shape, np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)], segments[i, : len(row)] = row, 1
  return {'tokens': tokens, 'segments': segments}


def pad_batch(
  config, mesh, rows, prefixes, numbers, max_tokens: int, batch_size: int,
  forced: Sequence[int] | None = None,
) -> tuple[dict[str, np.ndarray], int, int]:  # fmt: skip
  """Returns (batch, T, room) of inputs: all that a program reads of them.

  Args:
    config, mesh, batch_size: see `pad_inputs`.
    rows: encoder ids.
    prefixes: decoder ids, with their start token.
    numbers: of the inputs, for sampling.
    max_tokens: at most this many are written.
    forced: how many ids at the end of each prefix count among them.

  Raises:
    ValueError: there is no room for a token, see `decoder_shape`.
  """
  forced = forced if forced is not None and any(forced) else None
  check_forced(max_tokens, max(forced or [0]))
  longest, read = max(map(len, prefixes)), 0
  if not config.has_encoder:
    # What is read in front of the longest prefix, and of the longest input.
    both = (len(row) + len(p) for row, p in zip(rows, prefixes))
    read = max(both) - longest
  n, T, room = decoder_shape(config, longest, max_tokens, read)
  if forced:
    most = config.positions - read
    left = (most - len(p) + f for p, f in zip(prefixes, forced))
    room = min(max_tokens, *left)
    T = next_power_of_two(room)
  batch = pad_inputs(config, mesh, rows, batch_size)
  B = len(batch['tokens'])
  prefix = np.full((B, n), config.pad_id, np.int32)
  prefix[:, 0], lengths = config.start_id, np.ones(B, np.int32)
  number = np.zeros(B, np.int32)
  number[: len(rows)] = np.asarray(numbers, np.int64) % 2**31
  for i, row in enumerate(prefixes):
    prefix[i, : len(row)], lengths[i] = row, len(row)
  decoder = dict(prefix=prefix, lengths=lengths, numbers=number)
  if forced:
    decoder['forced'] = np.zeros(B, np.int32)
    decoder['forced'][: len(rows)] = forced
  return batch | decoder, T, room


def map_batches(
  decode: Callable, order: Sequence[int], batch_size: int, mesh
) -> Iterator[tuple[Sequence[int], object]]:
  """Yields (rows of a batch, what `decode` returns of them), in order.

  On one CPU of several cores two halves of a batch are decoded at a time, each
  in a thread: a program has operations that keep one core busy only.
  """
  size, threads = max(1, min(batch_size, len(order))), 1
  one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == 'cpu'
  if one_cpu and size >= 2 * HALF_ROWS and count_cores() > 1:
    size, threads = -(-size // 2), 2
  batches = [order[i : i + size] for i in range(0, len(order), size)]
  if threads == 1:
    yield from ((batch, decode(batch)) for batch in batches)
    return
  pool = ThreadPoolExecutor(threads)
  try:
    yield from zip(batches, pool.map(decode, batches))
  finally:  # after an error or Ctrl-C those that wait are left
    pool.shutdown(cancel_futures=True)


def select_program(net, params, sampler, batch: dict, config, T: int) -> tuple:
  """Returns (jitted function, arguments, keyword arguments) for a batch.

  `batch` is of `pad_batch`, or its shapes with shardings; `config` sampler's.
  """
  named = dict(batch, T=T, results=config.results)
  numbers = named.pop('numbers')
  if config.beams > 1:
    named |= dict(k=config.beams)
    return beam_search.beam_search, (net, params, sampler), named
  named |= dict(numbers=numbers, seed=config.program_seed)
  if K := config.prompt_lookup_num_tokens:
    named |= dict(K=K)
    return prompt_lookup.generate_by_lookup, (net, params, sampler), named
  return generate.generate, (net, params, sampler), named
