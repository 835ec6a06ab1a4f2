"""Which settings a request's fields, and the absence of others, become."""

import dataclasses

import pytest

from atm.serve.api_error import ApiError
from atm.serve.generation_settings import choose_settings
from atm.serve.request_limits import RequestLimits
from atm.serve.request_schema import CompletionRequest


@pytest.fixture
def choose(service):
  """Returns (config with the model's own settings, n) of a body."""

  def call(own=(), **body):
    defaults = service.model.generation_defaults
    defaults |= dict(own)
    try:
      body = CompletionRequest.model_validate({'prompt': 'a', **body})
      settings = choose_settings(service, body)
      own = {k: v for k, v in defaults.items() if k != 'banned'}
      return settings.config.with_defaults(own), settings.n
    finally:
      defaults.clear()

  return call


def test_a_temperature_that_is_not_given_is_1_or_the_models_own(choose):
  assert choose()[0].temperature == 1
  assert choose(temperature=0)[0].temperature == 0
  assert choose({'max_tokens': 9})[0].temperature == 0  # greedy, as it says
  assert choose({'temperature': 0.5})[0].temperature == 0.5
  assert choose({'temperature': 0.5}, temperature=0)[0].temperature == 0
  assert choose({'max_tokens': 9})[0].max_tokens == 9
  assert choose()[0].max_tokens == 64


def test_seeds_differ_where_none_is_given(choose):
  assert choose(seed=5)[0].seed == 5
  assert len({choose()[0].seed for _ in range(20)}) == 20


def test_beams_are_best_of_or_the_models_own(choose):
  beams = lambda *own, **body: choose(*own, **body)[0].beams
  assert beams(use_beam_search=True) == 4
  assert beams(use_beam_search=True, best_of=3, n=2) == 3
  assert beams(use_beam_search=True, n=5) == 5
  assert beams({'beams': 5}) == 5
  assert beams({'beams': 5}, use_beam_search=False) == 1
  assert beams({'beams': 5}, temperature=0.5) == 1
  assert beams({'beams': 5}, best_of=2) == 2
  config, n = choose({'beams': 5}, n=2)
  assert (config.beams, config.results, n) == (5, 2, 2)


def test_more_are_sampled_than_returned(choose):
  config, n = choose(n=2, best_of=5)
  assert (config.results, n) == (5, 2)


def test_ignoring_the_end_token_writes_all_that_max_tokens_allow(choose):
  assert choose(ignore_eos=True, max_tokens=9)[0].min_tokens == 9
  assert choose({'max_tokens': 7}, ignore_eos=True)[0].min_tokens == 7


def test_max_tokens_has_two_names_and_a_limit(choose, service):
  assert choose(max_completion_tokens=7)[0].max_tokens == 7
  assert choose(max_completion_tokens=7, max_tokens=7)[0].max_tokens == 7
  with pytest.raises(ApiError, match='max_tokens = 6'):
    choose(max_completion_tokens=7, max_tokens=6)
  service.limits = RequestLimits(tokens=10)
  assert choose()[0].max_tokens == 10
  assert choose({'max_tokens': 5})[0].max_tokens == 5
  with pytest.raises(ApiError, match='max_tokens = 11: expected at most 10'):
    choose(max_tokens=11)


def test_bans_of_the_models_own_are_no_setting(choose):
  own = {'banned': [[5]], 'beams': 3, 'max_tokens': 6}
  assert choose(own)[0].beams == 3
  assert choose(own, ignore_eos=True)[0].min_tokens == 6
  # With no setting of its own the model is sampled as OpenAI's are.
  assert choose({'banned': [[5]]})[0].temperature == 1


def test_outputs_are_as_many_as_the_limits_allow(choose):
  assert choose(n=1, best_of=1)[1] == 1
  assert choose(n=16)[1] == 16
  for wrong in (dict(n=0), dict(n=17), dict(best_of=17), dict(best_of=0)):
    with pytest.raises(ApiError, match='from 1 to 16'):
      choose(**wrong)


def test_beams_are_not_sampled(choose, service):
  with pytest.raises(ApiError, match='expected 0') as caught:
    choose(use_beam_search=True, temperature=0.5)
  assert caught.value.param == 'temperature'
  assert choose(use_beam_search=True, temperature=0)[0].beams == 4
  sizes = service.engine.sizes
  for most, beams in ((2, 2), (9, 4)):
    service.engine.sizes = dataclasses.replace(sizes, beams=most)
    assert choose(use_beam_search=True)[0].beams == beams
