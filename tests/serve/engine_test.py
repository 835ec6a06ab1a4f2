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


def draw_config(draws) -> sampling.Config:
  often = lambda value, default: value if draws.random() < 0.4 else default
  return sampling.Config(
    max_tokens=int(draws.integers(1, 20)),
    min_tokens=often(int(draws.integers(6)), 0),
    temperature=often(1.3, 0.7),
    top_k=often(9, 0),
    top_p=often(0.8, 1.0),
    min_p=often(0.02, 0.0),
    repetition_penalty=often(1.3, 1.0),
    seed=int(draws.integers(100)),
    no_repeat_ngram_size=often(2, 0),
    results=int(draws.integers(1, 4)),
  )


def test_sampled_requests_with_settings_of_their_own(model, engine):
  draws = np.random.default_rng(1)
  requests = [
    GenerationRequest(
      tuple(draws.integers(3, 96, draws.integers(1, 48)).tolist()),
      (model.config.start_id, *draws.integers(3, 96, i % 3).tolist()),
      draw_config(draws),
      number=i,
    )
    for i in range(4)
  ]
  for request, outputs in zip(requests, run(engine, requests)):
    (alone,) = model.complete(
      [list(request.ids)], config=request.config, numbers=[request.number],
      prefixes=[list(request.prefix[1:])],
    )  # fmt: skip
    assert [x.ids for x in outputs] == [x.ids for x in alone]


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
