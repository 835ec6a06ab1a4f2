"""Random requests, what each gets alone, and an engine that is sent all."""

import dataclasses
import functools
import threading
import time

import jax
import numpy as np

from atm.inference import api, sampling
from atm.inference.outputs import Generation
from atm.model.transformer import AlexaTM
from atm.serve.generation_request import (
  GenerationRequest,
  RequestOutput,
  RequestUpdate,
)
from atm.serve.request_builder import build_requests

WORDS = 'a plain text; no more and another one.'.split()
KINDS = 'greedy', 'sampled', 'beams'
STOPS = (('e',), ('a', 'no'), ('t t', 'ore', 'xx'))
# Rounding may change a choice between two that are so near: parameters that
# differ by so much of themselves, in some of so many draws, then do, too.
NEAR, DRAWS = 1e-6, 16


@dataclasses.dataclass(frozen=True)
class Case:
  """What a user asks for one input.

  Attributes:
    text: the input, a text or ids.
    number: of the input.
    top, seconds: see GenerationRequest.
    options: keyword arguments of `Model.complete`.
  """

  text: str | list[int]
  number: int
  top: int
  seconds: float | None
  options: dict

  def build(self, model: api.Model) -> GenerationRequest:
    """Returns the engine's request."""
    (request,) = build_requests(
      model, [self.text], numbers=[self.number], **self.options
    )
    return dataclasses.replace(request, top=self.top, seconds=self.seconds)

  def run_alone(self, model: api.Model) -> list[Generation]:
    """Returns what the model gives it alone."""
    return model.complete([self.text], numbers=[self.number], **self.options)[0]


# --- Drawing


@dataclasses.dataclass(frozen=True)
class Profile:
  """What `Model.complete` compiles a program for: cases of one share it.

  Attributes:
    config: fields that a program is compiled for.
    free: fields of a Config that vary, as (lowest, highest).
    input_ids: lengths of inputs, (least, most); None: they are texts.
    prefix: ids of prefixes; None: there are none.
    banned: how many sequences, and of how many ids.
    stop: stop strings.
    languages: codes of which inputs and outputs have one each.
  """

  config: dict
  free: dict
  input_ids: tuple[int, int] | None
  prefix: int | None
  banned: tuple[int, int]
  stop: tuple[str, ...]
  languages: tuple[str, ...] = ()


def draw_profile(
  rng, positions: int, languages: tuple[str, ...] = (), kinds=KINDS
) -> Profile:
  """Returns a random profile, for a model of so many positions."""
  pick = lambda *values: values[rng.integers(len(values))]
  kind = pick(*kinds)
  tokens, inputs = [(5, 8), (9, 16), (17, 30)], [(1, 16), (17, 32)]
  inputs.append((33, min(64, positions)))
  if positions >= 128:  # an engine has programs for few positions, too
    tokens.append((65, 100))
    inputs.append((65, 128))
  config, free = {}, {'max_tokens': pick(*tokens), 'min_tokens': (0, 5)}
  free |= pick({}, {'repetition_penalty': (0.7, 1.6)})
  if kind == 'sampled':
    free |= {'temperature': (0.3, 1.5), 'seed': (0, 3)}
    config['results'] = pick(1, 1, 2, 3)
    cuts = {'top_k': (2, 40), 'top_p': (0.3, 0.95), 'min_p': (0.01, 0.2)}
    chosen = pick((), ('top_k',), ('top_p',), ('min_p',), tuple(cuts))
    free |= {name: cuts[name] for name in chosen}
  if kind == 'beams':
    config['beams'] = pick(2, 3, 4)
    config['results'] = pick(1, config['beams'])
    config['early_stopping'] = pick(False, True, 'never')
    free['length_penalty'] = (-0.5, 1.5)
  config |= pick({}, {}, {'no_repeat_ngram_size': pick(1, 2, 3)})
  config |= pick({}, {}, {'encoder_no_repeat_ngram_size': pick(1, 2)})
  config |= pick({}, {}, {'forced_eos': True})
  return Profile(
    config,
    free,
    pick(*inputs, None),
    pick(None, None, 1, 3, 6),
    pick((0, 0), (0, 0), (2, 1), (4, 3)),
    pick((), (), *STOPS),
    languages,
  )


def draw_case(rng, profile: Profile, vocab_size: int) -> Case:
  """Returns a random case of a profile."""
  draw_ids = lambda n: rng.integers(5, vocab_size, n).tolist()
  draw = lambda a, b: (
    int(rng.integers(a, b + 1)) if isinstance(b, int) else rng.uniform(a, b)
  )
  text = ' '.join(rng.choice(WORDS, 3))
  if profile.input_ids:
    text = draw_ids(draw(*profile.input_ids))
  values = {name: draw(*bounds) for name, bounds in profile.free.items()}
  options = dict(config=sampling.Config(**values, **profile.config))
  if profile.prefix is not None:
    options['prefixes'] = [draw_ids(profile.prefix)]
  if profile.banned[0]:
    # Few ids, so that some are met.
    banned = rng.integers(5, 40, profile.banned)
    options['banned'] = banned.tolist()
  if profile.stop:
    options['stop'] = profile.stop
  if profile.languages:
    source, target = rng.choice(profile.languages, 2).tolist()
    options |= dict(source=source, target=target)
  top = int(rng.choice([0, 0, 1, 5]))
  seconds = 0.1 if rng.random() < 0.02 else None
  number = int(rng.choice([0, 3, 2**33 + 1]))
  return Case(text, number, top, seconds, options)


def draw_cases(
  model: api.Model, seed: int, count: int, profiles: int, **choices
) -> list[Case]:
  """Returns random cases; `Model.complete` compiles `profiles` programs."""
  rng, config = np.random.default_rng(seed), model.config
  draw = lambda: draw_profile(rng, config.positions, **choices)
  known = [draw() for _ in range(profiles)]
  return [
    draw_case(rng, known[i % profiles], config.vocab_size) for i in range(count)
  ]


# --- Sending


@dataclasses.dataclass
class Sent:
  """A request that an engine was sent, and what it told."""

  request: GenerationRequest
  is_cancelled: bool = False
  updates: list[RequestUpdate] = dataclasses.field(default_factory=list)

  @property
  def outputs(self) -> tuple[RequestOutput, ...]:
    """The outputs that it ended with."""
    return self.updates[-1].outputs


def send_at_random(engine, requests, seed: int, pause=0.004) -> list[Sent]:
  """Sends requests at random moments, some at once; cancels one of ten.

  Returns them in their order, once all have ended.
  """
  rng = np.random.default_rng(seed)
  sent = [Sent(x, rng.random() < 0.1) for x in requests]
  order, left = rng.permutation(len(sent)).tolist(), [len(sent)]
  ended, timers = threading.Event(), []
  while order:
    group = [sent[order.pop()] for _ in range(min(len(order), draw_size(rng)))]

    def deliver(i, update, group=group):
      group[i].updates.append(update)
      if update.outputs is not None:
        left[0] -= 1
        if not left[0]:
          ended.set()

    # A ticket's requests are cancelled together.
    cancelled = [x for x in group if x.is_cancelled] or [None]
    kept = [x for x in group if not x.is_cancelled]
    group[:] = kept + [x for x in cancelled if x]
    if kept:
      engine.submit([x.request for x in kept], deliver)
    if cancelled[0]:
      shifted = lambda i, update, n=len(kept), tell=deliver: tell(i + n, update)
      ticket = engine.submit([x.request for x in cancelled], shifted)
      timers.append(threading.Timer(rng.exponential(0.05), ticket.cancel))
      timers[-1].start()
    time.sleep(rng.exponential(pause))
  assert ended.wait(300), f'{left} of {len(sent)} have not ended'
  for timer in timers:
    timer.join()
  return sent


def draw_size(rng) -> int:
  """Returns how many requests are sent at once: mostly one."""
  return int(rng.choice([1, 1, 1, 2, 4]))


# --- Comparing


def is_cut(sent: Sent) -> bool:
  """Tells whether a request was cancelled or late before its end."""
  reasons = {x.reason for x in sent.outputs}
  return not reasons.isdisjoint(('cancelled', 'timeout'))


def is_alike(outputs, alone: list[Generation]) -> bool:
  """Tells whether outputs have the ids of what a model gave."""
  return [x.ids for x in outputs] == [x.ids for x in alone]


def is_near_tie(model: api.Model, case: Case, alone) -> bool:
  """Tells whether rounding may change a case's ids, see NEAR."""
  return any(
    not is_alike(case.run_alone(other), alone) for other in perturb(model)
  )


@functools.lru_cache(1)
def perturb(model: api.Model) -> list[api.Model]:
  """Returns models whose parameters differ by NEAR of themselves."""
  rng = np.random.default_rng(0)
  noise = lambda x: (
    x * (1 + NEAR * rng.standard_normal(x.shape)).astype(x.dtype)
  )
  return [
    dataclasses.replace(model, params=jax.tree.map(noise, model.params))
    for _ in range(DRAWS)
  ]


def check_sent(sent: Sent, alone: list[Generation], end_id: int) -> None:
  """Checks what was told of one request whose ids are right."""
  for output, want in zip(sent.outputs, alone):
    np.testing.assert_allclose(
      output.log_probabilities, want.log_probabilities, atol=2e-4
    )
    np.testing.assert_allclose(output.score, want.score, rtol=1e-3, atol=1e-3)
    if len(want.log_probabilities) > len(want.ids):
      assert output.reason == 'stop'
    if len(want.ids) < sent.request.config.max_tokens - sent.request.forced:
      assert output.reason in ('stop', 'length')
  check_told(sent, end_id)


def check_told(sent: Sent, end_id: int) -> None:
  """Checks that updates and outputs agree."""
  told = [x for update in sent.updates for x in update.tokens]
  ended = dict(x for update in sent.updates for x in update.ended)
  assert ended == {i: x.reason for i, x in enumerate(sent.outputs)}
  if sent.request.config.beams > 1:
    assert not told
    return
  for i, output in enumerate(sent.outputs):
    mine = [x for x in told if x.result == i]
    ends = [end_id] * (len(output.log_probabilities) - len(output.ids))
    assert [x.id for x in mine] == [*output.ids, *ends]
    logs = [x.log_probability for x in mine]
    np.testing.assert_allclose(logs, output.log_probabilities, atol=1e-6)
    if sent.request.top:
      assert [x.top for x in mine] == output.top


def check_cut(sent: Sent, alone: list[Generation]) -> None:
  """Checks that a request that was cut had what it gets alone, so far."""
  if sent.request.config.beams > 1:
    return  # what has finished by then may be no longer among the best later
  for output, want in zip(sent.outputs, alone):
    assert output.ids == want.ids[: len(output.ids)]
    if output.reason in ('stop', 'length'):
      assert output.ids == want.ids


def check_top(model: api.Model, sent: list[Sent]) -> int:
  """Checks the likeliest tokens against decoding without a cache.

  Returns how many positions were compared.
  """
  net, size = AlexaTM(model.config), model.config.positions
  read = jax.jit(lambda *ids: jax.nn.log_softmax(net.apply(
    {'params': model.params}, *ids, enable_dropout=False
  )))  # fmt: skip
  fill = model.config.pad_id
  pad = lambda ids: np.array([[*ids, *[fill] * (size - len(ids))]], np.int32)
  count = 0
  for x in sent:
    if not x.request.top:
      continue
    for output in x.outputs:
      begun = [*x.request.prefix, *output.ids]
      logs = np.asarray(read(pad(x.request.ids), pad(begun[:size])))[0]
      for at, pairs in enumerate(output.top, len(x.request.prefix) - 1):
        ids, values = zip(*pairs)
        assert len(ids) == x.request.top
        best = np.sort(logs[at])[::-1][: len(ids)]
        np.testing.assert_allclose(values, best, atol=2e-4)
        np.testing.assert_allclose(logs[at][list(ids)], best, atol=2e-4)
        count += 1
  return count
