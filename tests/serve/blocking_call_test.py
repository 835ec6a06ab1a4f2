"""A call waits for all that it asks, and for room in the queue."""

import types

import pytest

from atm.serve import blocking_call
from atm.serve.engine_errors import QueueFullError
from atm.serve.generation_request import GenerationRequest, RequestUpdate


class Echo:
  """Answers at once with the ids of the input; its queue is full at first."""

  sizes = types.SimpleNamespace(slots=2)
  error = None
  busy = 2

  def check(self, request) -> None:
    pass

  def submit(self, requests, deliver) -> None:
    self.busy -= 1
    if self.busy >= 0:
      raise QueueFullError(1, 1)
    (request,) = requests
    deliver(0, RequestUpdate())
    deliver(0, RequestUpdate(outputs=request.ids, error=self.error))


def test_outputs_are_in_the_order_of_the_requests():
  requests = [GenerationRequest((i,), (1,)) for i in range(5)]
  outputs = blocking_call.run_requests(Echo(), requests)
  assert outputs == [(i,) for i in range(5)]


def test_a_failed_engine_is_an_error():
  engine = Echo()
  engine.error = 'out of memory'
  with pytest.raises(RuntimeError, match='out of memory'):
    blocking_call.run_requests(engine, [GenerationRequest((1,), (1,))])
