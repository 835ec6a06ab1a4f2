"""The paths that ask the model: generation, scores, tokens."""

import asyncio

import fastapi
import pydantic
from starlette.requests import Request
from starlette.responses import Response

from atm.serve import request_schema, response_schema
from atm.serve.access import accept_body
from atm.serve.answers import answer_job, collect_answer, encode_json
from atm.serve.chat_completions import ChatForm, plan_chat
from atm.serve.completions import CompletionForm, plan_completion
from atm.serve.scores import describe_scores, plan_scores
from atm.serve.service import Service
from atm.serve.tokens import detokenize_ids, tokenize_text
from atm.serve.translations import TranslationForm, plan_translations


def describe_path(
  answer: type[pydantic.BaseModel],
  body: type[pydantic.BaseModel] | None = None,
  event: type[pydantic.BaseModel] | None = None,
) -> dict:
  """Returns the arguments of a path that say what it reads and answers.

  Args:
    answer: whole, as JSON.
    body: of the request; None: it has none.
    event: of a stream; None: there are no streams.
  """
  error = {'model': response_schema.ErrorResponse, 'description': 'An error.'}
  name = lambda kind: {
    'schema': {'$ref': f'#/components/schemas/{kind.__name__}'}
  }
  whole = {'model': answer, 'description': 'The answer.'}
  if event is not None:
    whole['content'] = {'text/event-stream': name(event)}
  about = dict(
    response_model=None, responses={200: whole, '4XX': error, '5XX': error}
  )
  if body is not None:
    content = {'application/json': name(body)}
    about['openapi_extra'] = {
      'requestBody': {'required': True, 'content': content}
    }
  return about


def add_model_paths(app: fastapi.FastAPI, service: Service) -> None:
  """Adds all paths that ask the model."""
  _add_generation(app, service)
  _add_scores(app, service)
  _add_tokens(app, service)


def _add_generation(app: fastapi.FastAPI, service: Service) -> None:
  """Adds what generates."""
  path = lambda name, *kinds: app.post(
    name, tags=['Generation'], **describe_path(*kinds)
  )

  @path(
    '/v1/completions',
    response_schema.Completion,
    request_schema.CompletionRequest,
    response_schema.Completion,
  )
  async def completions(request: Request) -> Response:
    """Returns outputs of prompts, as OpenAI's completions."""
    kind = request_schema.CompletionRequest
    body = await accept_body(service, request, kind)
    job = await asyncio.to_thread(plan_completion, service, body)
    texts = service.token_texts
    form = CompletionForm(service, body, job, texts, body.logprobs)
    return await answer_job(service, request, body, job, form)

  @path(
    '/v1/chat/completions',
    response_schema.ChatCompletion,
    request_schema.ChatRequest,
    response_schema.ChatChunk,
  )
  async def chat_completions(request: Request) -> Response:
    """Returns the next message of a conversation, as OpenAI's chat.

    A single message by the user is the text that the model reads. Of several,
    each is named by who wrote it: `System: ... <br> User: ... <br> Assistant:`.
    """
    body = await accept_body(service, request, request_schema.ChatRequest)
    job = await asyncio.to_thread(plan_chat, service, body)
    form = ChatForm(service, body, job, service.token_texts)
    return await answer_job(service, request, body, job, form)

  @path(
    '/v1/translate',
    response_schema.Translation,
    request_schema.TranslationRequest,
    response_schema.Translation,
  )
  async def translate(request: Request) -> Response:
    """Translates texts, by language codes or by examples in a prompt.

    Without a temperature, and without settings of the model's own, the
    likeliest token is taken each time.
    """
    kind = request_schema.TranslationRequest
    body = await accept_body(service, request, kind)
    job, plan = await asyncio.to_thread(plan_translations, service, body)
    form = TranslationForm(service, body, job, service.token_texts, plan)
    return await answer_job(service, request, body, job, form)


def _add_scores(app: fastapi.FastAPI, service: Service) -> None:
  """Adds what scores."""

  @app.post(
    '/v1/score',
    tags=['Scores'],
    **describe_path(response_schema.ScoreList, request_schema.ScoreRequest),
  )
  async def score(request: Request) -> Response:
    """Returns the log-probabilities of targets for inputs."""
    body = await accept_body(service, request, request_schema.ScoreRequest)
    job = await asyncio.to_thread(plan_scores, service, body)
    texts = service.token_texts
    describe = lambda outputs: describe_scores(
      service, body, job, outputs, texts
    )
    return await collect_answer(service, request, job, describe)


def _add_tokens(app: fastapi.FastAPI, service: Service) -> None:
  """Adds what cuts texts into tokens."""
  path = lambda name, *kinds: app.post(
    name, tags=['Tokens'], **describe_path(*kinds)
  )

  @path('/tokenize', response_schema.TokenList, request_schema.TokenizeRequest)
  async def tokenize(request: Request) -> Response:
    """Returns the ids of a text as the encoder reads them."""
    body = await accept_body(service, request, request_schema.TokenizeRequest)
    answer = await asyncio.to_thread(tokenize_text, service, body)
    return Response(encode_json(answer), media_type='application/json')

  @path(
    '/detokenize',
    response_schema.DetokenizedText,
    request_schema.DetokenizeRequest,
  )
  async def detokenize(request: Request) -> Response:
    """Returns the text of ids."""
    body = await accept_body(service, request, request_schema.DetokenizeRequest)
    answer = await asyncio.to_thread(detokenize_ids, service, body)
    return Response(encode_json(answer), media_type='application/json')
