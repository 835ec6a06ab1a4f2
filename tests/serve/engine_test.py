"""The engine gives each request what the model gives it alone."""

import threading

import jax
import numpy as np
import pytest

from atm.inference import api, sampling
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.serve.engine import Engine, EngineSizes
from atm.serve.generation_request import GenerationRequest

from conftest import tiny
from small_models import init


@pytest.fixture(scope='module')
def model() -> api.Model:
  config = tiny(decoder_layers=1, encoder_layers=1)
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return api.Model(config, init(config), None, mesh, Rules(), 7)


@pytest.fixture(scope='module')
def engine(model):
  engine = Engine(model, EngineSizes(slots=4), say=lambda text: None)
  engine.start()
  yield engine
  engine.close()


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


def test_requests_of_other_lengths_get_what_they_would_alone(model, engine):
  draws = np.random.default_rng(0)
  requests = [
    GenerationRequest(
      tuple(draws.integers(3, 96, draws.integers(1, 48)).tolist()),
      (model.config.start_id,),
      sampling.Config(max_tokens=int(draws.integers(1, 40))),
    )
    for _ in range(12)
  ]
  for request, (output,) in zip(requests, run(engine, requests)):
    alone = model.complete([list(request.ids)], config=request.config)[0][0]
    assert output.ids == alone.ids
    np.testing.assert_allclose(
      output.log_probabilities, alone.log_probabilities, atol=1e-4
    )
  assert engine.stats().used_slots == 0


def test_complete_gives_what_the_model_does(model, engine):
  inputs = [[5, 6, 7], [8] * 40, [9, 10]]
  options = dict(
    config=sampling.Config(max_tokens=6), prefixes=[[4], [], [3, 4]]
  )
  expected = model.complete(inputs, **options)
  for given, ours in zip(expected, engine.complete(inputs, **options)):
    assert [x.ids for x in ours] == [x.ids for x in given]
