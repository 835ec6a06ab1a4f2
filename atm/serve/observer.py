"""What an engine tells of its work, for whoever measures it."""


class Observer:
  """Hears what an engine does, and does nothing; metrics derive from it.

  All methods are called in a thread of the engine, between calls of the device,
  and each lane of rows may have a thread: they must be quick, nor block, nor
  raise. Seconds are those of
  `time.perf_counter`.
  """

  def request_admitted(self, queue_seconds: float, prompt_tokens: int) -> None:
    """Notes a request whose encoder input was read.

    Args:
      queue_seconds: from its submission until its input was begun to be read.
      prompt_tokens: its encoder ids and its prefix's.
    """

  def first_token(self, seconds: float) -> None:
    """Notes the first token of a request, so long after its submission."""

  def tokens(self, count: int, seconds: float) -> None:
    """Notes tokens of one row that a call of the device brought at once.

    Args:
      count: how many, at least 1; a request's first token is among them.
      seconds: since the row's previous tokens, or since its admission.
    """

  def request_ended(
    self,
    reason: str,
    seconds: float,
    prompt_tokens: int,
    generated_tokens: int,
    prefill_seconds: float | None = None,
    decode_seconds: float | None = None,
  ) -> None:
    """Notes a request whose last output ended, whether it was admitted or not.

    Args:
      reason: of its best output, see `RequestOutput.reason`, or 'error'.
      seconds: from its submission on.
      prompt_tokens: its encoder ids and its prefix's.
      generated_tokens: of all its outputs.
      prefill_seconds: from its admission to its first token; None without one.
      decode_seconds: from its first token to its last; None without one.
    """

  def device_call(
    self, kind: str, seconds: float, rows: int, steps: int
  ) -> None:
    """Notes one call of a program.

    Args:
      kind: 'admit', 'decode' or 'beams'.
      seconds: until its results were read.
      rows: that it worked for: admitted, or active.
      steps: of the decoder; 0 of an admission.
    """
