"""Any bytes are JSON, or are refused by a reason."""

import asyncio
import json

import hypothesis
import pytest
from hypothesis import strategies
from starlette.requests import ClientDisconnect, Request

from atm.serve import json_body
from atm.serve.api_error import ApiError
from atm.serve.json_body import parse_body
from atm.serve.request_schema import TokenizeRequest


@pytest.mark.parametrize(
  'content, text',
  [
    (b'', 'no JSON'),
    (b'{', 'no JSON'),
    (b'[1]', 'a list'),
    (b'"a"', 'a str'),
    (b'\xff{}', 'byte 0 is 0xff'),
    (b'{"a": NaN}', 'NaN is no number'),
    (b'{"a": -Infinity}', 'Infinity is no number'),
    (b'{"a": 1, "a": 2}', "'a' is there twice"),
    (b'{"a": {"b": 1, "b": 2}}', "'b' is there twice"),
    (b'{"a": ' + b'9' * 5000 + b'}', 'no JSON'),
    (b'{"a": ' + b'[' * 40 + b']' * 40 + b'}', 'nested deeper'),
    (b'{"a": ' * 200_000, 'nested deeper'),
    (b'[' * 200_000 + b']' * 200_000, 'nested deeper'),
    (b'{"a": "\n"}', 'no JSON'),
    (b'{} {}', 'no JSON'),
  ],
)
def test_what_is_no_object_is_refused(content, text):
  with pytest.raises(ApiError) as caught:
    parse_body(content)
  assert caught.value.status == 400 and text in caught.value.message


def test_objects_are_read_as_they_are():
  value = {'a': [1, 2.5, None, True, {'ü': '\ud800'}]}
  assert parse_body(json.dumps(value).encode()) == value
  assert parse_body(b'\xef\xbb\xbf{}') == {}  # as Windows' shells write it


@hypothesis.given(strategies.binary(max_size=60))
def test_no_bytes_raise_anything_else(content):
  for text in (content, b'{"a": ' + content + b'}'):
    try:
      assert isinstance(parse_body(text), dict)
    except ApiError as e:
      assert e.status == 400


def read(receive, most=99):
  """Returns what `read_body` makes of messages of ASGI."""
  scope = {'type': 'http', 'headers': [], 'method': 'POST', 'path': '/'}
  request = Request(scope, receive)
  return asyncio.run(json_body.read_body(request, TokenizeRequest, most))


def test_a_body_may_come_in_parts():
  parts = [b'{"prom', b'pt": "a"', b'}']

  async def receive():
    body = parts.pop(0)
    return {'type': 'http.request', 'body': body, 'more_body': bool(parts)}

  assert read(receive, most=15).prompt == 'a'  # exactly as many bytes
  parts = [b'{"prompt": 5}']
  with pytest.raises(ApiError, match='prompt = 5'):
    read(receive)


@pytest.mark.parametrize(
  'media, taken',
  [
    ('application/json', True), ('Application/JSON; charset=utf-8', True),
    ('application/a+json', True), ('text/json', False), ('+json/x', False),
  ],
)  # fmt: skip
def test_what_claims_to_be_json_is_taken(media, taken):
  headers = [(b'content-type', media.encode())]
  request = Request({'type': 'http', 'headers': headers})
  if taken:
    json_body.check_content_type(request)
  else:
    with pytest.raises(ApiError, match='application/json'):
      json_body.check_content_type(request)


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
  monkeypatch.setattr(json_body, '_READ_SECONDS', 0.02)

  async def receive():
    await asyncio.sleep(9)

  with pytest.raises(ApiError, match='0.02 seconds') as caught:
    read(receive)
  assert caught.value.status == 408
  assert caught.value.headers == {'connection': 'close'}


def test_a_body_without_end_is_not_kept():
  count = 0

  async def receive():
    nonlocal count
    count += 1
    return {'type': 'http.request', 'body': b' ' * 50, 'more_body': True}

  with pytest.raises(ApiError) as caught:
    read(receive)
  assert caught.value.status == 413 and count == 2


def test_a_client_may_leave_before_its_body_has_come():
  async def receive():
    return {'type': 'http.disconnect'}

  with pytest.raises(ClientDisconnect):
    read(receive)
