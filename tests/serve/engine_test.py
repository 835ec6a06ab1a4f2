"""The engine gives each request what the model gives it alone."""

import threading

import numpy as np
import pytest

from atm.inference import sampling
from atm.serve.generation_request import GenerationRequest


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
  ids, target = (5, 6, 7), (8, 9, 10, model.config.end_id)
  request = GenerationRequest(ids, (model.config.start_id,), targets=target)
  ((output,),) = run(engine, [request])
  (total,), (count,) = model.score([list(ids)], [list(target)])
  assert output.ids == list(target) and output.reason == 'stop'
  assert len(output.log_probabilities) == count == 4
  np.testing.assert_allclose(output.score, total, atol=1e-4)


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
