"""POST /v1/completions: outputs of prompts, whole or as events."""

import dataclasses
from collections.abc import Sequence

from atm.serve import response_schema as schema
from atm.serve.api_error import ApiError, refusing
from atm.serve.generation_job import GenerationJob, StreamedPart
from atm.serve.generation_request import RequestOutput
from atm.serve.generation_settings import PARAMS, choose_settings
from atm.serve.output_text import OutputPart, TokenTexts
from atm.serve.request_builder import build_requests
from atm.serve.request_schema import CompletionRequest
from atm.serve.service import Service

_LEAST_LOG = -9999.0  # JSON has no infinity


def plan_completion(service: Service, body: CompletionRequest):
  """Returns the job of a request; raises ApiError 400 for what is wrong."""
  if body.echo and body.logprobs is not None:
    raise ApiError(
      400, 'echo and logprobs: the encoder reads the prompt, whose tokens have '
      'no log-probabilities: expected one of them; see /v1/score', 'echo',
    )  # fmt: skip
  inputs = split_prompts(body.prompt)
  begins = None
  if body.echo:
    begins = [find_text(service, prompt) for prompt in inputs]
  return plan_job(service, body, inputs, 'prompt', body.logprobs, begins=begins)


def split_prompts(prompt) -> list:
  """Returns prompts as a list, of texts or of lists of ids."""
  single = isinstance(prompt, str) or isinstance(prompt[0], int)
  return [prompt] if single else prompt


def find_text(service: Service, prompt) -> str:
  """Returns a prompt's text."""
  words = service.model.vocabulary
  if isinstance(prompt, str):
    return prompt
  with refusing({'ids': 'prompt'}):
    return words.decode(prompt) if words else ''


def plan_job(
  service: Service, body, inputs: Sequence, field: str, top: int | None,
  stop: Sequence[str] = (), begins=None,
) -> GenerationJob:  # fmt: skip
  """Returns the job of prompts; raises ApiError 400 for what is wrong.

  Args:
    service: what answers.
    body: a SamplingBody.
    inputs: prompts: texts, or lists of ids.
    field: of the body, which they are of.
    top: likeliest tokens to tell of each token; None: no log-probabilities.
    stop: strings that end outputs besides those of the body.
    begins: see GenerationJob.
  """
  limits, model = service.limits, service.model
  if len(inputs) > limits.prompts:
    raise ApiError(
      400, f'{field} has {len(inputs)} elements: expected at most '
      f'{limits.prompts}', field,
    )  # fmt: skip
  if body.stream_options is not None and not body.stream:
    raise ApiError(400, 'stream_options without stream', 'stream_options')
  settings = choose_settings(service, body)
  if body.stream and settings.config.results > settings.n:
    raise ApiError(
      400, f'best_of = {settings.config.results} with stream: expected n = '
      f'{settings.n}, for the best are known at the end', 'best_of',
    )  # fmt: skip
  given = [body.stop] if isinstance(body.stop, str) else body.stop or []
  prefixes = None if body.prefix is None else [body.prefix] * len(inputs)
  with refusing({**PARAMS, 'input': field, 'inputs': field}):
    stops = model._framing.stops([*given, *stop])
    requests = build_requests(
      model, inputs, body.mode, settings.config, prefixes, [*given, *stop],
      body.bad_words or (), None, body.truncate or 'refuse', body.source,
      body.target,
    )  # fmt: skip
    requests = [
      dataclasses.replace(request, top=top or 0, seconds=limits.seconds)
      for request in requests
    ]
    for request in requests:
      service.engine.check(request)
  return GenerationJob(
    requests, settings.n, stops, model.vocabulary, model.config.end_id, begins,
    top is not None,
  )  # fmt: skip


class CompletionForm:
  """Writes answers in the form of /v1/completions."""

  media = schema.Completion

  def __init__(
    self, service: Service, body: CompletionRequest, job: GenerationJob,
    texts: TokenTexts,
  ):  # fmt: skip
    """Prepares the answers to one request."""
    self._body, self._job, self._texts = body, job, texts
    self._head = dict(
      id=f'cmpl-{job.name}', created=job.created, model=service.name
    )

  def whole(self, outputs: Sequence[Sequence[RequestOutput]]):
    """Returns the answer of all outputs."""
    choices = [
      self._choice(i, j, self._job.whole(i, output), output.reason, True)
      for i, row in enumerate(outputs)
      for j, output in enumerate(row)
    ]
    return schema.Completion(
      **self._head, choices=choices, usage=self._job.usage()
    )

  def start(self) -> list:
    """Returns the events in front of all text."""
    return []

  def event(self, news: StreamedPart):
    """Returns the event of what is new; None where nobody would see it."""
    wanted = self._body.logprobs is not None or self._body.return_token_ids
    told = news.part.text or news.reason or (wanted and news.part.tokens)
    if not told:
      return None
    choice = self._choice(
      news.number, news.result, news.part, news.reason, news.is_first
    )
    return self.bare([choice])

  def bare(self, choices: list, usage: schema.TokenUsage | None = None):
    """Returns an event of choices, or of usage without choices."""
    return schema.Completion(**self._head, choices=choices, usage=usage)

  def _choice(
    self, number: int, result: int, part: OutputPart, reason, is_first: bool
  ) -> schema.CompletionChoice:
    ids = prompt = None
    if self._body.return_token_ids:
      ids = [x.id for x in part.tokens]
      prompt = list(self._job.requests[number].ids) if is_first else None
    return schema.CompletionChoice(
      index=number * self._job.n + result, text=part.text,
      logprobs=self._logprobs(part), finish_reason=reason, token_ids=ids,
      prompt_token_ids=prompt,
    )  # fmt: skip

  def _logprobs(self, part: OutputPart) -> schema.CompletionLogprobs | None:
    if self._body.logprobs is None:
      return None
    name, top = self._texts.name, None
    if self._body.logprobs:
      top = [
        {name(i): finite(x) for i, x in (*token.top, (token.id,
         token.log_probability))}
        for token in part.tokens
      ]  # fmt: skip
    return schema.CompletionLogprobs(
      tokens=[name(x.id) for x in part.tokens],
      token_logprobs=[finite(x.log_probability) for x in part.tokens],
      top_logprobs=top, text_offset=part.offsets,
    )  # fmt: skip


def finite(log_probability: float) -> float:
  """Returns a log-probability that JSON has a number for."""
  return max(log_probability, _LEAST_LOG)
