"""The HTTP application: paths, who may ask, and the form of errors."""

import asyncio
import contextlib
import hmac
import time

import fastapi
import pydantic
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

import atm
from atm.inference.prompts import MODES
from atm.messages import did_you_mean, quote
from atm.serve import request_schema, response_schema
from atm.serve.answers import answer_job, encode_json
from atm.serve.api_error import ApiError
from atm.serve.completions import CompletionForm, plan_completion
from atm.serve.engine_run import ClientGoneError
from atm.serve.json_body import read_body
from atm.serve.page import page, page_policy
from atm.serve.service import Service

_CLIENT_GONE = 499  # as nginx calls it; nobody reads it


def create_app(service: Service) -> fastapi.FastAPI:
  """Returns the ASGI application that answers for a service."""
  app = fastapi.FastAPI(
    title='atm serve', version=atm.__version__, docs_url=None, redoc_url=None,
    openapi_url=None, description=__doc__,
  )  # fmt: skip
  app.add_exception_handler(ApiError, _answer_error)
  app.add_exception_handler(HTTPException, _answer_http_error)
  for gone in (ClientGoneError, ClientDisconnect):
    app.add_exception_handler(gone, _answer_nobody)
  if service.allowed_origins:
    app.add_middleware(
      CORSMiddleware, allow_origins=service.allowed_origins,
      allow_methods=['GET', 'POST'], allow_headers=['*'],
      expose_headers=['retry-after', 'x-request-id'],
    )  # fmt: skip
  _add_page(app)
  _add_probes(app, service)
  _add_models(app, service)
  _add_completions(app, service)
  app.openapi = lambda: describe_paths(app)
  return app


# --- Errors


async def _answer_error(request: Request, error: ApiError) -> Response:
  return JSONResponse(error.body(), error.status, error.headers)


async def _answer_http_error(request: Request, error: HTTPException):
  """Returns the answer to an unknown path or method."""
  path, method = request.url.path, request.method
  message, headers = str(error.detail), error.headers
  if error.status_code == 404:
    known = [route.path for route in request.app.routes]
    near = did_you_mean(path, known, every=True)
    message = f'no path {quote(path)}.{near}'
  elif error.status_code == 405:
    allowed = (headers or {}).get('Allow', 'another method')
    message = f'{method[:20]} {path[:200]}: expected {allowed}'
  return await _answer_error(
    request, ApiError(error.status_code, message, headers=headers)
  )


async def _answer_nobody(request: Request, error: Exception) -> Response:
  return Response(status_code=_CLIENT_GONE)


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


# --- Paths


def _respond(kind: type[pydantic.BaseModel], about: str = '') -> dict:
  """Returns the arguments of a path that say what it answers."""
  error = {'model': response_schema.ErrorResponse, 'description': 'An error.'}
  return dict(
    response_model=None,
    responses={200: {'model': kind, 'description': about}, '4XX': error},
  )


def _read(kind: type[pydantic.BaseModel]) -> dict:
  """Returns the description of a body for a path's `openapi_extra`."""
  schema = {'$ref': f'#/components/schemas/{kind.__name__}'}
  content = {'application/json': {'schema': schema}}
  return {'requestBody': {'required': True, 'content': content}}


def describe_paths(app: fastapi.FastAPI) -> dict:
  """Returns the OpenAPI schema, with the bodies that paths read."""
  if app.openapi_schema is None:
    schema = get_openapi(
      title=app.title, version=app.version, description=app.description,
      routes=app.routes,
    )  # fmt: skip
    kinds = [
      (kind, 'validation')
      for kind in vars(request_schema).values()
      if isinstance(kind, type) and issubclass(kind, request_schema.Body)
    ]
    _, bodies = models_json_schema(
      kinds, ref_template='#/components/schemas/{model}'
    )
    components = schema.setdefault('components', {}).setdefault('schemas', {})
    components |= bodies['$defs']
    app.openapi_schema = schema
  return app.openapi_schema


def _add_page(app: fastapi.FastAPI) -> None:
  """Adds the page to try a model on."""

  @app.get('/', include_in_schema=False)
  async def index() -> Response:
    policy = {'content-security-policy': page_policy()}
    return Response(page(), media_type='text/html', headers=policy)


def _add_probes(app: fastapi.FastAPI, service: Service) -> None:
  """Adds what watches the server."""

  @app.get('/live', tags=['Server'])
  async def live() -> Response:
    """Answers 200 as long as the process runs."""
    return Response(b'ok\n', media_type='text/plain')

  @app.get('/health', tags=['Server'])
  async def health() -> Response:
    """Answers 200 where requests are taken, else 503."""
    service.check_ready()
    return Response(b'ok\n', media_type='text/plain')

  @app.get('/version', tags=['Server'])
  async def version() -> dict[str, str]:
    """Returns the version of atm."""
    return {'version': atm.__version__}

  @app.get('/openapi.json', include_in_schema=False)
  async def openapi() -> Response:
    return JSONResponse(app.openapi())

  if service.metrics is not None:

    @app.get('/metrics', tags=['Server'])
    async def metrics(request: Request) -> Response:
      """Returns metrics for Prometheus."""
      accept = request.headers.get('accept', '')
      content, media = service.metrics.format(accept)
      return Response(content, headers={'content-type': media})


def _add_models(app: fastapi.FastAPI, service: Service) -> None:
  """Adds what tells which model is served."""
  started = int(time.time())

  def card() -> response_schema.ModelCard:
    service.check_ready()
    model = service.model
    return response_schema.ModelCard(
      id=service.name, created=started, max_model_len=model.config.positions,
      languages=list(model.languages), modes=list_modes(model),
      defaults=dict(model.generation_defaults),
    )  # fmt: skip

  @app.get('/v1/models', tags=['Models'], **_respond(response_schema.ModelList))
  async def models(request: Request) -> Response:
    """Lists the model that is served."""
    check_key(service, request)
    return _json(response_schema.ModelList(data=[card()]))

  @app.get(
    '/v1/models/{name:path}',
    tags=['Models'],
    **_respond(response_schema.ModelCard),
  )
  async def model(request: Request, name: str) -> Response:
    """Describes a model."""
    check_key(service, request)
    check_model(service, name)
    return _json(card())


def list_modes(model) -> list[str]:
  """Returns the modes that a model was trained for."""
  known = []
  for mode in MODES:
    with contextlib.suppress(ValueError):
      known.append(model._framing.name_mode(mode))
  return known


def _json(answer: pydantic.BaseModel) -> Response:
  return Response(encode_json(answer), media_type='application/json')


def _add_completions(app: fastapi.FastAPI, service: Service) -> None:
  """Adds what generates."""

  @app.post(
    '/v1/completions',
    tags=['Generation'],
    openapi_extra=_read(request_schema.CompletionRequest),
    **_respond(response_schema.Completion),
  )
  async def completions(request: Request) -> Response:
    """Returns outputs of prompts: OpenAI's completions."""
    body = await _accept(service, request, request_schema.CompletionRequest)
    job = await asyncio.to_thread(plan_completion, service, body)
    form = CompletionForm(service, body, job, service.token_texts)
    return await answer_job(service, request, body, job, form)


async def _accept(service: Service, request: Request, kind):
  """Returns the body of a request that may ask, of a server that is ready."""
  check_key(service, request)
  service.check_ready()
  body = await read_body(request, kind, service.limits.body_bytes)
  check_model(service, body.model)
  return body
