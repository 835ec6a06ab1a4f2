"""Who may ask, and what for: keys, names of models, readiness."""

import hmac
from typing import TypeVar

from starlette.requests import Request

from atm.messages import did_you_mean, quote
from atm.serve.api_error import ApiError
from atm.serve.json_body import read_body
from atm.serve.request_schema import ModelBody
from atm.serve.service import Service

_Kind = TypeVar('_Kind', bound=ModelBody)


async def accept_body(
  service: Service, request: Request, kind: type[_Kind]
) -> _Kind:
  """Returns the body of a request that may ask, of a server that is ready.

  Raises ApiError for all others, in this order: 401, 503, see `read_body`, 404.
  """
  check_key(service, request)
  service.check_ready()
  body = await read_body(request, kind, service.limits.body_bytes)
  check_model(service, body.model)
  return body


def check_key(service: Service, request: Request) -> None:
  """Raises ApiError 401 unless a request bears the key, if there is one."""
  if service.api_key is None:
    return
  given = b''
  for name, value in request.scope['headers']:
    if name == b'authorization':
      scheme, _, given = value.partition(b' ')
      given = given.strip() if scheme.lower() == b'bearer' else b''
  if not hmac.compare_digest(given, service.api_key.encode()):
    missing = 'a wrong API key' if given else 'no API key'
    raise ApiError(
      401, f'{missing}: expected the header Authorization: Bearer KEY',
      code='invalid_api_key', headers={'www-authenticate': 'Bearer'},
    )  # fmt: skip


def check_model(service: Service, name: str | None) -> None:
  """Raises ApiError 404 for the name of a model that is not served."""
  if name is not None and name != service.name:
    near = did_you_mean(name, [service.name], every=True)
    raise ApiError(
      404, f'no model {quote(name)}.{near}', 'model', 'model_not_found'
    )
