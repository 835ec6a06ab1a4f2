"""Nothing that a client sends to any path is the server's fault."""

import json

import hypothesis
import pytest
from hypothesis import strategies

from atm.serve import request_schema
from atm.serve.app import create_app
from atm.serve.service import Service
from serve.fake_engine import FakeEngine

BODIES = {
  '/v1/completions': request_schema.CompletionRequest,
  '/v1/chat/completions': request_schema.ChatRequest,
  '/v1/translate': request_schema.TranslationRequest,
  '/v1/score': request_schema.ScoreRequest,
  '/tokenize': request_schema.TokenizeRequest,
  '/detokenize': request_schema.DetokenizeRequest,
}
RIGHT = {
  'prompt': 'a', 'messages': [{'role': 'user', 'content': 'a'}], 'text': 'a',
  'target': 'de', 'inputs': 'a', 'targets': 'b', 'tokens': [5], 'n': 2,
  'temperature': 1, 'stop': ['a'], 'seed': 1, 'prefix': 'a', 'best_of': 2,
  'use_beam_search': True, 'stream': True, 'logprobs': 2, 'top_logprobs': 1,
  'mode': 'denoise', 'max_tokens': 5, 'truncate': 'end', 'echo': True,
  'shots': [['a', 'b']], 'stream_options': {'include_usage': True},
}  # fmt: skip
ODD = strategies.sampled_from([
  None, True, 0, -1, 1, 2, 2**31, 2**63, -(2**70), 10**400, 1e308, 0.5, '',
  'a', '\ud800', '\0', 'a' * 3000, [], [[]], [0], [5, -1], ['a', None], {},
  {'type': 'text'}, [{'role': 'user', 'content': '\ud800'}], [[5], [6]],
  [['a', '\udfff']], '<br>', 'clm', 'never', [2**40], '\u202e', ['\ud800'],
])  # fmt: skip
JSON = strategies.recursive(
  ODD
  | strategies.integers()
  | strategies.floats()
  | strategies.text(max_size=9),
  lambda x: (
    strategies.lists(x, max_size=3)
    | strategies.dictionaries(strategies.text(max_size=5), x, max_size=3)
  ),
  max_leaves=6,
)


@pytest.fixture(scope='module')
def client(byte_model):
  from starlette.testclient import TestClient

  service = Service(byte_model, FakeEngine(byte_model), 'tiny', phase='ready')
  return TestClient(create_app(service))  # raises what the server would


def check_answer(path, answer, sent) -> None:
  """Checks that an answer is one, or an error in OpenAI's form."""
  assert answer.status_code in (200, 400, 404), (path, sent, answer.text)
  if answer.headers['content-type'].startswith('text/event-stream'):
    assert answer.text.endswith('data: [DONE]\n\n'), (path, sent)
    assert '"error"' not in answer.text, (path, sent, answer.text)
    return
  body = answer.json()
  if answer.status_code != 200:
    assert set(body) == {'error'}, (path, sent)
    assert set(body['error']) == {'message', 'type', 'param', 'code'}
    message = body['error']['message']
    assert message and '\n' not in message and len(message) < 1001
    assert 'Traceback' not in message


@pytest.mark.parametrize('path', BODIES)
@hypothesis.settings(
  max_examples=25,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=strategies.data())
def test_any_json_is_answered_or_refused(client, path, data):
  fields = BODIES[path].model_fields
  body = {name: RIGHT[name] for name in fields if name in RIGHT}
  for name in data.draw(strategies.sets(strategies.sampled_from([*body]))):
    if not fields[name].is_required():
      del body[name]
  names = strategies.sampled_from([*fields, 'other'])
  body |= data.draw(strategies.dictionaries(names, JSON, max_size=3))
  sent = json.dumps(body)
  answer = client.post(path, content=sent)
  check_answer(path, answer, sent)


@pytest.mark.parametrize('few', [4, pytest.param(99, marks=pytest.mark.slow)])
@pytest.mark.parametrize('path', BODIES)
def test_each_field_may_have_any_odd_value(client, path, few):
  fields = BODIES[path].model_fields
  right = {
    name: RIGHT[name]
    for name, field in fields.items()
    if field.is_required() or name == 'prompt'
  }
  assert client.post(path, json=right).status_code == 200
  for i, name in enumerate(fields):
    odd = ODD.elements[i * few % len(ODD.elements) :]
    for value in (odd if few == 4 else ODD.elements)[:few]:
      sent = json.dumps({**right, name: value})
      check_answer(path, client.post(path, content=sent), sent)


@pytest.mark.parametrize('path', BODIES)
def test_each_path_is_documented(client, path):
  schema = client.get('/openapi.json').json()
  about = schema['paths'][path]['post']
  name = about['requestBody']['content']['application/json']['schema']['$ref']
  assert name.endswith(BODIES[path].__name__)
  assert '200' in about['responses'] and '4XX' in about['responses']
