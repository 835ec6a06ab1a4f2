"""Prompts of one HTTP request: what is asked of the engine, what is answered.

Endpoints differ in what they make of a body and in the form of their answers.
"""

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Sequence

from atm.serve.engine_run import WAITING, EngineRun
from atm.serve.generation_request import GenerationRequest, RequestOutput
from atm.serve.output_text import OutputPart, OutputText, list_tokens
from atm.serve.response_schema import TokenUsage


@dataclasses.dataclass(eq=False)
class GenerationJob:
  """Requests of the engine, and how their outputs become texts.

  Attributes:
    requests: one for each prompt.
    n: outputs to return of each, of those generated.
    stop: of `Framing.stops`.
    vocabulary, end_id: of the model.
    begins: what stands in front of the outputs of each prompt; or None.
    with_offsets: see OutputText.
    name: of the answer.
    created: seconds since 1970.
  """

  requests: Sequence[GenerationRequest]
  n: int
  stop: tuple[str, ...]
  vocabulary: object
  end_id: int
  begins: Sequence[str] | None = None
  with_offsets: bool = False
  name: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))
  counts: dict = dataclasses.field(default_factory=dict)

  def begin_output(self, number: int) -> OutputText:
    """Returns an output of a prompt, of which nothing came yet."""
    return OutputText(
      self.vocabulary, self.requests[number].prefix, self.end_id, self.stop,
      self.begins[number] if self.begins else '', self.with_offsets,
    )  # fmt: skip

  def assemble_output(self, number: int, output: RequestOutput) -> OutputPart:
    """Returns all of one output."""
    tokens = list_tokens(output, self.end_id)
    return self.begin_output(number).add(tokens, is_last=True)

  def count_tokens(self) -> TokenUsage:
    """Counts the tokens that came until now."""
    read = sum(len(x.ids) for x in self.requests)
    written = sum(self.counts.values())
    return TokenUsage(
      prompt_tokens=read, completion_tokens=written, total_tokens=read + written
    )


async def collect_outputs(
  job: GenerationJob, run: EngineRun
) -> list[list[RequestOutput]]:
  """Returns the n best outputs of each prompt, once all have ended."""
  outputs: list[list[RequestOutput]] = [[]] * len(job.requests)
  async for number, update in run.updates():
    if update.outputs is not None:
      for result, output in enumerate(update.outputs):
        job.counts[number, result] = len(output.log_probabilities)
      outputs[number] = choose_best(update.outputs, job.n)
  return outputs


def choose_best(
  outputs: Sequence[RequestOutput], n: int
) -> list[RequestOutput]:
  """Returns n outputs, the best first where there are more.

  Sampled ones by the mean log-probability of their tokens.
  """
  if len(outputs) == n:
    return list(outputs)
  mean = lambda x: sum(x.log_probabilities) / max(1, len(x.log_probabilities))
  return sorted(outputs, key=mean, reverse=True)[:n]


@dataclasses.dataclass(frozen=True)
class StreamedPart:
  """What is new of one output.

  Attributes:
    number: of its prompt.
    result: of the output.
    part: what came.
    reason: why it ended; None: it has not.
    is_first: whether nothing of the output was told before.
    score: of a beam, where it ended; else None.
  """

  number: int
  result: int
  part: OutputPart
  reason: str | None
  is_first: bool
  score: float | None = None


async def stream_outputs(
  job: GenerationJob, run: EngineRun
) -> AsyncIterator[StreamedPart | None]:
  """Yields what updates bring, output by output; None: nothing, for long."""
  texts: dict[tuple[int, int], OutputText] = {}
  ended = set()

  def tell(number, result, tokens, reason, score=None) -> StreamedPart:
    key = number, result
    is_first = key not in texts
    if is_first:
      texts[key] = job.begin_output(number)
    part = texts[key].add(tokens, is_last=reason is not None)
    job.counts[key] = texts[key].count
    ended.update([key] if reason else [])
    return StreamedPart(number, result, part, reason, is_first, score)

  async for news in run.updates():
    if news is WAITING:
      yield None
    number, update = news
    reasons = dict(update.ended)
    for result in dict.fromkeys([x.result for x in update.tokens] + [*reasons]):
      tokens = [x for x in update.tokens if x.result == result]
      if update.outputs is None or tokens:
        yield tell(number, result, tokens, reasons.get(result))
    # Beams are told at the end alone, as is what was never admitted.
    for result, output in enumerate((update.outputs or ())[: job.n]):
      if (number, result) not in ended:
        told = job.counts.get((number, result), 0)
        tokens = list_tokens(output, job.end_id)[told:]
        has_score = job.requests[number].config.beams > 1
        score = output.score if has_score else None
        yield tell(number, result, tokens, output.reason, score)
