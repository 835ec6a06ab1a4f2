"""Builds an engine's requests from what a user of a model writes."""

from collections.abc import Sequence

from atm.inference import api, sampling
from atm.inference.framed_inputs import (
  FramedInputs,
  frame_inputs,
  frame_pairs,
)
from atm.inference.loglikelihood import check_given
from atm.serve.generation_request import GenerationRequest


def build_requests(
  model: api.Model,
  inputs: Sequence[str] | Sequence[Sequence[int]],
  mode: str | None = None,
  config: sampling.Config = sampling.Config(),
  prefixes: Sequence | None = None,
  stop: Sequence[str] = (),
  banned: Sequence[str] | Sequence[Sequence[int]] = (),
  numbers: Sequence[int] | None = None,
  truncate: str = 'refuse',
  source: str | Sequence[str | None] | None = None,
  target: str | Sequence[str | None] | None = None,
) -> list[GenerationRequest]:
  """Returns a request for each input; arguments of `Model.complete`.

  Raises:
    ValueError: see there.
  """
  return list_requests(
    frame_inputs(
      model, inputs, mode, config, prefixes, stop, banned, numbers, truncate,
      source, target,
    )
  )  # fmt: skip


def list_requests(framed: FramedInputs) -> list[GenerationRequest]:
  """Returns a request for each of framed inputs."""
  columns = framed.ids, framed.prefixes, framed.forced, framed.numbers
  return [
    GenerationRequest(
      tuple(ids), tuple(prefix), framed.config, forced, framed.stop_table,
      tuple(map(tuple, framed.banned)), number,
    )
    for ids, prefix, forced, number in zip(*columns)
  ]  # fmt: skip


def build_score_requests(
  model: api.Model,
  inputs: Sequence[str] | Sequence[Sequence[int]],
  targets: Sequence[str] | Sequence[Sequence[int]],
  given: Sequence[int] | None = None,
  mode: str | None = None,
  truncate: str = 'refuse',
  source: str | Sequence[str | None] | None = None,
  target: str | Sequence[str | None] | None = None,
) -> list[GenerationRequest]:
  """Returns a request for each pair; arguments of `Model.likelihoods`.

  Raises:
    ValueError: see there.
  """
  pairs = frame_pairs(
    model, inputs, targets, given, mode, truncate, source, target
  )
  counts = check_given(pairs.targets, pairs.given)
  return [
    GenerationRequest(
      tuple(ids), (start, *labels[:count]), targets=tuple(labels[count:])
    )
    for ids, labels, count, start in zip(
      pairs.ids, pairs.targets, counts, pairs.starts
    )
  ]
