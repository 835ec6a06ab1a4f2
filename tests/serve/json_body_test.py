"""Any bytes are JSON, or are refused by a reason."""

import json

import hypothesis
import pytest
from hypothesis import strategies

from atm.serve.api_error import ApiError
from atm.serve.json_body import parse_body


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
