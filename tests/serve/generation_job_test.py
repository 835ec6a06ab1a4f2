"""Outputs of a job, whole and in parts."""

from atm.serve.generation_job import GenerationJob, choose_best
from atm.serve.generation_request import GenerationRequest, RequestOutput


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
