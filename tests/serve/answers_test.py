"""Answers end well, or by an event that says why they did not."""

import json

from starlette.testclient import TestClient

from atm.serve import engine_run
from atm.serve.access_log import AccessLog
from atm.serve.answers import encode_error
from atm.serve.api_error import ApiError
from atm.serve.app import create_app
from atm.serve.metrics import Metrics
from atm.serve.request_limits import RequestLimits

BODY = dict(prompt='a', temperature=0, ignore_eos=True, max_tokens=40)


def post(client, **body):
  return client.post('/v1/completions', json={**BODY, **body})


def test_an_error_in_mid_stream_is_an_event(client, service):
  service.engine.seconds = 0.02
  whole = post(client, stream=True).text
  deliver = service.engine.submit

  def submit(requests, tell):
    def fail(index, update):
      if service.engine.error is None and update.tokens:
        service.engine.error = 'the device is lost'
      tell(index, update)

    return deliver(requests, fail)

  service.engine.submit = submit
  response = post(client, stream=True)
  assert response.status_code == 200
  first, *_, error, done, _ = response.text.split('\n\n')
  assert json.loads(first.removeprefix('data: '))['choices'][0]['text'] in whole
  error = json.loads(error.removeprefix('data: '))['error']
  assert 'the device is lost' in error['message'] and done == 'data: [DONE]'
  assert post(client).status_code == 500


def test_the_limit_of_seconds_ends_outputs_as_they_are(client, service):
  service.engine.seconds = 0.02
  service.limits = RequestLimits(seconds=0.1)
  (choice,) = post(client).json()['choices']
  assert choice['finish_reason'] == 'timeout' and choice['text']
  assert '"finish_reason":"timeout"' in post(client, stream=True).text
  service.limits = RequestLimits(seconds=0.001)
  response = post(client)
  assert response.status_code == 503 and response.headers['retry-after']
  assert response.json()['error']['code'] == 'timeout'


def test_events_may_have_the_usage_so_far(client):
  options = dict(include_usage=True, continuous_usage_stats=True)
  text = post(client, stream=True, stream_options=options).text
  events = [
    json.loads(x.removeprefix('data: ')) for x in text.split('\n\n')[:-2]
  ]
  counts = [x['usage']['completion_tokens'] for x in events]
  assert counts == sorted(counts) and counts[-1] == 40 and counts[0] < 40


def test_the_event_of_an_error_has_its_form():
  event, done, end = encode_error(ApiError(500, 'x')).decode().split('\n\n')
  assert json.loads(event.removeprefix('data: '))['error']['message'] == 'x'
  assert (done, end) == ('data: [DONE]', '')


def test_an_answer_is_called_by_its_requests_id(service):
  log = AccessLog(create_app(service), Metrics('tiny'), lambda event: None)
  answer = TestClient(log).post(
    '/v1/completions', json=BODY, headers={'x-request-id': 'mine-1'}
  )
  assert answer.json()['id'] == 'cmpl-mine-1'
  assert answer.headers['x-request-id'] == 'mine-1'


def test_the_access_log_is_told_what_was_done(service):
  events = []
  client = TestClient(
    AccessLog(create_app(service), Metrics('tiny'), events.append)
  )
  for stream in (False, True):
    post(client, stream=stream)
    assert events[-1]['completion_tokens'] == 40
    assert events[-1]['finish_reason'] == 'length'
    assert events[-1]['prompt_tokens'] > 0


def test_a_stream_that_waits_long_sends_comments(client, service, monkeypatch):
  """Which clients of server-sent events pass over."""
  monkeypatch.setattr(engine_run, 'QUIET_SECONDS', 0.02)
  service.engine.seconds = 0.1
  text = post(client, stream=True, max_tokens=2).text
  assert text.startswith(': waiting\n\n') and text.endswith('[DONE]\n\n')
  assert post(client, max_tokens=2).status_code == 200
