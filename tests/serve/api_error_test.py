"""Errors have OpenAI's form, and name the field."""

import pydantic
import pytest

from atm.serve.api_error import ApiError, convert_errors, describe_invalid


class Inner(pydantic.BaseModel, extra='forbid'):
  size: int = 1


class Outer(pydantic.BaseModel, extra='forbid', strict=True):
  inner: Inner | None = None
  rows: list[int] | list[str] = []
  flag: bool | None = None


@pytest.mark.parametrize(
  'body, param, message',
  [
    ({'flag': 3}, 'flag', 'flag = 3: expected a valid boolean'),
    ({'rows': [1, 'a']}, 'rows', "rows[1] = 'a': expected a valid integer"),
    ({'inner': {'size': 'x'}}, 'inner', "inner.size = 'x'"),
    ({'inner': {'sise': 1}}, 'inner', "no field 'inner.sise'"),
    ({'flagg': 1}, 'flagg', "no field 'flagg'. Did you mean 'flag'?"),
  ],
)
def test_the_first_wrong_field_is_named(body, param, message):
  with pytest.raises(pydantic.ValidationError) as caught:
    Outer.model_validate(body)
  error = describe_invalid(caught.value, Outer)
  assert (error.status, error.param) == (400, param)
  assert error.message.startswith(message)


@pytest.mark.parametrize(
  'text, param, code',
  [
    ('input 0 has 9 tokens: expected 1', 'prompt', 'context_length_exceeded'),
    ('the input has 9 tokens: expected 1', 'prompt', 'context_length_exceeded'),
    ('top_p = 3: expected less', 'top_p', None),
    ('something else', None, None),
  ],
)
def test_a_value_error_becomes_a_400_of_its_field(text, param, code):
  with pytest.raises(ApiError) as caught:
    with convert_errors({'input': 'prompt', 'top_p': 'top_p'}):
      raise ValueError(text)
  assert caught.value.body()['error'] == {
    'message': text, 'type': 'invalid_request_error', 'param': param,
    'code': code,
  }  # fmt: skip


@pytest.mark.parametrize(
  'status, kind',
  [
    (400, 'invalid_request_error'), (401, 'authentication_error'),
    (404, 'invalid_request_error'), (429, 'rate_limit_error'),
    (500, 'server_error'), (503, 'server_error'),
  ],
)  # fmt: skip
def test_the_kind_of_an_error_is_that_of_its_status(status, kind):
  assert ApiError(status, 'a\nb').body()['error']['type'] == kind
  assert ApiError(status, 'a\nb').message == 'a b'
