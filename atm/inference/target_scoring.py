"""Log-probabilities of given targets as methods of a model."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from atm.inference import loglikelihood, prompts
from atm.inference.framed_inputs import frame_pairs
from atm.inference.framing import TRUNCATIONS, check_tables
from atm.inference.outputs import fetch_array
from atm.messages import (
  check_arguments,
  check_choice,
  check_count,
  check_list,
)
from atm.model.transformer import AlexaTM

_check_call = check_arguments(
  inputs=partial(check_list, 'inputs'),
  targets=partial(check_list, 'targets'),
  mode=partial(check_choice, 'mode', known=prompts.MODES, optional=True),
  batch_size=partial(check_count, 'batch_size'),
  truncate=partial(check_choice, 'truncate', known=TRUNCATIONS),
  **dict.fromkeys(('source', 'target')),  # by Framing
)


class ScoringMixin:
  """Adds logits, score and likelihoods to a class with a model's parameters."""

  @_check_call
  def logits(self, encoder_ids, decoder_ids, encoder_mask=None) -> np.ndarray:
    """Returns the logits of every next token, teacher-forced.

    Args:
      encoder_ids: [B, S] integers.
      decoder_ids: [B, T] integers, the decoder's inputs: they begin with
        Config.start_id.
      encoder_mask: [B, S], 0 on padding; default: no padding.

    Returns:
      float32 [B, T, V].
    """
    arrays = check_tables(encoder_ids, decoder_ids, encoder_mask, self.config)
    model = AlexaTM(self.config)
    with self._use():
      logits = loglikelihood.next_token_logits(model, self.params, *arrays)
    return fetch_array(logits)

  @_check_call
  def score(
    self,
    inputs: Sequence[str] | Sequence[Sequence[int]],
    targets: Sequence[str] | Sequence[Sequence[int]],
    mode: str | None = None,
    batch_size: int = 32,
    truncate: str = 'refuse',
    source: str | Sequence[str | None] | None = None,
    target: str | Sequence[str | None] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log-probabilities of targets, teacher-forced.

    Args:
      inputs, mode, source, target: see `complete`.
      targets: texts, framed as the model is trained to write them: they end in
        `</s>`, and have a language's id where the model has languages. Or lists
        of ids, scored as they are.
      batch_size: pairs scored at a time.
      truncate: see `complete`; of targets, too. A target that is cut at its end
        is scored without its `</s>`.

    Returns:
      (summed log-probabilities float64 [N], token counts int [N]).

    Raises:
      ValueError: not as many targets as inputs, or one is too long or empty.
    """
    options = mode, batch_size, truncate, source, target
    return self.likelihoods(inputs, targets, None, *options)[:2]

  @_check_call
  def likelihoods(
    self,
    inputs: Sequence[str] | Sequence[Sequence[int]],
    targets: Sequence[str] | Sequence[Sequence[int]],
    given: Sequence[int] | None = None,
    mode: str | None = None,
    batch_size: int = 32,
    truncate: str = 'refuse',
    source: str | Sequence[str | None] | None = None,
    target: str | Sequence[str | None] | None = None,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores the ends of targets, and tells which greedy decoding writes.

    Args:
      inputs, targets, mode, batch_size, truncate, source, target: see `score`.
      given: how many of each target's first tokens the decoder reads, but are
        not scored; None: all are. Of a target that is cut at its start they
        are the first of those left.

    Returns:
      `score`'s, and bool [N]: no token has a greater logit than one scored, in
      its place.

    Raises:
      ValueError: see `score`; or nothing of a target is left to score.
    """
    pairs = frame_pairs(
      self, inputs, targets, given, mode, truncate, source, target
    )
    return loglikelihood.score_pairs(
      AlexaTM(self.config), self.params, self.mesh, self.rules, pairs.ids,
      pairs.targets, pairs.given, batch_size, pairs.starts,
    )  # fmt: skip
