"""Errors in the form of OpenAI's API, each with its HTTP status."""

import contextlib
import re
from collections.abc import Iterator, Mapping

import pydantic

from atm.messages import did_you_mean, one_line, quote

_TYPES = {401: 'authentication_error', 429: 'rate_limit_error'}


class ApiError(Exception):
  """An error that a client is told.

  Attributes:
    status: of HTTP.
    message: one line.
    param: the field that is wrong, or None.
    code: a word for programs, or None.
    headers: of the response.
  """

  def __init__(
    self, status: int, message: str, param: str | None = None,
    code: str | None = None, headers: Mapping[str, str] | None = None,
  ):  # fmt: skip
    super().__init__(message)
    self.status, self.param, self.code = status, param, code
    self.message, self.headers = one_line(message, 1000), dict(headers or {})

  def body(self) -> dict:
    """Returns what the response holds."""
    kind = 'server_error' if self.status >= 500 else 'invalid_request_error'
    return {
      'error': {
        'message': self.message,
        'type': _TYPES.get(self.status, kind),
        'param': self.param,
        'code': self.code,
      }
    }


# Names of types stand among those of fields in pydantic's paths.
_FIELD = re.compile(r'(?!(str|bool|int|float|any|none)$)\w+')


@contextlib.contextmanager
def convert_errors(params: Mapping[str, str]) -> Iterator[None]:
  """Turns a ValueError inside into a 400 that names the request's field.

  Args:
    params: the first noun of an error's text, with ' #'
      where a number may follow -> the field.
  """
  try:
    yield
  except ValueError as e:
    text = str(e)
    word, number = re.match(r'(?:(?:a|the|\d+) )?(\w*)( \d)?', text).groups()
    param = params.get(f'{word} #' if number else word, params.get(word))
    long = ' tokens: expected ' in text
    code = 'context_length_exceeded' if long else None
    raise ApiError(400, text, param, code) from e


def describe_invalid(
  error: pydantic.ValidationError, kind: type[pydantic.BaseModel]
) -> ApiError:
  """Returns the 400 for a body that is no `kind`; names the first field."""
  every = error.errors(include_url=False)
  same = [x for x in every if x['loc'][:1] == every[0]['loc'][:1]]
  # A field of several types has errors for each: the innermost says most.
  first = max(same, key=lambda x: len(_name_field(x['loc'])))
  param = str(first['loc'][0]) if first['loc'] else None
  name = _name_field(first['loc'])
  if first['type'] == 'extra_forbidden':
    near = ''
    if len(first['loc']) == 1:
      near = did_you_mean(name, kind.model_fields, every=True)
    return ApiError(400, f'no field {quote(name)}.{near}', param)
  if first['type'] == 'missing':
    return ApiError(400, f'{name} is missing', param)
  texts = [
    x['msg'].replace('Input should be', 'expected')
    for x in same
    if _name_field(x['loc']) == name
  ]
  text = ' or '.join(dict.fromkeys(texts)).replace('or expected', 'or')
  value = quote(first['input'])
  return ApiError(400, f'{name or "the body"} = {value}: {text}', param)


def _name_field(path: tuple[str | int, ...]) -> str:
  """Returns a field's name as in Python, without the types of a union."""
  names = [x for x in path if isinstance(x, int) or _FIELD.fullmatch(x)]
  return ''.join(
    f'[{x}]' if isinstance(x, int) else f'.{x}' for x in names
  ).strip('.')
