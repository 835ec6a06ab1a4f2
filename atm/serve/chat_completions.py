"""POST /v1/chat/completions: the next message of a conversation."""

from collections.abc import Sequence

from atm.inference.few_shot import AnswerPlan
from atm.serve import response_schema as schema
from atm.serve.api_error import ApiError, convert_errors
from atm.serve.chat_template import render_messages
from atm.serve.completions import clip_log_probability
from atm.serve.generation_job import GenerationJob, StreamedPart
from atm.serve.generation_request import ChosenToken, RequestOutput
from atm.serve.generation_settings import PARAMS
from atm.serve.job_planning import plan_job
from atm.serve.output_text import OutputPart, TokenTexts
from atm.serve.request_schema import ChatMessage, ChatRequest
from atm.serve.service import Service


def plan_chat(service: Service, body: ChatRequest) -> GenerationJob:
  """Returns the job of a request; raises ApiError 400 for what is wrong."""
  if body.top_logprobs is not None and not body.logprobs:
    raise ApiError(
      400, 'top_logprobs without logprobs: expected logprobs = true',
      'top_logprobs',
    )  # fmt: skip
  text, stops = render_chat(service, body.messages, body.mode)
  plan = AnswerPlan([text], body.mode, stops, body.source, body.target)
  top = (body.top_logprobs or 0) if body.logprobs else None
  return plan_job(service, body, plan, 'messages', top)


def render_chat(
  service: Service, messages: Sequence[ChatMessage], mode: str | None
) -> tuple[str, tuple[str, ...]]:
  """Returns the text of a conversation, and strings that end the answer."""
  with convert_errors(PARAMS):
    continues = service.model._framing.name_mode(mode) == 'clm'
  return render_messages(messages, continues)


class ChatForm:
  """Writes answers in the form of /v1/chat/completions."""

  def __init__(
    self, service: Service, body: ChatRequest, job: GenerationJob,
    texts: TokenTexts,
  ):  # fmt: skip
    """Prepares the answers to one request."""
    self._body, self._job, self._texts = body, job, texts
    self._service = service

  def _head(self) -> dict:
    name, created = f'chatcmpl-{self._job.name}', self._job.created
    return dict(id=name, created=created, model=self._service.name)

  def write_answer(self, outputs: Sequence[Sequence[RequestOutput]]):
    """Returns the answer of all outputs."""
    choices = []
    for j, output in enumerate(outputs[0]):
      part = self._job.assemble_output(0, output)
      message = schema.AssistantMessage(content=part.text)
      common = self._describe(j, part, output.reason)
      choices.append(schema.ChatChoice(message=message, **common))
    ids = None
    if self._body.return_token_ids:
      ids = list(self._job.requests[0].ids)
    return schema.ChatCompletion(
      **self._head(), choices=choices, usage=self._job.count_tokens(),
      prompt_token_ids=ids,
    )  # fmt: skip

  def list_openings(self) -> list:
    """Returns the events in front of all text: who writes."""
    delta = schema.MessageDelta(role='assistant', content='')
    return [
      self.make_event(
        [schema.ChatDelta(index=j, delta=delta, finish_reason=None)]
      )
      for j in range(self._job.n)
    ]

  def write_event(self, news: StreamedPart):
    """Returns the event of what is new; None where nobody would see it."""
    wanted = self._body.logprobs or self._body.return_token_ids
    if not (news.part.text or news.reason or (wanted and news.part.tokens)):
      return None
    delta = schema.MessageDelta(content=news.part.text or None)
    common = self._describe(news.result, news.part, news.reason)
    return self.make_event([schema.ChatDelta(delta=delta, **common)])

  def make_event(self, choices: list, usage: schema.TokenUsage | None = None):
    """Returns an event of choices, or of usage without choices."""
    return schema.ChatChunk(**self._head(), choices=choices, usage=usage)

  def _describe(self, index: int, part: OutputPart, reason) -> dict:
    """Returns what whole choices and those of events have in common."""
    logprobs = ids = None
    if self._body.logprobs:
      content = list(map(self._describe_token, part.tokens))
      logprobs = schema.ChatLogprobs(content=content)
    if self._body.return_token_ids:
      ids = [x.id for x in part.tokens]
    return dict(
      index=index, logprobs=logprobs, finish_reason=reason, token_ids=ids
    )

  def _describe_token(self, token: ChosenToken) -> schema.ChosenTopToken:
    describe = lambda i, x: dict(
      token=self._texts.name_token(i),
      logprob=clip_log_probability(x),
      bytes=self._texts.list_bytes(i),
    )
    top = [schema.TopToken(**describe(*pair)) for pair in token.top]
    return schema.ChosenTopToken(
      **describe(token.id, token.log_probability), top_logprobs=top
    )
