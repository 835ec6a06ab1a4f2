"""POST /v1/score: log-probabilities of targets."""

import dataclasses
from collections.abc import Sequence

from atm.serve import response_schema as schema
from atm.serve.api_error import ApiError, convert_errors
from atm.serve.completions import describe_logprobs, split_prompts
from atm.serve.generation_job import GenerationJob
from atm.serve.generation_request import RequestOutput
from atm.serve.generation_settings import PARAMS
from atm.serve.job_planning import check_count_of
from atm.serve.output_text import TokenTexts
from atm.serve.request_builder import build_score_requests
from atm.serve.request_schema import ScoreRequest
from atm.serve.service import Service

_PARAMS = {
  **PARAMS, 'input': 'inputs', 'inputs': 'inputs', 'targets': 'targets',
  'target #': 'targets',  # unlike `target`, a language
}  # fmt: skip


def plan_scores(service: Service, body: ScoreRequest) -> GenerationJob:
  """Returns the job of a request; raises ApiError 400 for what is wrong."""
  inputs, targets = split_prompts(body.inputs), split_prompts(body.targets)
  check_count_of(service, 'targets', targets)
  if len(inputs) == 1:
    inputs = inputs * len(targets)
  if len(inputs) != len(targets):
    raise ApiError(
      400, f'{len(inputs)} inputs, but {len(targets)} targets: expected as '
      'many, or one input', 'inputs',
    )  # fmt: skip
  model, top = service.model, body.logprobs
  with convert_errors(_PARAMS):
    requests = build_score_requests(
      model, inputs, targets, None, body.mode, body.truncate or 'refuse',
      body.source, body.target,
    )  # fmt: skip
    requests = [
      dataclasses.replace(x, top=top or 0, seconds=service.limits.seconds)
      for x in requests
    ]
    for request in requests:
      service.engine.check(request)
  return GenerationJob(
    requests, 1, (), model.vocabulary, model.config.end_id, None,
    top is not None,
  )  # fmt: skip


def describe_scores(
  service: Service, body: ScoreRequest, job: GenerationJob,
  outputs: Sequence[Sequence[RequestOutput]], texts: TokenTexts,
) -> schema.ScoreList:  # fmt: skip
  """Returns the answer; raises ApiError 503 where the time was over."""
  scores = []
  for i, ((output,), request) in enumerate(zip(outputs, job.requests)):
    if len(output.log_probabilities) < len(request.targets):
      raise ApiError(503, 'the limit of seconds was over', code='timeout')
    logprobs = ids = None
    if body.logprobs is not None:
      ids = list(request.targets)
      logprobs = describe_logprobs(
        texts, job.assemble_output(i, output), body.logprobs
      )
    score, count = sum(output.log_probabilities), len(request.targets)
    scores.append(
      schema.TargetScore(
        index=i, score=score, token_count=count, token_ids=ids,
        logprobs=logprobs,
      )
    )  # fmt: skip
  return schema.ScoreList(
    id=f'score-{job.name}', created=job.created, model=service.name,
    data=scores, usage=job.count_tokens(),
  )  # fmt: skip
