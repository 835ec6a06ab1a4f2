"""Bodies become requests of the engine."""

import pytest

from atm.inference.few_shot import AnswerPlan
from atm.serve.api_error import ApiError
from atm.serve.job_planning import check_count_of, plan_job
from atm.serve.request_schema import CompletionRequest


def test_every_prompt_has_a_request_with_the_bodys_settings(service):
  body = CompletionRequest(
    prompt='', stop='one', prefix='a', bad_words=['no'], max_tokens=5, n=2
  )
  plan = AnswerPlan([[5], [6, 7]], stop=('two',))
  job = plan_job(service, body, plan, 'prompt', top=3)
  assert [x.ids for x in job.requests] == [(5,), (6, 7)]
  assert [x.number for x in job.requests] == [0, 1]
  assert job.stop == ('one', 'two') and job.n == 2 and job.with_offsets
  for request in job.requests:
    assert request.top == 3 and request.seconds == service.limits.seconds
    assert request.config.max_tokens == 5 and request.config.results == 2
    assert request.stop_table is not None and request.banned
    assert len(request.prefix) > 1


def test_lists_have_a_length(service):
  for count in (0, 129):
    with pytest.raises(ApiError, match='expected 1 to 128') as caught:
      check_count_of(service, 'text', ['a'] * count)
    assert caught.value.param == 'text'
