"""What HTTP answers is what `Model.complete` and `score` give."""

import time

import openai
import pytest

from atm.inference import sampling
from atm.serve.engine import Engine
from atm.serve.engine_sizes import EngineSizes
from atm.serve.service import Service
from serve.loopback import serve

pytestmark = pytest.mark.processes  # the engine's programs take a while


@pytest.fixture(scope='module')
def engine(byte_model):
  engine = Engine(
    byte_model, EngineSizes(slots=4, beam_groups=1), say=lambda text: None
  )
  engine.start()
  yield engine
  engine.close()


@pytest.fixture(scope='module')
def client(byte_model, engine):
  with serve(Service(byte_model, engine, 'tiny', phase='ready')) as url:
    yield openai.OpenAI(base_url=f'{url}/v1', api_key='none', max_retries=0)


def test_completions_are_those_of_the_model(client, byte_model):
  config = sampling.Config(max_tokens=20)
  prompts = ['a plain text', 'and another']
  alone = byte_model.complete(prompts, config=config)
  answer = client.completions.create(
    model='tiny', prompt=prompts, temperature=0, max_tokens=20, logprobs=1
  )
  for choice, (expected,) in zip(answer.choices, alone, strict=True):
    assert choice.text == expected.text
    logs = choice.logprobs.token_logprobs
    assert logs == pytest.approx(expected.log_probabilities, abs=1e-4)
  stream = client.completions.create(
    model='tiny', prompt=prompts, temperature=0, max_tokens=20, stream=True,
    stream_options={'include_usage': True},
  )  # fmt: skip
  texts, usage = ['', ''], None
  for event in stream:
    usage = event.usage or usage
    for choice in event.choices:
      texts[choice.index] += choice.text
  assert texts == [x.text for (x,) in alone]
  assert usage.completion_tokens == answer.usage.completion_tokens


def test_samples_depend_on_the_seed_and_are_those_of_the_model(
  client, byte_model
):
  config = sampling.Config(
    max_tokens=12, temperature=0.7, top_k=20, results=2, seed=5
  )
  (alone,) = byte_model.complete(['a plain text'], config=config)
  answer = client.completions.create(
    model='tiny', prompt='a plain text', temperature=0.7, max_tokens=12, n=2,
    seed=5, extra_body={'top_k': 20},
  )  # fmt: skip
  assert [x.text for x in answer.choices] == [x.text for x in alone]


def test_targets_are_scored_as_by_the_model(client, byte_model):
  totals, counts = byte_model.score(['one'] * 2, ['a text', 'no'])
  body = dict(inputs='one', targets=['a text', 'no'])
  answer = client.post('/score', body=body, cast_to=object)
  scores = [x['score'] for x in answer['data']]
  assert scores == pytest.approx(totals.tolist(), abs=1e-3)
  assert [x['token_count'] for x in answer['data']] == counts.tolist()


def test_translations_by_examples_are_those_of_the_model(client, byte_model):
  shots, options = [('no', 'nein')], dict(truncate='start', max_tokens=20)
  alone = byte_model.translate(['one', 'a text'], 'de', shots, **options)
  body = dict(text=['one', 'a text'], target='de', shots=shots, **options)
  answer = client.post('/translate', body=body, cast_to=object)
  assert [x['text'] for x in answer['choices']] == alone


def test_beams_are_those_of_the_model_whole_and_streamed(client, byte_model):
  config = sampling.Config(max_tokens=12, beams=3, results=2)
  (alone,) = byte_model.complete(['a plain text'], config=config)
  body = dict(
    model='tiny', prompt='a plain text', max_tokens=12, n=2, best_of=3,
    extra_body={'use_beam_search': True},
  )  # fmt: skip
  answer = client.completions.create(**body)
  assert [x.text for x in answer.choices] == [x.text for x in alone]
  texts = ['', '']
  for event in client.completions.create(**body, stream=True):
    texts[event.choices[0].index] += event.choices[0].text
  assert texts == [x.text for x in alone]


@pytest.mark.parametrize(
  'field, body',
  [
    ('best_of', dict(best_of=9, extra_body={'use_beam_search': True})),
    ('n', dict(n=5, temperature=1)),
    ('bad_words', dict(extra_body={'bad_words': ['a'] * 99})),
    ('bad_words', dict(extra_body={'bad_words': [[5] * 60]})),
    ('prefix', dict(extra_body={'prefix': [5] * 63})),
    ('prompt', dict(prompt=[5] * 65)),
  ],
)
def test_what_the_engine_has_no_room_for_names_the_field(client, field, body):
  with pytest.raises(openai.BadRequestError) as caught:
    client.completions.create(**{'model': 'tiny', 'prompt': 'a', **body})
  assert caught.value.param == field, caught.value


@pytest.mark.parametrize('stream', [True, False])
def test_rows_of_a_client_that_left_are_free_within_a_call(
  client, engine, monkeypatch, stream
):
  """The engine's calls are made slow, so that an output takes seconds."""
  calls, lane = [], engine._lanes[0]
  turn = lane.take_turn

  def take_turn():
    calls.append(len(lane.taken))
    time.sleep(0.1)
    return turn()

  monkeypatch.setattr(lane, 'take_turn', take_turn)
  body = dict(model='tiny', prompt=['a'] * 40, extra_body={'ignore_eos': True})
  if stream:
    events = client.completions.create(**body, stream=True)
    next(iter(events))
    events.close()
  else:
    with pytest.raises(openai.APITimeoutError):
      client.with_options(timeout=0.3).completions.create(**body)
  before, start = len(calls), time.perf_counter()
  while engine.stats().used_slots or engine.stats().waiting:
    assert time.perf_counter() - start < 9
    time.sleep(0.01)
  assert len(calls) - before <= 2  # 36 of 40 prompts still waited
