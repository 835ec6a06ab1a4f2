"""Makes jobs of the engine from bodies of requests."""

import dataclasses

from atm.inference.few_shot import AnswerPlan
from atm.inference.stop_strings import count_states
from atm.serve.api_error import ApiError, convert_errors
from atm.serve.generation_job import GenerationJob
from atm.serve.generation_settings import PARAMS, choose_settings
from atm.serve.request_builder import build_requests
from atm.serve.request_schema import SamplingBody
from atm.serve.service import Service


def plan_job(
  service: Service, body: SamplingBody, plan: AnswerPlan, field: str,
  top: int | None = None, begins=None, temperature: float = 1.0,
) -> GenerationJob:  # fmt: skip
  """Returns the job of prompts; raises ApiError 400 for what is wrong.

  Args:
    service: what answers.
    body: how outputs are chosen.
    plan: the prompts, texts or lists of ids; its `stop` counts besides the
      body's.
    field: of the body, which the prompts are of.
    top: likeliest tokens to tell of each token; None: no log-probabilities.
    begins: see GenerationJob.
    temperature: where neither the body nor the model has one.
  """
  model = service.model
  check_count_of(service, field, plan.texts)
  if body.stream_options is not None and not body.stream:
    raise ApiError(400, 'stream_options without stream', 'stream_options')
  if top is not None:
    service.token_texts.name_token(0)  # names take a moment, the first time
  settings = choose_settings(service, body, temperature)
  if body.stream and settings.config.results > settings.n:
    raise ApiError(
      400, f'best_of = {settings.config.results} with stream: expected n = '
      f'{settings.n}, for the best are known at the end', 'best_of',
    )  # fmt: skip
  given = [body.stop] if isinstance(body.stop, str) else body.stop or []
  given = [*given, *plan.stop]
  prefixes = None if body.prefix is None else [body.prefix] * len(plan.texts)
  with convert_errors({**PARAMS, 'input': field, 'inputs': field}):
    stops = model._framing.stops(given)
    _check_stops(service, stops)
    requests = build_requests(
      model, plan.texts, plan.mode, settings.config, prefixes, given,
      body.bad_words or (), None, body.truncate or 'refuse', plan.source,
      plan.target,
    )  # fmt: skip
    requests = [
      dataclasses.replace(x, top=top or 0, seconds=service.limits.seconds)
      for x in requests
    ]
    for request in requests:
      service.engine.check(request)
    return GenerationJob(
      requests, settings.n, stops, model.vocabulary, model.config.end_id,
      begins, top is not None,
    )  # fmt: skip


def _check_stops(service: Service, stops: tuple[str, ...]) -> None:
  """Raises ValueError for more stop strings than the engine has room for.

  The engine looks at their table, which may take minutes and a GB to build.
  """
  need, room = count_states(stops), service.engine.sizes.stop_states - 1
  if stops and need > room:
    raise ValueError(
      f'stop needs {need:,} states, 2 and one for each byte of its strings: '
      f'expected at most {room:,}'
    )


def check_count_of(service: Service, field: str, elements) -> None:
  """Raises ApiError 400 where a list is empty, or longer than the limit."""
  count, most = len(elements), service.limits.prompts
  if not 1 <= count <= most:
    raise ApiError(
      400, f'{field} has {count} elements: expected 1 to {most}', field
    )
