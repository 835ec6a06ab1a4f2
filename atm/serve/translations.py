"""POST /v1/translate: by language, or by examples in a prompt."""

import dataclasses
from collections.abc import Sequence

from atm.inference.few_shot import AnswerPlan, plan_translation
from atm.serve import response_schema as schema
from atm.serve.api_error import convert_errors
from atm.serve.completions import CompletionForm
from atm.serve.generation_job import GenerationJob, StreamedPart
from atm.serve.generation_request import RequestOutput
from atm.serve.generation_settings import PARAMS
from atm.serve.job_planning import check_count_of, plan_job
from atm.serve.output_text import TokenTexts
from atm.serve.request_schema import TranslationRequest
from atm.serve.service import Service


def plan_translations(
  service: Service, body: TranslationRequest
) -> tuple[GenerationJob, AnswerPlan]:
  """Returns the job of a request, and how its outputs become translations.

  Raises ApiError 400 for what is wrong.
  """
  texts = [body.text] if isinstance(body.text, str) else body.text
  check_count_of(service, 'text', texts)
  params = {**PARAMS, 'sentences': 'text', 'to': 'target', 'shots': 'shots'}
  # Errors of a template name its fields.
  params |= {'field': 'text'}
  options = {'truncate': body.truncate} if body.truncate else {}
  with convert_errors(params):
    plan = plan_translation(
      service.model, texts, body.target, body.shots or (), body.mode,
      body.source, **options,
    )  # fmt: skip
  return plan_job(service, body, plan, 'text', temperature=0.0), plan


class TranslationForm(CompletionForm):
  """Writes answers in the form of /v1/translate.

  In a stream, a translation that is cut out of an output comes at its end.
  """

  kind, prefix = schema.Translation, 'translation'

  def __init__(
    self, service: Service, body: TranslationRequest, job: GenerationJob,
    texts: TokenTexts, plan: AnswerPlan,
  ):  # fmt: skip
    """Prepares the answers to one request."""
    super().__init__(service, body, job, texts)
    self._plan = plan
    self._held: dict[tuple[int, int], str] = {}

  def write_answer(self, outputs: Sequence[Sequence[RequestOutput]]):
    """Returns the answer of all outputs."""
    answer = super().write_answer(outputs)
    for choice in answer.choices:
      number = choice.index // self._job.n
      choice.text = self._plan.extract(number, choice.text)
    return answer

  def write_event(self, news: StreamedPart):
    """Returns the event of what is new; None where nobody would see it."""
    if self._plan.template is not None:
      key, text = (news.number, news.result), news.part.text
      text = self._held.get(key, '') + text
      self._held[key] = text
      text = self._plan.extract(news.number, text) if news.reason else ''
      part = dataclasses.replace(news.part, text=text)
      news = dataclasses.replace(news, part=part)
    return super().write_event(news)
