"""A request while it is served: what it has been given so far."""

import dataclasses
import logging
import time

import numpy as np

from atm.serve.generation_request import (
  ChosenToken,
  GenerationRequest,
  RequestOutput,
  RequestUpdate,
)
from atm.serve.stop_pool import StopStates

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Output:
  """One output that is being written.

  Attributes:
    ids, logs, top: see RequestOutput; logs are float32.
    position: decoder ids that were read.
    reason: why it ended; None before.
    told_at: when its last tokens came, or its admission.
    score: of beam search; None: the sum of `logs`.
  """

  ids: list = dataclasses.field(default_factory=list)
  logs: list = dataclasses.field(default_factory=list)
  top: list = dataclasses.field(default_factory=list)
  position: int = 0
  reason: str | None = None
  told_at: float = 0.0
  score: float | None = None

  def collect(self, is_scored: bool = False) -> RequestOutput:
    """Returns the output as a caller gets it; `is_scored`: of targets."""
    logs = np.array(self.logs, np.float32)
    # Sums are as exact as those of Model.complete and Model.score.
    total = logs.sum(dtype=np.float64 if is_scored else np.float32)
    score = float(total) if self.score is None else self.score
    return RequestOutput(self.ids, logs.tolist(), self.top, score, self.reason)


class Job:
  """A submitted request.

  Attributes:
    request, ticket: what was asked, and with what others.
    slots: its rows on the device, in the order of its results.
    stops: its stop strings' states in the table of all.
    outputs: one of each result.
  """

  def __init__(self, request: GenerationRequest, ticket, index: int, deliver):
    self.request, self.ticket = request, ticket
    self.slots: list[int] = []
    self.stops: StopStates | None = None
    self.outputs = [Output() for _ in range(request.config.results)]
    self._index, self._deliver = index, deliver
    self._submitted = time.perf_counter()
    self._tokens: list[ChosenToken] = []  # not yet delivered
    self._ended: list[tuple[int, str]] = []
    self._new = [0] * len(self.outputs)
    # When it was admitted, had its first token, and its newest.
    self._admitted = self._submitted
    self._first: float | None = None
    self._newest = 0.0
    self._is_over = False
    self._error: str | None = None

  @property
  def prompt_tokens(self) -> int:
    """Ids that the encoder and the decoder are given."""
    return len(self.request.ids) + len(self.request.prefix)

  def count_seconds(self, now: float) -> float:
    """Returns how long ago it was submitted."""
    return now - self._submitted

  def find_end(self, now: float) -> str | None:
    """Returns why it has to end: 'cancelled', 'timeout', or None."""
    if self.ticket.is_cancelled:
      return 'cancelled'
    limit = self.request.seconds
    late = limit is not None and self.count_seconds(now) >= limit
    return 'timeout' if late else None

  def note_admission(self, observer, start: float, now: float) -> None:
    """Notes that its input was read, from `start` to `now`."""
    for output in self.outputs:
      output.told_at = now
    self._admitted = start
    observer.request_admitted(start - self._submitted, self.prompt_tokens)

  def add_token(
    self, result: int, token: int, log_probability, top_ids, top_logs, end_id
  ) -> None:
    """Adds a token to an output."""
    output, token, few = self.outputs[result], int(token), self.request.top
    top = ()
    if few:
      pairs = zip(top_ids[:few].tolist(), top_logs[:few].tolist())
      top = tuple(pairs)
      output.top.append(top)
    output.logs.append(log_probability)
    if token != end_id or self.request.targets is not None:
      output.ids.append(token)
    self._tokens.append(ChosenToken(result, token, float(log_probability), top))
    self._new[result] += 1

  def note_tokens(self, observer, now: float) -> None:
    """Tells an observer of tokens that a call of the device brought."""
    if any(self._new):
      self._newest = now
      if self._first is None:
        self._first = now
        observer.first_token(now - self._submitted)
    for output, (i, count) in zip(self.outputs, enumerate(self._new)):
      if count:
        observer.tokens(count, now - output.told_at)
        output.told_at, self._new[i] = now, 0

  def end_search(self, outputs: list[RequestOutput]) -> None:
    """Ends all outputs, which a search of beams brought at once."""
    for result, (output, x) in enumerate(zip(self.outputs, outputs)):
      output.ids, output.logs, output.top = x.ids, x.log_probabilities, x.top
      output.score = x.score
      self._new[result] = len(x.log_probabilities)
      self.end_output(result, x.reason)

  def end_output(self, result: int, reason: str) -> None:
    """Ends one output."""
    self.outputs[result].reason = reason
    self._ended.append((result, reason))

  def end(self, reason: str | None, error: str | None = None) -> None:
    """Ends all outputs that have not; an error ends the request without any."""
    self._error = error
    for i, output in enumerate(self.outputs):
      if output.reason is None and not error:
        self.end_output(i, reason)

  def _measure_phases(self) -> tuple[float, float] | tuple[None, None]:
    """Returns seconds from admission to first and from first to last token."""
    if self._first is None:
      return None, None
    return self._first - self._admitted, self._newest - self._first

  def deliver(self, observer) -> None:
    """Gives the caller its news, if there are any."""
    if self._is_over:
      return
    over = self._error or all(x.reason for x in self.outputs)
    if not (self._tokens or self._ended or over):
      return
    outputs = None
    if over:
      self._is_over = True
      is_scored = self.request.targets is not None
      outputs = tuple(x.collect(is_scored) for x in self.outputs)
      outputs = () if self._error else outputs
    update = RequestUpdate(
      tuple(self._tokens), tuple(self._ended), outputs, self._error
    )
    self._tokens, self._ended = [], []
    if over:
      observer.request_ended(
        'error' if self._error else outputs[0].reason,
        time.perf_counter() - self._submitted,
        self.prompt_tokens,
        sum(len(x.logs) for x in self.outputs),
        *self._measure_phases(),
      )
    try:
      with self.ticket.delivering:
        self._deliver(self._index, update)
    except Exception:  # a caller's fault: others are served on
      _logger.exception('what a request brought could not be delivered')
      self.ticket.cancel()
