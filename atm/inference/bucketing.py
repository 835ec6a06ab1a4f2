"""Which program decodes a batch, and of what shape: few, so that few compile.

Letters as in decode.py. `atm infer` runs these, and `atm plan` compiles them.
"""

from __future__ import annotations

from atm.inference import beam_search, generate


def next_power_of_two(n: int) -> int:
  """The least one that is not below n."""
  return 1 << (n - 1).bit_length()


def encoder_shape(
  config, mesh, longest: int, rows: int, batch_size: int
) -> tuple:
  """(B, S) of encoder inputs: what is behind them is padding.

  A batch that is not full grows in powers of two up to one that is, and all
  divide by the data shards.

  Args:
    config: a `model.config.Config`.
    mesh: where they are decoded.
    longest: ids of the longest.
    rows: how many they are.
    batch_size: of a full batch.
  """
  shards = mesh.size // mesh.shape['tensor']
  B = min(next_power_of_two(rows), batch_size)
  S = min(config.positions, next_power_of_two(max(16, longest)))
  return -(-B // shards) * shards, S


def decoder_shape(
  config, longest: int, max_tokens: int
) -> tuple[int, int, int]:
  """(n, T, room) of the decoder: its prefix, what is written behind it.

  Args:
    config: a `model.config.Config`.
    longest: ids of the longest prefix, its start token included.
    max_tokens: asked for.

  Returns:
    n and T, powers of two; how many tokens there really may be, T or less.

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


def select_program(net, params, sampler, batch: dict, config, T: int) -> tuple:
  """(jitted function, arguments, named arguments) that decode a batch.

  Args:
    net: the model.
    params: of `generate.prepare_params`.
    sampler: the `sampling.Sampler` of config.
    batch: `tokens`, `segments`, `prefix`, `lengths` and `number`, see
      `generate.generate`; arrays, or shapes with shardings.
    config: a `sampling.Config`.
    T: room for tokens.
  """
  batch = dict(batch)
  numbers = batch.pop('number')
  named = dict(batch, T=T, results=config.results)
  if config.beams > 1:
    named |= dict(k=config.beams)
    return beam_search.beam_search, (net, params, sampler), named
  named |= dict(numbers=numbers, seed=config.seed)
  return generate.generate, (net, params, sampler), named
