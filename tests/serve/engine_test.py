"""The engine gives each request what the model gives it alone."""

import threading

import numpy as np
import pytest

from atm.inference import sampling
from atm.serve.engine import (
  Engine,
  EngineClosedError,
  EngineSizes,
  QueueFullError,
)
from atm.serve.generation_request import GenerationRequest
from atm.serve.observer import Observer
from atm.serve.request_builder import build_requests, build_score_requests
from atm.serve.row_lane import RowLane


@pytest.fixture
def model(ending_model):
  return ending_model


def run(engine, requests) -> list:
  """Returns the outputs of requests that are submitted at once."""
  outputs, ended = {}, threading.Event()

  def deliver(i, update):
    if update.outputs is not None:
      outputs[i] = update.outputs
      if len(outputs) == len(requests):
        ended.set()

  engine.submit(requests, deliver)
  assert ended.wait(60)
  return [outputs[i] for i in range(len(requests))]


def test_complete_gives_what_the_model_does(model, engine):
  inputs = [[5, 6, 7], [8] * 40, [9, 10]]
  options = dict(
    config=sampling.Config(max_tokens=6), prefixes=[[4], [], [3, 4]]
  )
  expected = model.complete(inputs, **options)
  for given, ours in zip(expected, engine.complete(inputs, **options)):
    assert [x.ids for x in ours] == [x.ids for x in given]


def test_targets_are_scored(model, engine):
  rng, size = np.random.default_rng(0), model.config.vocab_size
  draw = lambda: rng.integers(3, size, rng.integers(1, 48)).tolist()
  inputs, targets = ([draw() for _ in range(20)] for _ in range(2))
  targets[0] = [8, 9, 10, model.config.end_id]
  totals, counts = model.score(inputs, targets)
  requests = build_score_requests(model, inputs, targets)
  outputs = [x for (x,) in run(engine, requests)]
  for output, target, count in zip(outputs, targets, counts):
    assert output.ids == target and output.reason == 'stop'
    assert len(output.log_probabilities) == count == len(target)
  np.testing.assert_allclose([x.score for x in outputs], totals, atol=1e-5)


def test_a_cancelled_request_frees_its_rows(engine, model):
  ended = threading.Event()
  updates = []

  def deliver(i, update):
    updates.append(update)
    if update.outputs:
      ended.set()

  prefix = (model.config.start_id,)
  config = sampling.Config(max_tokens=40, min_tokens=40)
  ticket = engine.submit([GenerationRequest((5,), prefix, config)], deliver)
  ticket.cancel()
  assert ended.wait(60)
  assert updates[-1].outputs[0].reason == 'cancelled'
  assert (
    run(engine, [GenerationRequest((5,), prefix, seconds=0.0)])[0][0].reason
    == 'timeout'
  )
  assert engine.stats().used_slots == 0


class HeldPrograms:
  """Compiled programs of another engine, whose steps wait for `go`."""

  def __init__(self, programs):
    self._programs, self.go = programs, threading.Event()
    self.error = None

  def __getattr__(self, name):
    return getattr(self._programs, name)

  def compile(self, say) -> None:
    pass

  def time_steps(self, states, stops) -> None:
    pass

  def decode(self, *args):
    assert self.go.wait(60)
    if self.error:
      raise self.error
    return self._programs.decode(*args)


@pytest.fixture
def held(engine, model):
  """An engine with a queue of 3 whose steps wait."""
  sizes = EngineSizes(slots=4, queue=3)
  held = Engine(model, sizes, say=lambda text: None)
  held.programs = HeldPrograms(engine._lanes[0].programs)
  lane = RowLane(held.programs, held._stops, Observer(), held._changed)
  held._lanes = [lane]
  held.start()
  yield held
  held.programs.go.set()
  held.close()


@pytest.fixture
def requests(model):
  """Requests that fill four slots, and one that waits."""
  config = sampling.Config(max_tokens=4, min_tokens=4)
  request = GenerationRequest((5,), (model.config.start_id,), config)
  return [request] * 5


def fill(engine, requests) -> tuple[list, threading.Event]:
  """Submits requests; returns their last updates, and when all have ended."""
  updates, ended = [], threading.Event()

  def deliver(i, update):
    if update.outputs is not None:
      updates.append(update)
      if len(updates) == len(requests):
        ended.set()

  for request in requests:
    engine.submit([request], deliver)
  return updates, ended


def test_a_queue_that_is_full_refuses_all_of_a_call(held, requests):
  with pytest.raises(QueueFullError, match='at most 3'):
    held.submit(requests[:4], print)
  assert held.stats().waiting == 0


def test_draining_ends_what_runs_and_takes_nothing_else(held, requests):
  updates, ended = fill(held, requests[:2])
  threading.Timer(0.2, held.programs.go.set).start()
  assert held.drain(60)
  assert ended.wait(60)
  assert [x.outputs[0].reason for x in updates] == ['length'] * 2
  with pytest.raises(EngineClosedError):
    held.submit(requests, print)


def test_draining_cancels_what_takes_too_long(held, requests):
  updates, ended = fill(held, requests[:2])
  threading.Timer(0.2, held.programs.go.set).start()
  assert not held.drain(0.0)
  assert ended.wait(60)
  assert {x.outputs[0].reason for x in updates} <= {'cancelled', 'length'}


def test_a_failure_ends_every_request_and_is_told(held, requests):
  held.programs.error = RuntimeError('the device is lost')
  updates, ended = fill(held, requests[:3])
  held.programs.go.set()
  assert ended.wait(60)
  assert [x.error for x in updates] == ['the device is lost'] * 3
  assert held.failure is held.programs.error
  with pytest.raises(EngineClosedError, match='the device is lost'):
    held.submit(requests, print)
  assert held.stats().used_slots == 0


def test_closing_cancels_all(held, requests):
  updates, ended = fill(held, requests[:2])
  closing = threading.Thread(target=held.close)
  closing.start()
  held.programs.go.set()
  closing.join(60)
  assert ended.wait(60) and held.failure is None


def test_stop_strings_wait_for_room(engine, model):
  """Two of these do not fit in the table at once; longer ones never do."""
  stops = [(letter * 40,) for letter in 'abcab']
  inputs, config = [[5, 6, 7]], sampling.Config(max_tokens=20)
  requests = [
    request
    for stop in [(), *stops]
    for request in build_requests(model, inputs, config=config, stop=stop)
  ]
  outputs = run(engine, requests)
  assert {tuple(x.ids) for (x,) in outputs} == {tuple(outputs[0][0].ids)}
  (request,) = build_requests(model, inputs, stop=['a' * 70])
  with pytest.raises(ValueError, match='stop needs 72 states'):
    engine.check(request)
