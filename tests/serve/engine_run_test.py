"""What an engine tells reaches a client, and a client's leaving the engine."""

import asyncio
import time
import types

import pytest

from atm.serve import engine_run
from atm.serve.api_error import ApiError
from atm.serve.engine_run import ClientGoneError, EngineRun
from atm.serve.generation_request import GenerationRequest
from serve.fake_engine import FakeEngine

REQUESTS = [GenerationRequest((5, 6), (2,)), GenerationRequest((7,), (2,))]


class Client:
  """A request whose client leaves when `gone` is set."""

  def __init__(self):
    self.gone = asyncio.Event()

  async def receive(self):
    await self.gone.wait()
    return {'type': 'http.disconnect'}


async def read(service, client, requests=REQUESTS) -> list:
  run = EngineRun(service, requests)
  await run.start(client)
  try:
    return [news async for news in run.updates()]
  finally:
    run.close()


def test_updates_come_until_all_have_ended(service):
  async def go():
    return await read(service, Client())

  news = asyncio.run(go())
  ended = [i for i, update in news if update.outputs is not None]
  assert sorted(ended) == [0, 1] and news[-1][1].outputs is not None


def test_a_client_that_leaves_cancels_at_once(service, byte_model):
  service.engine = FakeEngine(byte_model, seconds=0.05)

  async def go():
    client = Client()
    asyncio.get_running_loop().call_later(0.1, client.gone.set)
    start = time.perf_counter()
    with pytest.raises(ClientGoneError):
      await read(service, client)
    return start

  start = asyncio.run(go())
  assert 0.05 < service.engine.cancelled[0] - start < 0.5


def test_errors_of_the_engine_have_their_status(service, byte_model):
  def status(requests=REQUESTS) -> int:
    async def go():
      with pytest.raises(ApiError) as caught:
        await read(service, Client(), requests)
      return caught.value

    error = asyncio.run(go())
    assert error.status == 400 or error.status == 500 or error.headers
    return error.status

  service.engine = FakeEngine(byte_model, queue=1)
  assert status() == 429
  assert status([GenerationRequest((5,) * 99, (2,))]) == 400
  service.engine.is_closed = True
  assert status() == 503
  service.engine = FakeEngine(byte_model)
  service.engine.error = 'the device\nis lost'
  assert status() == 500


def test_what_the_engine_cancels_by_itself_is_a_503(service):
  async def go():
    engine = types.SimpleNamespace(submit=service.engine.submit)
    service.engine.seconds = 0.05
    tickets = []
    engine.submit = lambda *a: (
      tickets.append(service.engine.submit(*a)) or (tickets[0])
    )
    asyncio.get_running_loop().call_later(0.1, lambda: tickets[0].cancel())
    other = types.SimpleNamespace(engine=engine)
    with pytest.raises(ApiError, match='draining'):
      await read(other, Client())

  asyncio.run(go())


def test_news_come_even_where_there_are_none(service, monkeypatch):
  monkeypatch.setattr(engine_run, 'QUIET_SECONDS', 0.02)
  service.engine.seconds = 0.1

  async def go():
    return await read(service, Client())

  news = asyncio.run(go())
  assert news[0] is engine_run.WAITING and news[-1][1].outputs is not None
