"""Brings what an engine's thread tells into asyncio, until a client leaves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request

from atm.messages import one_line
from atm.serve.api_error import ApiError, refusing
from atm.serve.generation_request import GenerationRequest, RequestUpdate
from atm.serve.generation_settings import PARAMS
from atm.serve.service import RETRY_SECONDS, Service


class ClientGoneError(Exception):
  """Nobody waits for the answer."""


class EngineRun:
  """Requests that an engine works on, for one client.

  Whoever makes one must `close` it, which frees all rows that still run.
  """

  def __init__(
    self, service: Service, requests: Sequence[GenerationRequest],
    client: Request,
  ):  # fmt: skip
    """Submits requests; call it in the event loop.

    Args:
      service: whose engine is asked.
      requests: all are taken, or none.
      client: its body was read.

    Raises:
      ApiError: 400, 429 or 503.
    """
    self._count = len(requests)
    self._news = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(index: int, update: RequestUpdate) -> None:
      with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(self._news.put_nowait, (index, update))

    self._ticket = _submit(service, requests, deliver)
    self._watcher = asyncio.create_task(self._watch(client))

  async def _watch(self, client: Request) -> None:
    """Notes when the client leaves."""
    while (await client.receive())['type'] != 'http.disconnect':
      pass
    self._ticket.cancel()  # at once, even if nobody reads the news
    self._news.put_nowait(None)

  async def updates(self) -> AsyncIterator[tuple[int, RequestUpdate]]:
    """Yields (number of the request, what is new), until all have ended.

    Raises:
      ApiError: 500 where the engine failed, 503 where it was stopped.
      ClientGoneError: the client left.
    """
    left = self._count
    while left:
      news = await self._news.get()
      if news is None:
        raise ClientGoneError
      update = news[1]
      if update.error is not None:
        raise ApiError(500, f'the engine failed: {one_line(update.error)}')
      if any(x.reason == 'cancelled' for x in update.outputs or ()):
        raise _closed('draining')
      left -= update.outputs is not None
      yield news

  def close(self) -> None:
    """Frees what still runs."""
    self._watcher.cancel()
    self._ticket.cancel()


def _submit(service: Service, requests, deliver):
  """Returns the engine's ticket, or raises ApiError."""
  from atm.serve.engine import EngineClosedError, QueueFullError

  try:
    with refusing(PARAMS):
      return service.engine.submit(requests, deliver)
  except QueueFullError as e:
    raise ApiError(
      429, str(e), code='queue_full',
      headers={'retry-after': str(RETRY_SECONDS['queue'])},
    ) from e  # fmt: skip
  except EngineClosedError as e:
    raise _closed('draining') from e


def _closed(state: str) -> ApiError:
  """Returns the error of a server that takes no requests."""
  return ApiError(
    503, f'the server is {state}', code=state,
    headers={'retry-after': str(RETRY_SECONDS['draining'])},
  )  # fmt: skip
