"""What a call that generates is given, checked and as ids."""

import dataclasses
from collections.abc import Sequence

from atm.inference import sampling
from atm.inference.framing import Framing, check_numbers


def fit_inputs(
  framing: Framing, rows: Sequence[list[int]], truncate: str,
  prefixes: Sequence[Sequence[int]], max_tokens: int,
) -> tuple[list[list[int]], list[int]]:  # fmt: skip
  """Returns `Framing.fit` of inputs, with room behind where one stack has both.

  For a token behind each of `prefixes`; for `max_tokens` where inputs are cut.
  """
  written = 1 if truncate == 'refuse' else max_tokens
  reserved = [
    framing.count_reserved(len(prefix) + written, truncate)
    for prefix in prefixes
  ]
  return framing.fit(rows, truncate, reserved=reserved)


def reserve_rows(
  framing: Framing, rows: Sequence[Sequence[int]], truncate: str
) -> list[int]:
  """Returns how many positions others leave to each of `rows`."""
  return [framing.count_reserved(len(row), truncate) for row in rows]


def fit_pairs(
  framing: Framing, inputs: Sequence[list[int]], targets: Sequence[list[int]],
  truncate: str,
) -> tuple[list, list, list, list]:  # fmt: skip
  """Returns `Framing.fit` of inputs, and of targets behind them."""
  reserved = reserve_rows(framing, targets, truncate)
  ids, cuts = framing.fit(inputs, truncate, reserved=reserved)
  read = reserve_rows(framing, ids, 'refuse')
  return ids, cuts, *framing.fit(targets, truncate, 'target', read)


@dataclasses.dataclass
class FramedInputs:
  """Inputs of `Model.complete`, all that decoding reads of them.

  Attributes:
    config: settings, the model's own where none were given.
    ids: of the encoder, of each input.
    cuts: how many tokens each input has lost.
    prefixes: decoder ids of each, from the start token on.
    forced: how many ids at the end of each prefix count as written.
    numbers: of the inputs, for sampling.
    banned: sequences of ids.
    stop: stop strings as outputs may hold them.
    stop_table: of `stop_strings.build_table`, or None.
  """

  config: sampling.Config
  ids: list[list[int]]
  cuts: list[int]
  prefixes: list[list[int]]
  forced: list[int]
  numbers: Sequence[int]
  banned: list[list[int]]
  stop: tuple[str, ...]
  stop_table: object


def frame_inputs(
  model, inputs, mode=None, config=sampling.Config(), prefixes=None, stop=(),
  banned=(), numbers=None, truncate='refuse', source=None, target=None,
) -> FramedInputs:  # fmt: skip
  """Returns what decoding reads of inputs; arguments of `Model.complete`.

  Raises:
    ValueError: see there.
  """
  framing = model._framing
  config, banned = model._fill_settings(config, banned)
  mode, sources, targets = model._resolve(inputs, mode, source, target)
  ids = framing.frame_all(inputs, mode, sources)
  prefixes = framing.prefixes(prefixes, len(ids), mode, targets)
  ids, cuts = fit_inputs(framing, ids, truncate, prefixes, config.max_tokens)
  forced = framing.list_forced(prefixes, mode, targets)
  stop = framing.stops(stop)
  banned, table = framing.banned(banned), framing.stop_table(stop)
  numbers = check_numbers('numbers', numbers, len(ids)) or range(len(ids))
  return FramedInputs(
    config, ids, cuts, prefixes, forced, numbers, banned, stop, table
  )


@dataclasses.dataclass
class FramedPairs:
  """Inputs and targets of `Model.likelihoods`, all that scoring reads of them.

  Attributes:
    ids: of the encoder, of each input.
    targets: ids of each target.
    given: how many of each target's first ids are not scored; None: 0.
    starts: the decoder's first id of each.
  """

  ids: list[list[int]]
  targets: list[list[int]]
  given: list[int] | None
  starts: list[int]


def frame_pairs(
  model, inputs, targets, given, mode, truncate, source, target
) -> FramedPairs:
  """Returns what scoring reads of pairs; arguments of `Model.likelihoods`.

  Raises:
    ValueError: see there.
  """
  if len(inputs) != len(targets):
    raise ValueError(f'{len(inputs)} inputs, but {len(targets)} targets')
  given = check_numbers('given', given, len(targets))
  framing = model._framing
  mode, sources, languages = model._resolve(
    inputs, mode, source, target, targets
  )
  ids, _, targets, _ = fit_pairs(
    framing,
    framing.frame_all(inputs, mode, sources),
    framing.frame_targets(targets, mode, languages),
    truncate,
  )
  return FramedPairs(
    ids,
    targets,
    given,
    [framing.start(mode, language)[0] for language in languages],
  )
