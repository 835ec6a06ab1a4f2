"""Requests of the engine and what it answers."""

from atm.serve.generation_request import GenerationRequest, RequestUpdate


def test_a_request_is_greedy_and_an_update_says_nothing_by_default():
  request = GenerationRequest((5, 6), (2,))
  assert request.config.temperature == 0 and request.config.results == 1
  assert request.banned == () and request.stop_table is None
  update = RequestUpdate()
  assert update.outputs is None and not update.tokens and not update.ended
