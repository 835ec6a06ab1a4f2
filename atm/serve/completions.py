"""POST /v1/completions: outputs of prompts, whole or as events."""

from collections.abc import Sequence

from atm.inference.few_shot import AnswerPlan
from atm.serve import response_schema as schema
from atm.serve.api_error import ApiError, convert_errors
from atm.serve.generation_job import GenerationJob, StreamedPart
from atm.serve.generation_request import RequestOutput
from atm.serve.job_planning import plan_job
from atm.serve.output_text import OutputPart, TokenTexts
from atm.serve.request_schema import CompletionRequest, SamplingBody
from atm.serve.service import Service

_LEAST_LOG = -9999.0  # JSON has no infinity


def plan_completion(service: Service, body: CompletionRequest) -> GenerationJob:
  """Returns the job of a request; raises ApiError 400 for what is wrong."""
  if body.echo and body.logprobs is not None:
    raise ApiError(
      400, 'echo and logprobs: the encoder reads the prompt, whose tokens have '
      'no log-probabilities: expected one of them; see /v1/score', 'echo',
    )  # fmt: skip
  inputs, begins = split_prompts(body.prompt), None
  if body.echo:
    begins = [find_text(service, prompt) for prompt in inputs]
  plan = AnswerPlan(inputs, body.mode, (), body.source, body.target)
  return plan_job(service, body, plan, 'prompt', body.logprobs, begins)


def split_prompts(prompt) -> list:
  """Returns prompts as a list, of texts or of lists of ids."""
  single = isinstance(prompt, str) or isinstance(prompt[0], int)
  return [prompt] if single else prompt


def find_text(service: Service, prompt) -> str:
  """Returns a prompt's text."""
  words = service.model.vocabulary
  if isinstance(prompt, str):
    return prompt
  with convert_errors({'ids': 'prompt'}):
    return words.decode(prompt) if words else ''


class CompletionForm:
  """Writes answers in the form of /v1/completions."""

  kind, prefix = schema.Completion, 'cmpl'

  def __init__(
    self, service: Service, body: SamplingBody, job: GenerationJob,
    texts: TokenTexts, top: int | None = None,
  ):  # fmt: skip
    """Prepares the answers to a job; for `top` see `describe_logprobs`."""
    self._body, self._job, self._texts, self._top = body, job, texts, top
    self._service = service

  def _head(self) -> dict:
    name, created = f'{self.prefix}-{self._job.name}', self._job.created
    return dict(id=name, created=created, model=self._service.name)

  def write_answer(self, outputs: Sequence[Sequence[RequestOutput]]):
    """Returns the answer of all outputs."""
    choices = [
      self._choice(
        i, j, self._job.assemble_output(i, output), output.reason, True
      )
      for i, row in enumerate(outputs)
      for j, output in enumerate(row)
    ]
    scores = [output.score for row in outputs for output in row]
    if self._job.requests[0].config.beams > 1:
      for choice, score in zip(choices, scores, strict=True):
        choice.score = clip_log_probability(score)
    return self.kind(
      **self._head(), choices=choices, usage=self._job.count_tokens()
    )

  def list_openings(self) -> list:
    """Returns the events in front of all text."""
    return []

  def write_event(self, news: StreamedPart):
    """Returns the event of what is new; None where nobody would see it."""
    wanted = self._top is not None or self._body.return_token_ids
    if not (news.part.text or news.reason or (wanted and news.part.tokens)):
      return None
    choice = self._choice(
      news.number, news.result, news.part, news.reason, news.is_first
    )
    choice.score = (
      None if news.score is None else clip_log_probability(news.score)
    )
    return self.make_event([choice])

  def make_event(self, choices: list, usage: schema.TokenUsage | None = None):
    """Returns an event of choices, or of usage without choices."""
    return self.kind(**self._head(), choices=choices, usage=usage)

  def _choice(
    self, number: int, result: int, part: OutputPart, reason, is_first: bool
  ) -> schema.CompletionChoice:
    ids = prompt = None
    if self._body.return_token_ids:
      ids = [x.id for x in part.tokens]
      prompt = list(self._job.requests[number].ids) if is_first else None
    return schema.CompletionChoice(
      index=number * self._job.n + result, text=part.text,
      logprobs=describe_logprobs(self._texts, part, self._top),
      finish_reason=reason, token_ids=ids, prompt_token_ids=prompt,
    )  # fmt: skip


def describe_logprobs(
  texts: TokenTexts, part: OutputPart, top: int | None
) -> schema.CompletionLogprobs | None:
  """Returns the log-probabilities of a part's tokens.

  Args:
    texts: names of tokens.
    part: the tokens, with their offsets.
    top: how many of the likeliest to tell in each place; None: nothing.
  """
  if top is None:
    return None
  name, likeliest = texts.name_token, None
  if top:
    likeliest = [
      {
        name(i): clip_log_probability(x)
        for i, x in (*token.top, (token.id, token.log_probability))
      }
      for token in part.tokens
    ]
  return schema.CompletionLogprobs(
    tokens=[name(x.id) for x in part.tokens],
    token_logprobs=[
      clip_log_probability(x.log_probability) for x in part.tokens
    ],
    top_logprobs=likeliest,
    text_offset=part.offsets,
  )


def clip_log_probability(log_probability: float) -> float:
  """Returns a log-probability that JSON has a number for."""
  return max(log_probability, _LEAST_LOG)
