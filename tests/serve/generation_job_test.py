"""Outputs of a job, whole and in parts."""

import asyncio

from atm.serve.engine_run import WAITING
from atm.serve.generation_job import GenerationJob, choose_best, stream_outputs
from atm.serve.generation_request import (
  ChosenToken,
  GenerationRequest,
  RequestOutput,
  RequestUpdate,
)


def output(*logs) -> RequestOutput:
  return RequestOutput([5] * len(logs), list(logs), [], sum(logs), 'length')


def test_the_best_have_the_greatest_mean():
  outputs = [output(-1, -1, -1), output(-2), output(-0.5, -0.7), output()]
  assert choose_best(outputs, 4) == outputs
  assert choose_best(outputs, 2) == [outputs[3], outputs[2]]
  assert choose_best(outputs[:3], 2) == [outputs[2], outputs[0]]


def test_usage_counts_what_came():
  requests = [GenerationRequest((5, 6), (2,)), GenerationRequest((7,), (2,))]
  job = GenerationJob(requests, 1, (), None, 1)
  assert job.count_tokens().total_tokens == 3
  job.counts[0, 0] = 4
  usage = job.count_tokens()
  assert (usage.prompt_tokens, usage.completion_tokens) == (3, 4)
  assert usage.total_tokens == 7
  assert job.assemble_output(0, output(-1)).text == ''


class Run:
  """Stands for a run of the engine, whose news are known."""

  def __init__(self, *news):
    self.news = news

  async def updates(self):
    for news in self.news:
      yield news


def test_parts_are_told_as_they_come():
  """Also the end of an output that brings no token."""
  token = lambda result, i: ChosenToken(result, i, -1.0)
  outputs = (output(-1, -1), output(-1))
  run = Run(
    (0, RequestUpdate(tokens=(token(0, 5), token(1, 5)))),
    WAITING,
    (0, RequestUpdate(tokens=(token(0, 5),))),
    (0, RequestUpdate(ended=((1, 'timeout'),))),
    (0, RequestUpdate(ended=((0, 'length'),), outputs=outputs)),
  )
  job = GenerationJob([GenerationRequest((5, 6), (2,))], 2, (), None, 1)

  async def go():
    return [news async for news in stream_outputs(job, run)]

  told = [
    news and (news.result, len(news.part.tokens), news.reason, news.is_first)
    for news in asyncio.run(go())
  ]
  assert told == [
    (0, 1, None, True),
    (1, 1, None, True),
    None,
    (0, 1, None, False),
    (1, 0, 'timeout', False),
    (0, 0, 'length', False),
  ]
