"""Calls of an engine that wait for what they ask."""

import contextlib
import queue
import time
from collections.abc import Sequence

from atm.inference.framed_inputs import FramedInputs, frame_inputs
from atm.inference.outputs import Generation, spell_output
from atm.serve.engine_errors import QueueFullError
from atm.serve.generation_request import GenerationRequest, RequestOutput
from atm.serve.request_builder import list_requests

WAIT_SECONDS = 0.01  # where the queue is full of other callers' requests


def complete(engine, inputs, mode=None, **options) -> list[list[Generation]]:
  """Returns what `Model.complete` returns of the same arguments.

  Other callers' requests are served at the same time. `batch_size` counts for
  nothing.

  Raises:
    ValueError: see there, and `Engine.check`.
    EngineClosedError: the engine takes no requests.
    RuntimeError: the engine failed.
  """
  options.pop('batch_size', None)
  framed = frame_inputs(engine.model, inputs, mode, **options)
  outputs = run_requests(engine, list_requests(framed))
  return [_collect(engine, framed, i, x) for i, x in enumerate(outputs)]


def run_requests(
  engine, requests: Sequence[GenerationRequest]
) -> list[tuple[RequestOutput, ...]]:
  """Returns the outputs of each request; see `complete`."""
  for request in requests:
    engine.check(request)
  news: queue.SimpleQueue = queue.SimpleQueue()
  done, sent = {}, 0
  while len(done) < len(requests):
    with contextlib.suppress(QueueFullError):
      while sent < len(requests) and sent - len(done) < engine.sizes.slots:
        deliver = lambda _, update, i=sent: news.put((i, update))
        engine.submit([requests[sent]], deliver)
        sent += 1
    if sent == len(done):
      time.sleep(WAIT_SECONDS)
      continue
    i, update = news.get()
    if update.error:
      raise RuntimeError(f'the engine failed: {update.error}')
    if update.outputs is not None:
      done[i] = update.outputs
  return [done[i] for i in range(len(requests))]


def _collect(engine, framed: FramedInputs, i: int, outputs) -> list[Generation]:
  """Returns the generations of input `i`."""
  words, prefix = engine.model.vocabulary, framed.prefixes[i]
  return [
    Generation(
      spell_output(prefix, x.ids, words, framed.stop),
      x.ids, x.log_probabilities, x.score, framed.cuts[i],
    )
    for x in outputs
  ]  # fmt: skip
