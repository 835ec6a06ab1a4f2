"""Reads and checks the JSON of a request's body; any bytes may come."""

import asyncio
import json
from typing import TypeVar

import pydantic
from starlette.requests import Request

from atm.messages import one_line, quote
from atm.serve.api_error import ApiError, describe_invalid

_MOST_DEPTH = 32
_READ_SECONDS = 60  # a client that sends more slowly holds a connection
# As `curl -d` says where it is not told otherwise.
_CURL_TYPE = 'application/x-www-form-urlencoded'

_Body = TypeVar('_Body', bound=pydantic.BaseModel)


async def read_body(request: Request, kind: type[_Body], most: int) -> _Body:
  """Returns a request's body as a pydantic model.

  Args:
    request: nothing of its body was read yet.
    kind: the model.
    most: bytes.

  Raises:
    ApiError: 400, 408, 413 or 415; a wrong field is named.
    ClientDisconnect: the client went away.
  """
  check_content_type(request)
  content = parse_body(await _read_bytes(request, most))
  try:
    return kind.model_validate(content)
  except pydantic.ValidationError as e:
    raise describe_invalid(e, kind) from e


def check_content_type(request: Request) -> None:
  """Raises ApiError 415 unless a body claims to be plain JSON, or nothing.

  What `curl -d` claims is taken, too, but not from a page of another site: its
  browser asks for no permission before it sends a form.
  """
  coding = request.headers.get('content-encoding', 'identity')
  if coding.lower() != 'identity':
    raise ApiError(
      415, f'Content-Encoding = {quote(coding)}: expected none, or identity'
    )
  given = request.headers.get('content-type', '')
  media = given.partition(';')[0].strip().lower()
  if media == 'application/json' or media.endswith('+json'):
    return
  if media in ('', _CURL_TYPE) and 'origin' not in request.headers:
    return
  raise ApiError(
    415, f'Content-Type = {quote(given)}: expected application/json'
  )


async def _read_bytes(request: Request, most: int) -> bytes:
  """Returns the whole body, or raises ApiError as soon as it is too long."""
  too_long = ApiError(
    413, f'the body has more than {most:,} bytes, which is the limit',
    headers={'connection': 'close'},
  )  # fmt: skip
  length = request.headers.get('content-length', '0')
  if length.isdecimal() and int(length[:20]) > most:
    raise too_long
  parts, size = [], 0
  try:
    async with asyncio.timeout(_READ_SECONDS):
      async for part in request.stream():
        size += len(part)
        if size > most:
          raise too_long
        parts.append(part)
  except TimeoutError:
    raise ApiError(
      408, f'the body did not come within {_READ_SECONDS} seconds',
      headers={'connection': 'close'},
    ) from None  # fmt: skip
  return b''.join(parts)


def parse_body(content: bytes) -> dict:
  """Returns the object that bytes are the JSON of.

  Raises ApiError 400 where they are none, are nested too deeply, have a name
  twice in an object, or a number that JSON has not.
  """
  try:
    parsed = json.loads(
      content.decode('utf-8-sig'),
      object_pairs_hook=_build_object,
      parse_constant=_refuse_constant,
    )
  except UnicodeDecodeError as e:
    raise ApiError(
      400, f'the body is no UTF-8: byte {e.start:,} is {content[e.start]:#04x}'
    ) from e
  except RecursionError:
    raise _too_deep() from None
  except ValueError as e:  # also of a number of 5,000 digits
    raise ApiError(400, f'the body is no JSON: {one_line(e)}') from e
  if not isinstance(parsed, dict):
    kind = type(parsed).__name__
    raise ApiError(400, f'the body is a {kind}: expected a JSON object')
  _check_depth(parsed)
  return parsed


def _build_object(pairs: list[tuple[str, object]]) -> dict:
  """Returns an object's fields; raises ValueError where one is twice."""
  fields = dict(pairs)
  if len(fields) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f'{quote(twice)} is there twice')
  return fields


def _refuse_constant(name: str):
  """Raises ValueError for NaN and Infinity, which Python's JSON has."""
  raise ValueError(f'{name} is no number of JSON')


def _check_depth(parsed) -> None:
  """Raises ApiError where lists and objects are nested too deeply."""
  level = [parsed]
  for _ in range(_MOST_DEPTH):
    level = [
      inner
      for outer in level
      for inner in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(inner, dict | list)
    ]
    if not level:
      return
  raise _too_deep()


def _too_deep() -> ApiError:
  return ApiError(
    400, f'the body is nested deeper than {_MOST_DEPTH} lists and objects'
  )
