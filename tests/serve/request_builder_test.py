"""Requests hold what a model's own calls would read."""

from atm.inference import sampling
from atm.serve.request_builder import build_requests, build_score_requests

from small_models import untrained


def test_a_request_has_the_settings_and_ids_of_its_input(words):
  model = untrained(words)
  first, second = build_requests(
    model, ['All human', 'beings'], config=sampling.Config(seed=5),
    numbers=[7, 8], banned=['born'],
  )  # fmt: skip
  assert list(first.ids) == model.ids(['All human'])[0]
  assert first.prefix == (model.config.start_id,) and first.config.seed == 5
  assert (first.number, second.number) == (7, 8)
  assert tuple(words.encode('born')) in second.banned


def test_a_target_that_is_partly_given_begins_with_a_prefix(words):
  model = untrained(words)
  (request,) = build_score_requests(model, ['All'], ['human beings'], [2])
  labels = model.target_ids(['human beings'])[0]
  assert request.prefix == (model.config.start_id, *labels[:2])
  assert request.targets == tuple(labels[2:])
