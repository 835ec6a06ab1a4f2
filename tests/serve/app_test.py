"""Paths, keys, probes, and the form of errors."""

import pytest

import atm
from atm.serve.app import create_app
from atm.serve.metrics import Metrics
from atm.serve.request_limits import RequestLimits

BODY = {'prompt': 'a', 'temperature': 0}
PATH = '/v1/completions'


def test_probes_tell_the_phase(client, service):
  assert client.get('/live').status_code == 200
  assert client.get('/health').status_code == 200
  assert client.head('/health').status_code == 200
  assert client.get('/version').json() == {'version': atm.__version__}
  for phase in ('starting', 'draining'):
    service.phase = phase
    for answer in (client.get('/health'), client.post(PATH, json=BODY)):
      assert answer.status_code == 503 and answer.headers['retry-after']
      assert answer.json()['error']['code'] == phase
    assert client.get('/live').status_code == 200


def test_the_model_is_described(client, service):
  (card,) = client.get('/v1/models').json()['data']
  assert card['id'] == 'tiny' and card['max_model_len'] == 64
  assert card['modes'] == ['clm', 'denoise'] and card['languages'] == []
  assert client.get('/v1/models/tiny').json() == card
  error = client.get('/v1/models/org/tinny').json()['error']
  assert error['code'] == 'model_not_found' and "'tiny'" in error['message']


def test_metrics_are_those_of_the_service(service):
  from starlette.testclient import TestClient

  service.metrics = Metrics('tiny')
  answer = TestClient(create_app(service)).get('/metrics')
  assert answer.status_code == 200 and 'atm:' in answer.text
  assert answer.headers['content-type'].startswith('text/plain')


def test_the_page_has_its_policy(client):
  answer = client.get('/')
  assert answer.headers['content-type'].startswith('text/html')
  assert "default-src 'none'" in answer.headers['content-security-policy']


@pytest.mark.parametrize(
  'headers, status',
  [
    ({}, 401),
    ({'authorization': 'Bearer wrong'}, 401),
    ({'authorization': 'Basic sécret'.encode('latin-1')}, 401),
    ({'authorization': b'Bearer s\xffcret'}, 401),
    ({'authorization': 'Bearer sécret'.encode()}, 200),
    ({'authorization': 'bearer  sécret '.encode()}, 200),
  ],
)
def test_a_key_is_asked_for_before_all_else(client, service, headers, status):
  service.api_key = 'sécret'
  answer = client.post(PATH, json=BODY, headers=headers)
  assert answer.status_code == status
  if status == 401:
    assert answer.json()['error']['code'] == 'invalid_api_key'
    service.phase = 'draining'
    assert client.post(PATH, json=BODY, headers=headers).status_code == 401
  assert client.get('/v1/models', headers=headers).status_code in (status, 503)
  assert client.get('/live').status_code == 200


def test_unknown_paths_and_methods_are_told(client):
  answer = client.get('/v1/completion')
  assert answer.status_code == 404
  assert "Did you mean '/v1/completions'?" in answer.json()['error']['message']
  assert client.get('/health/').status_code == 404  # no redirection
  answer = client.get(PATH)
  assert answer.status_code == 405 and answer.headers['allow'] == 'POST'
  assert answer.json()['error']['message'].endswith('expected POST')


def test_bodies_have_a_type_and_a_size(client, service):
  send = lambda content, **headers: client.post(
    PATH, content=content, headers=headers
  )
  body = b'{"prompt": "a"}'
  assert send(body).status_code == 200
  form = {'content-type': 'application/x-www-form-urlencoded'}  # curl -d
  assert send(body, **form).status_code == 200
  for headers in (
    {**form, 'origin': 'http://elsewhere'},
    {'content-type': 'text/plain'},
    {'content-encoding': 'gzip'},
    {'content-type': 'multipart/form-data; boundary=x'},
  ):
    assert send(body, **headers).status_code == 415
  service.limits = RequestLimits(body_bytes=20)
  assert send(body).status_code == 200
  for content in (b' ' * 21, iter([b' ' * 11] * 2)):  # and of unknown length
    answer = send(content)
    assert answer.status_code == 413 and '20 bytes' in answer.text
  assert send(body, **{'content-length': '9' * 99}).status_code in (400, 413)


def test_other_origins_are_allowed_where_it_is_said_so(service, client):
  from starlette.testclient import TestClient

  ask = {'origin': 'http://a', 'access-control-request-method': 'POST'}
  assert 'access-control-allow-origin' not in (
    client.get('/v1/models', headers=ask).headers
  )
  service.allowed_origins = ('http://a',)
  client = TestClient(create_app(service))
  answer = client.options(PATH, headers=ask)
  assert answer.headers['access-control-allow-origin'] == 'http://a'
  other = client.options(PATH, headers={**ask, 'origin': 'http://b'})
  assert 'access-control-allow-origin' not in other.headers


def test_the_openapi_schema_is_whole(client):
  schema = client.get('/openapi.json').json()

  def check(node):
    if isinstance(node, dict):
      if '$ref' in node:
        at = schema
        for name in node['$ref'].removeprefix('#/').split('/'):
          at = at[name]
      for inner in node.values():
        check(inner)
    elif isinstance(node, list):
      for inner in node:
        check(inner)

  check(schema)
  for path, methods in schema['paths'].items():
    for method, about in methods.items():
      assert about['description'], path
      if method == 'post':
        assert about['requestBody']['content']['application/json']['schema']
