"""OpenAI's own client against a server on loopback, unchanged."""

import asyncio
import time

import openai
import pytest

from atm.serve.service import Service
from serve.fake_engine import FakeEngine
from serve.loopback import serve


@pytest.fixture(scope='module')
def service(byte_model):
  engine = FakeEngine(byte_model)
  return Service(byte_model, engine, 'tiny', api_key='secret', phase='ready')


@pytest.fixture(scope='module')
def address(service):
  with serve(service) as url:
    yield url


@pytest.fixture
def client(address):
  return openai.OpenAI(
    base_url=f'{address}/v1', api_key='secret', max_retries=0
  )


def test_completions_come_whole_and_as_a_stream(client):
  body = dict(model='tiny', prompt=['one', 'a'], logprobs=1, n=2, seed=3)
  answer = client.completions.create(**body)
  texts, logs, usage = [''] * 4, [[] for _ in range(4)], None
  for event in client.completions.create(
    **body, stream=True, stream_options={'include_usage': True}
  ):
    usage = event.usage or usage
    for choice in event.choices:
      texts[choice.index] += choice.text
      logs[choice.index] += choice.logprobs.token_logprobs
  assert texts == [x.text for x in answer.choices]
  assert logs == [x.logprobs.token_logprobs for x in answer.choices]
  assert usage == answer.usage


def test_chat_is_answered_whole_and_as_a_stream(client):
  body = dict(
    model='tiny', messages=[{'role': 'user', 'content': 'a plain text'}],
    temperature=0, logprobs=True, top_logprobs=2,
  )  # fmt: skip
  whole = client.chat.completions.create(**body)
  parts = list(client.chat.completions.create(**body, stream=True))
  text = ''.join(x.choices[0].delta.content or '' for x in parts)
  (choice,) = whole.choices
  assert text == choice.message.content and choice.message.role == 'assistant'
  assert len(choice.logprobs.content) == whole.usage.completion_tokens
  with client.chat.completions.stream(**body) as stream:
    assert stream.get_final_completion().choices[0].message.content == text


def test_the_asynchronous_client_streams_many_at_once(address):
  async def ask(client, prompt):
    stream = await client.completions.create(
      model='tiny', prompt=prompt, temperature=0, max_tokens=9, stream=True
    )
    return ''.join([e.choices[0].text async for e in stream])

  async def go():
    async with openai.AsyncOpenAI(
      base_url=f'{address}/v1', api_key='secret', max_retries=0
    ) as client:
      models = [model.id async for model in client.models.list()]
      prompts = ['plain ' * (1 + i % 3) for i in range(12)]
      texts = await asyncio.gather(*(ask(client, x) for x in prompts))
      return models, texts

  models, texts = asyncio.run(go())
  assert models == ['tiny']
  assert all(text == texts[i % 3] for i, text in enumerate(texts))


def test_errors_are_the_clients_own(client, address, service, byte_model):
  create = client.completions.create
  with pytest.raises(openai.BadRequestError) as caught:
    create(model='tiny', prompt='a', temperature=-1)
  assert caught.value.param == 'temperature'
  with pytest.raises(openai.NotFoundError, match='tiny'):
    create(model='tinny', prompt='a')
  with pytest.raises(openai.AuthenticationError):
    openai.OpenAI(base_url=f'{address}/v1', api_key='x').models.list()
  engine, service.engine = service.engine, FakeEngine(byte_model, queue=1)
  try:
    with pytest.raises(openai.RateLimitError) as limited:
      create(model='tiny', prompt=['a', 'b'])
    assert limited.value.response.headers['retry-after'] == '1'
    service.engine.error = 'the device is lost'
    with pytest.raises(openai.InternalServerError, match='device is lost'):
      create(model='tiny', prompt='a')
    with pytest.raises(openai.APIError, match='device is lost'):
      list(create(model='tiny', prompt='a', stream=True))
  finally:
    service.engine = engine


@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_leaves_frees_its_rows_at_once(
  address, service, byte_model, stream
):
  """On a real connection, with a token each 50 ms."""
  fake = FakeEngine(byte_model, seconds=0.05)
  engine, service.engine = service.engine, fake
  try:
    client = openai.OpenAI(
      base_url=f'{address}/v1', api_key='secret', max_retries=0,
      timeout=0.4 if not stream else 9,
    )  # fmt: skip
    ask = lambda: client.completions.create(
      model='tiny', prompt='a', max_tokens=60, stream=stream,
      extra_body={'ignore_eos': True},
    )  # fmt: skip
    if stream:
      events = ask()
      next(iter(events))
      events.close()
    else:
      with pytest.raises(openai.APITimeoutError):
        ask()
    start = time.perf_counter()
    while not fake.cancelled and time.perf_counter() < start + 3:
      time.sleep(0.01)
    assert fake.cancelled and time.perf_counter() - start < 0.5
  finally:
    service.engine = engine
