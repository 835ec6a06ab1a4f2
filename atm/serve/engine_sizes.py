"""What an engine has room for."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from atm.messages import (
  check_count,
  check_fields,
  check_index,
  check_list,
  quote,
)

LEAST_BEAMS = 4  # of a request, where nobody says how many there may be


def check_banned_sizes(value) -> tuple[int, int]:
  """Returns two counts; raises ValueError for anything else."""
  sizes = check_list('BANNED_SIZES', value)
  if len(sizes) != 2:
    raise ValueError(
      f'BANNED_SIZES = {quote(value)}: expected (sequences, ids of one)'
    )
  return tuple(
    check_count(f'BANNED_SIZES[{i}]', n) for i, n in enumerate(sizes)
  )


@dataclasses.dataclass(frozen=True)
class EngineSizes:
  """What an engine has room for; its memory is allocated once, at its start.

  Attributes:
    slots: greedy and sampled outputs that decode at a time.
    beam_groups: inputs that beam search decodes at a time; 0: none.
    beams: the most beams that a request may have; None: 4, or as many as the
      model's own generation settings ask for.
    queue: the most requests that wait.
    max_input: the most encoder ids; None: Config.positions.
    max_output: the most decoder ids, with the prefix; None: Config.positions.
    admit_tokens: encoder positions that are read between two calls of the
      decoder, while rows decode: longer pauses for them, fewer for others.
    most_steps: decode steps of a call, at most.
    top: the most likeliest tokens that a request may ask to be told.
    stop_states: of the table that the stop strings of all requests share.
    banned: the most banned sequences of a request, and the most ids of one.
  """

  slots: int = 16
  beam_groups: int = 2
  beams: int | None = None
  queue: int = 256
  max_input: int | None = None
  max_output: int | None = None
  admit_tokens: int = 512
  most_steps: int = 32
  top: int = 20
  stop_states: int = 64
  banned: tuple[int, int] = (16, 8)

  checks: ClassVar[dict[str, Callable]] = (
    {
      name: partial(check_count, name.upper())
      for name in (
        'slots',
        'queue',
        'admit_tokens',
        'most_steps',
        'top',
        'stop_states',
      )  # fmt: skip
    }
    | {
      name: partial(check_count, name.upper(), optional=True)
      for name in ('beams', 'max_input', 'max_output')
    }
    | {
      'beam_groups': partial(check_index, 'BEAM_GROUPS'),
      'banned': check_banned_sizes,
    }
  )

  def __post_init__(self):
    check_fields(self)

  def fit(self, config, mesh, rules, own_beams: int = 1) -> 'EngineSizes':
    """Returns sizes with nothing left open, as a model and a mesh have room.

    `own_beams` are those of the model's generation settings.
    """
    at_most = lambda n: min(n or config.positions, config.positions)
    shards = math.prod(mesh.shape[a] for a in rules.mesh_axes('batch'))
    (most, longest), max_output = self.banned, at_most(self.max_output)
    return dataclasses.replace(
      self,
      slots=-(-self.slots // shards) * shards,
      beam_groups=-(-self.beam_groups // shards) * shards,
      beams=self.beams or max(LEAST_BEAMS, own_beams),
      max_input=at_most(self.max_input),
      max_output=max_output,
      # No output has a longer sequence.
      banned=(most, min(longest, max_output)),
      top=min(self.top, config.vocab_size),
    )
