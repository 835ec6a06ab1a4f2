"""Answers of generation jobs: one JSON object, or server-sent events."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from atm.serve.access_log import add_facts
from atm.serve.api_error import ApiError
from atm.serve.engine_run import ClientGoneError, EngineRun
from atm.serve.generation_job import (
  GenerationJob,
  collect_outputs,
  stream_outputs,
)
from atm.serve.service import RETRY_SECONDS, Service

_logger = logging.getLogger('uvicorn.error')
DONE = b'data: [DONE]\n\n'


def encode_json(answer: pydantic.BaseModel) -> bytes:
  """Returns the JSON of an answer."""
  return answer.model_dump_json().encode()


def encode_event(event: pydantic.BaseModel) -> bytes:
  """Returns a server-sent event."""
  return b'data: ' + encode_json(event) + b'\n\n'


def encode_error(error: ApiError) -> bytes:
  """Returns the event of an error, behind which nothing comes."""
  return b'data: ' + JSONResponse(error.body()).body + b'\n\n' + DONE


class EventStream(StreamingResponse):
  """Server-sent events of a run, which is closed whatever becomes of them."""

  def __init__(self, events: AsyncIterator[bytes], run: EngineRun):
    # Proxies such as nginx hold events back otherwise.
    headers = {'cache-control': 'no-cache', 'x-accel-buffering': 'no'}
    super().__init__(events, media_type='text/event-stream', headers=headers)
    self._run = run

  async def __call__(self, scope, receive, send) -> None:
    """Sends the events."""
    try:
      await super().__call__(scope, receive, send)
    finally:
      self._run.close()


async def answer_job(
  service: Service, client: Request, body, job: GenerationJob, form
) -> Response:
  """Returns the answer to a job.

  Args:
    service: whose engine works.
    client: its body was read; rows are freed when it leaves.
    body: a SamplingBody, which says whether the answer is a stream.
    job: what is asked of the engine.
    form: writes the answer, see `completions.CompletionForm`.

  Raises:
    ApiError: see `EngineRun`.
  """
  if body.stream:
    run = await _begin_run(service, client, job)
    return EventStream(_list_events(client, body, job, form, run), run)
  return await collect_answer(service, client, job, form.write_answer)


async def collect_answer(
  service: Service, client: Request, job: GenerationJob, describe: Callable
) -> Response:
  """Returns the answer to a job, once all of it is there.

  Args:
    service, client, job: see `answer_job`.
    describe: makes a pydantic model of `collect_outputs`'s outputs.

  Raises:
    ApiError: see `EngineRun`.
  """
  run = await _begin_run(service, client, job)
  try:
    outputs = await collect_outputs(job, run)
    _check_begun(outputs)
    content = await asyncio.to_thread(lambda: encode_json(describe(outputs)))
  finally:
    run.close()
  reasons = {output.reason for row in outputs for output in row}
  _add_counts(client, job, reasons)
  return Response(content, media_type='application/json')


async def _begin_run(
  service: Service, client: Request, job: GenerationJob
) -> EngineRun:
  """Submits a job, which is called by the request's id from then on."""
  job.name = client.scope.get('state', {}).get('request_id', job.name)
  run = EngineRun(service, job.requests)
  await run.start(client)
  return run


def _check_begun(outputs) -> None:
  """Raises ApiError 503 where the time was over before any token was chosen."""
  if all(x.reason == 'timeout' and not x.ids for row in outputs for x in row):
    raise ApiError(
      503, 'the limit of seconds was over before an output began', None,
      'timeout', {'retry-after': str(RETRY_SECONDS['queue'])},
    )  # fmt: skip


def _add_counts(client: Request, job: GenerationJob, reasons: set[str]) -> None:
  """Tells the access log what was done."""
  usage = job.count_tokens()
  add_facts(
    client.scope, prompt_tokens=usage.prompt_tokens,
    completion_tokens=usage.completion_tokens,
    finish_reason=','.join(sorted(reasons)),
  )  # fmt: skip


async def _list_events(
  client: Request, body, job: GenerationJob, form, run: EngineRun
) -> AsyncIterator[bytes]:
  """Yields the events of a stream, an error among them."""
  options = body.stream_options
  each = bool(options and options.continuous_usage_stats)
  reasons = set()
  try:
    for event in form.list_openings():
      yield encode_event(event)
    async for news in stream_outputs(job, run):
      if news is None:
        yield b': waiting\n\n'
        continue
      reasons |= {news.reason} - {None}
      if (event := form.write_event(news)) is not None:
        event.usage = job.count_tokens() if each else None
        yield encode_event(event)
    if options and options.include_usage:
      yield encode_event(form.make_event([], job.count_tokens()))
    yield DONE
  except ApiError as e:
    yield encode_error(e)
  except ClientGoneError:
    return
  except Exception as e:
    _logger.error('a stream failed', exc_info=e)
    yield encode_error(ApiError(500, 'a fault of the server'))
  finally:
    _add_counts(client, job, reasons)
