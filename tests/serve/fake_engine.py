"""An engine of the real one's interface that needs no device.

Its outputs depend on the request alone: ids from a counter that the input
begins, so that tests know them, each with a log-probability.
"""

import threading
import time
import types

from atm.serve.engine import EngineClosedError, QueueFullError
from atm.serve.engine_sizes import EngineSizes
from atm.serve.generation_request import (
  ChosenToken,
  RequestOutput,
  RequestUpdate,
)


def write(request, result: int, end_id: int, size: int) -> list[ChosenToken]:
  """Returns the tokens of an output, the end token where it has one."""
  if request.targets is not None:
    ids = list(request.targets)
  else:
    first, most = sum(request.ids) + result, request.config.max_tokens
    count = max(request.config.min_tokens, 3 + first % 40)
    ids = [4 + (first + i * i) % (size - 5) for i in range(min(count, most))]
    ids = [i for i in ids if i != end_id] + [end_id] * (count < most)
  top = lambda i: tuple(
    (4 + (i + k) % 50, -1.0 - k) for k in range(request.top)
  )
  return [ChosenToken(result, i, -(1 + i % 7) / 4, top(i)) for i in ids]


class FakeEngine:
  """Writes a token of every output each `seconds`."""

  def __init__(self, model, seconds: float = 0.0, queue: int = 64):
    self.model, self.seconds = model, seconds
    self.sizes = EngineSizes(queue=queue).fit(
      model.config, model.mesh, model.rules
    )
    self.failure, self.error = None, None
    self.is_closed = False
    self.running = 0
    self.cancelled: list[float] = []  # when each ticket was
    self.checked = []

  def check(self, request) -> None:
    self.checked.append(request)
    if len(request.ids) > self.sizes.max_input:
      raise ValueError(f'the input has {len(request.ids)} tokens: expected 9')
    if len(request.prefix) >= self.sizes.max_output:
      raise ValueError(f'a prefix of {len(request.prefix)} tokens')

  def submit(self, requests, deliver):
    for request in requests:
      self.check(request)
    if self.is_closed:
      raise EngineClosedError('closed')
    if self.running + len(requests) > self.sizes.queue:
      raise QueueFullError(self.running, self.sizes.queue)
    self.running += len(requests)
    ended = threading.Event()

    def cancel():
      if not ended.is_set():
        self.cancelled.append(time.perf_counter())
      ended.set()

    for i, request in enumerate(requests):
      arguments = request, lambda update, i=i: deliver(i, update), ended
      threading.Thread(target=self._serve, args=arguments, daemon=True).start()
    return types.SimpleNamespace(cancel=cancel)

  def _serve(self, request, deliver, ended) -> None:
    config, end_id = request.config, self.model.config.end_id
    rows = [
      write(request, j, end_id, self.model.config.vocab_size)
      for j in range(config.results)
    ]
    start, told, late = time.perf_counter(), 0, False
    while any(len(row) > told for row in rows):
      if self.error:
        self.running -= 1
        deliver(RequestUpdate(error=self.error, outputs=()))
        return
      if self.seconds:
        ended.wait(self.seconds)
      late = time.perf_counter() - start > (request.seconds or 1e9)
      if ended.is_set() or late:
        break
      step = 1 if self.seconds else 3  # several a call, as the engine does
      tokens = [x for row in rows for x in row[told : told + step]]
      told += step
      if config.beams == 1:
        deliver(RequestUpdate(tokens=tuple(tokens)))
    self.running -= 1
    reason = 'timeout' if late else 'cancelled' if ended.is_set() else None
    outputs = tuple(self._collect(row[:told], reason, end_id) for row in rows)
    over = tuple((j, x.reason) for j, x in enumerate(outputs))
    deliver(RequestUpdate(ended=over, outputs=outputs))

  def _collect(self, row, reason, end_id) -> RequestOutput:
    ids = [x.id for x in row if x.id != end_id]
    logs = [x.log_probability for x in row]
    reason = reason or ('stop' if len(ids) < len(row) else 'length')
    top = [x.top for x in row]
    return RequestOutput(ids, logs, top, sum(logs), reason)
