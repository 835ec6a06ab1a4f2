"""The HTTP application: paths, who may ask, and the form of errors."""

import contextlib
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
from atm.serve.access import check_key, check_model
from atm.serve.answers import encode_json
from atm.serve.api_error import ApiError
from atm.serve.api_page import API_POLICY, render_schema
from atm.serve.engine_run import ClientGoneError
from atm.serve.model_paths import add_model_paths, describe_path
from atm.serve.page import page, page_policy
from atm.serve.service import Service

# Declared here, not by FastAPI, which would answer 422 to a wrong one.
_NAME = {
  'name': 'name', 'in': 'path', 'required': True, 'schema': {'type': 'string'},
  'description': 'Of the model.',
}  # fmt: skip
_CLIENT_GONE = 499  # as nginx calls it; nobody reads it


def create_app(service: Service) -> fastapi.FastAPI:
  """Returns the ASGI application that answers for a service."""
  app = fastapi.FastAPI(
    title='atm serve', version=atm.__version__, docs_url=None, redoc_url=None,
    openapi_url=None, description=__doc__, redirect_slashes=False,
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
  _add_pages(app)
  _add_probes(app, service)
  _add_models(app, service)
  add_model_paths(app, service)
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


# --- Paths


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
    kinds.append((response_schema.ChatChunk, 'serialization'))
    _, bodies = models_json_schema(
      kinds, ref_template='#/components/schemas/{model}'
    )
    components = schema.setdefault('components', {})
    components['schemas'] = {**components.get('schemas', {}), **bodies['$defs']}
    components['securitySchemes'] = {
      'ApiKey': {'type': 'http', 'scheme': 'bearer'}
    }
    schema['security'] = [{}, {'ApiKey': []}]
    app.openapi_schema = schema
  return app.openapi_schema


def _add_pages(app: fastapi.FastAPI) -> None:
  """Adds the page to try a model on, and that of all paths."""

  @app.get('/', include_in_schema=False)
  async def index() -> Response:
    policy = {'content-security-policy': page_policy()}
    return Response(page(), media_type='text/html', headers=policy)

  @app.get('/docs', include_in_schema=False)
  async def docs() -> Response:
    policy = {'content-security-policy': API_POLICY}
    text = render_schema(app.openapi())
    return Response(text, media_type='text/html', headers=policy)


def _add_probes(app: fastapi.FastAPI, service: Service) -> None:
  """Adds what watches the server; balancers probe by HEAD, too."""

  @app.head('/live', include_in_schema=False)
  @app.get('/live', tags=['Server'])
  async def live() -> Response:
    """Answers 200 as long as the process runs."""
    return Response(b'ok\n', media_type='text/plain')

  @app.head('/health', include_in_schema=False)
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

  @app.get(
    '/v1/models', tags=['Models'], **describe_path(response_schema.ModelList)
  )
  async def models(request: Request) -> Response:
    """Lists the model that is served."""
    check_key(service, request)
    return _json(response_schema.ModelList(data=[card()]))

  @app.get(
    '/v1/models/{name:path}',
    tags=['Models'],
    openapi_extra={'parameters': [_NAME]},
    **describe_path(response_schema.ModelCard),
  )
  async def model(request: Request) -> Response:
    """Describes a model."""
    check_key(service, request)
    check_model(service, request.path_params['name'])
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
