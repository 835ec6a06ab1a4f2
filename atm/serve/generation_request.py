"""What the engine is asked, and what it answers."""

import dataclasses
from collections.abc import Callable

import numpy as np

from atm.inference import sampling


@dataclasses.dataclass(frozen=True, eq=False)
class GenerationRequest:
  """One encoder input, and how its outputs are chosen.

  Attributes:
    ids: encoder ids, framed, at most Config.positions.
    prefix: decoder ids, from the start token on.
    config: see `sampling.Config`; `results` outputs, of `beams` beams.
    forced: how many ids at the prefix's end count as written.
    stop_table: of `stop_strings.build_table`; None: no stop strings.
    banned: sequences of ids that no output has.
    number: of the input, for sampling.
    top: how many likeliest tokens to tell at each position, with their
      log-probabilities.
    seconds: from its submission on; what has not ended by then ends as it is.
    targets: ids to score in place of choosing any, the end token included where
      it is to be scored; the output's ids are these.
  """

  ids: tuple[int, ...]
  prefix: tuple[int, ...]
  config: sampling.Config = sampling.Config()
  forced: int = 0
  stop_table: np.ndarray | None = None
  banned: tuple[tuple[int, ...], ...] = ()
  number: int = 0
  top: int = 0
  seconds: float | None = None
  targets: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class ChosenToken:
  """A token of an output, as soon as it is chosen.

  Attributes:
    result: which output of its request, from 0.
    id: the token; an output's end token is told, too.
    log_probability: by the model, before penalties and temperature.
    top: the likeliest ids with their log-probabilities, the likeliest first.
  """

  result: int
  id: int
  log_probability: float
  top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class RequestOutput:
  """One whole output.

  Attributes:
    ids: the tokens written, without prefix, start and end; those of a stop
      string are among them.
    log_probabilities: of each of `ids`, and of the end token where there is
      one.
    top: see ChosenToken, for each of `log_probabilities`; () where not asked.
    score: of beam search, else the sum of the log-probabilities.
    reason: 'stop' (the end token or a stop string), 'length', 'cancelled' or
      'timeout'.
  """

  ids: list[int]
  log_probabilities: list[float]
  top: list[tuple[tuple[int, float], ...]]
  score: float
  reason: str


@dataclasses.dataclass(frozen=True)
class RequestUpdate:
  """What a call of the device brought one request.

  Attributes:
    tokens: in the order of their choice; () of beam search, which knows its
      tokens only in the end.
    ended: the outputs that ended, and why; see RequestOutput.reason.
    outputs: all of them, the best first, once the last has ended; else None.
    error: why the engine failed at it; then `outputs` is ().
  """

  tokens: tuple[ChosenToken, ...] = ()
  ended: tuple[tuple[int, str], ...] = ()
  outputs: tuple[RequestOutput, ...] | None = None
  error: str | None = None


# Called in the engine's own thread: must not block, nor raise.
Deliver = Callable[[RequestUpdate], None]
