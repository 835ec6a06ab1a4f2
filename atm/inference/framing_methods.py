"""What a model reads and writes for texts, as methods of a model."""

import functools
from collections.abc import Sequence
from functools import partial

from atm.inference import prompts
from atm.inference.framing import TRUNCATIONS, Framing
from atm.messages import (
  check_arguments,
  check_choice,
  check_list,
  check_text,
)

_check_call = check_arguments(
  inputs=partial(check_list, 'inputs'),
  targets=partial(check_list, 'targets'),
  text=partial(check_text, 'text'),
  mode=partial(check_choice, 'mode', known=prompts.MODES, optional=True),
  truncate=partial(check_choice, 'truncate', known=TRUNCATIONS),
  **dict.fromkeys(('ids', 'source', 'target')),  # by Framing
)


class FramingMixin:
  """Adds languages and framed ids to a class with config and vocabulary."""

  @functools.cached_property
  def _framing(self) -> Framing:
    return Framing(self.config, self.vocabulary, self.forced_bos_id)

  @property
  def languages(self) -> tuple[str, ...]:
    """The model's own codes of the languages it tells apart; () for none."""
    return self._framing.known_languages

  @_check_call
  def ids(
    self,
    inputs: Sequence[str] | Sequence[Sequence[int]],
    mode: str | None = None,
    truncate: str = 'refuse',
    source: str | Sequence[str | None] | None = None,
  ) -> list[list[int]]:
    """Returns the ids that the encoder reads of each input, see `complete`."""
    sources = self._framing.find_languages('source', source, len(inputs))
    return self._framing.inputs(inputs, mode, truncate, sources)

  @_check_call
  def target_ids(
    self,
    targets: Sequence[str] | Sequence[Sequence[int]],
    mode: str | None = None,
    truncate: str = 'refuse',
    target: str | Sequence[str | None] | None = None,
  ) -> list[list[int]]:
    """Returns the ids that the decoder is to write of each, see `score`."""
    languages = self._framing.find_languages('target', target, len(targets))
    return self._framing.targets(targets, mode, truncate, languages)

  @_check_call
  def encode(
    self, text: str, mode: str | None = None, source: str | None = None
  ) -> list[int]:
    """Returns a text's encoder ids, of any length, see `framed`."""
    source = self._framing.find_language('source', source)
    return self._framing.encode(text, mode, source)

  @_check_call
  def framed(
    self,
    ids: Sequence[int],
    mode: str | None = None,
    source: str | None = None,
  ) -> list[int]:
    """Returns a text's ids as the encoder reads them.

    `<s> [CLM] ids </s>` in 'clm'; in 'denoise' there is no `[CLM]`. Public
    models have frames of their own, see `atm.data.input_format`, with the
    source language's id in those that have languages.
    """
    source = self._framing.find_language('source', source)
    return self._framing.frame(ids, mode, source)

  def _resolve(self, inputs, mode, source, target, outputs=None) -> tuple:
    """Returns (mode, sources, targets) of inputs, see `model_frame`.

    Raises ValueError where an input that is a text has no source language, or
    an output that is to be one, or an input's without `outputs`, no target.
    """
    framing, count = self._framing, len(inputs)
    sources = framing.find_languages('source', source, count)
    targets = framing.find_languages('target', target, count)
    mode = framing.name_mode(mode, any((*sources, *targets)))
    if mode not in prompts.MODES:
      outputs = inputs if outputs is None else outputs
      framing.check_named(
        [code for x, code in zip(inputs, sources) if isinstance(x, str)],
        [code for x, code in zip(outputs, targets) if isinstance(x, str)],
      )
    return mode, sources, targets
