"""What a request gets does not depend on who is beside it.

1,000 random requests, greedy, sampled and by beams, with random settings: they
come at random moments, some are cancelled. Each gets the ids that
`Model.complete` gives it alone, and nothing is compiled for any of them. Where
ids differ, parameters that differ by 1e-6 of themselves have to change those of
the model alone, too: rounding decides there.
"""

import contextlib
import dataclasses
import os

import jax
import numpy as np
import pytest
from public_folders import PUBLIC

import atm
from atm.inference import api, sampling
from atm.model import parameters
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.serve.engine import Engine, EngineSizes
from serve import random_requests
from serve.random_requests import Case, Profile

from small_models import make_ending_model

MOST_NEAR_TIES = 0.01  # of all requests


@pytest.fixture
def compiled():
  """A list that has an entry for each program that is traced or compiled."""
  events = []

  def listen(name, seconds, **others):
    if name.startswith('/jax/core/compile'):
      events.append(name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)


def serve(engine, cases: list[Case], compiled: list) -> list:
  """Returns what an engine told of cases; it may compile nothing for them."""
  requests = [case.build(engine.model) for case in cases]
  jax.jit(lambda x: x + 1)(1)
  assert compiled  # by the function above, which is new
  del compiled[:]
  sent = random_requests.send_at_random(engine, requests, 0)
  assert engine.failure is None and compiled == []
  assert engine.stats().used_slots == engine.stats().waiting == 0
  return sent


@contextlib.contextmanager
def start_engine(model: api.Model):
  """Yields an engine with more room than that of quick tests."""
  engine = Engine(
    model, EngineSizes(slots=8, queue=1000), say=lambda text: None
  )
  engine.start()
  yield engine
  engine.close()


def compare(model, cases, sent, alone) -> int:
  """Compares what was told with what the model gives; returns near ties."""
  near = 0
  for case, mine, want in zip(cases, sent, alone, strict=True):
    if random_requests.is_cut(mine):
      assert mine.is_cancelled or case.seconds
      random_requests.check_cut(mine, want)
    elif random_requests.is_alike(mine.outputs, want):
      random_requests.check_sent(mine, want, model.config.end_id)
    else:
      assert random_requests.is_near_tie(model, case, want), case
      near += 1
  assert near <= MOST_NEAR_TIES * len(cases)
  return near


# Few programs: each of a kind of choice, with all that may be asked of it.
ALL = dict(no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=2)
FREE = dict(
  max_tokens=(9, 16), min_tokens=(0, 5), repetition_penalty=(0.7, 1.6)
)
CUTS = dict(top_k=(5, 40), top_p=(0.5, 0.95), min_p=(0.01, 0.2))
QUICK = [
  Profile({}, dict(max_tokens=(9, 16)), (1, 16), None, (0, 0), ()),
  Profile(
    dict(results=2, **ALL),
    dict(temperature=(0.3, 1.5), seed=(0, 3), **FREE, **CUTS),
    (1, 16), 3, (4, 3), ('a', 'no'),
  ),
  Profile(
    dict(beams=3, results=2, forced_eos=True, **ALL),
    dict(length_penalty=(-0.5, 1.5), **FREE),
    (1, 16), None, (4, 3), ('a', 'no'),
  ),
]  # fmt: skip


def test_requests_get_what_they_would_alone(ending_model, engine, compiled):
  """Few of few kinds; the 1,000 are below."""
  model, rng = ending_model, np.random.default_rng(0)
  cases = [
    random_requests.draw_case(rng, profile, model.config.vocab_size)
    for profile in QUICK * (60 // len(QUICK))
  ]
  sent = serve(engine, cases, compiled)
  alone = [case.run_alone(model) for case in cases]
  compare(model, cases, sent, alone)
  assert random_requests.check_top(model, sent) > 50


@pytest.fixture(scope='module')
def thousand(byte_words):
  """A model, 1,000 random cases, and what it gives each alone."""
  model = make_ending_model(byte_words, positions=160)
  cases = random_requests.draw_cases(model, 0, 1000, 60)
  return model, cases, [case.run_alone(model) for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize('axes', [None, dict(data=2, fsdp=2, tensor=2)])
def test_a_thousand_requests_get_what_they_would_alone(
  thousand, compiled, axes
):
  model, cases, alone = thousand
  served = model
  if axes:
    mesh = mesh_lib.make_mesh(**axes)
    shapes = parameters.abstract_params(
      AlexaTM(model.config), mesh, model.rules
    )
    params = jax.tree.map(
      lambda x, shape: jax.device_put(x, shape.sharding), model.params, shapes
    )
    served = dataclasses.replace(model, mesh=mesh, params=params)
  with start_engine(served) as engine:
    sent = serve(engine, cases, compiled)
  compare(model, cases, sent, alone)


@pytest.mark.slow
def test_languages_of_a_translation_model(compiled, one_device):
  """Its forced token counts as written; the model's own settings count."""
  model = atm.load(os.path.join(PUBLIC, 'nllb'), mesh=one_device)
  cases = random_requests.draw_cases(
    model, 1, 200, 20, languages=('eng_Latn', 'deu_Latn', 'arb_Arab')
  )
  with start_engine(model) as engine:
    sent = serve(engine, cases, compiled)
  compare(model, cases, sent, [case.run_alone(model) for case in cases])


@pytest.mark.slow
def test_only_near_ties_are_left_out(ending_model):
  """Two tokens of the same logits are one, and most requests are none."""
  case = Case([5, 6, 7], 0, 0, None, dict(config=sampling.Config(max_tokens=4)))
  alone = case.run_alone(ending_model)
  assert not random_requests.is_near_tie(ending_model, case, alone)
  (first, *_), other = alone[0].ids, 20
  head = ending_model.params['lm_head']
  params = {**ending_model.params, 'lm_head': head.at[other].set(head[first])}
  tied = dataclasses.replace(ending_model, params=params)
  alone = case.run_alone(tied)
  assert alone[0].ids[0] in (first, other)
  assert random_requests.is_near_tie(tied, case, alone)
