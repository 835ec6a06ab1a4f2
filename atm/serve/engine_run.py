"""Brings what an engine's thread tells into asyncio, until a client leaves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request

from atm.messages import one_line
from atm.serve.api_error import ApiError, convert_errors
from atm.serve.generation_request import GenerationRequest, RequestUpdate
from atm.serve.generation_settings import PARAMS
from atm.serve.service import RETRY_SECONDS, Service

QUIET_SECONDS = 15
WAITING = -1, RequestUpdate()  # nothing is new


class ClientGoneError(Exception):
  """Nobody waits for the answer."""


class EngineRun:
  """Requests that an engine works on, for one client.

  Whoever makes one must `close` it, which frees all rows that still run.
  """

  def __init__(self, service: Service, requests: Sequence[GenerationRequest]):
    """Prepares a run; see `start`."""
    self._service, self._requests = service, requests
    self._news = asyncio.Queue()
    self._ticket = self._watcher = self._timer = None

  async def start(self, client: Request) -> None:
    """Submits the requests: all are taken, or none.

    Args:
      client: its body was read.

    Raises:
      ApiError: 400, 429 or 503.
    """
    loop = asyncio.get_running_loop()

    def deliver(index: int, update: RequestUpdate) -> None:
      with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(self._news.put_nowait, (index, update))

    # In a thread, for the engine may have to look at large tables.
    self._ticket = await asyncio.to_thread(
      _submit, self._service, self._requests, deliver
    )
    self._watcher = asyncio.create_task(self._watch(client))
    self._wait()

  def _wait(self) -> None:
    """Adds, every while, news that there are none."""
    loop = asyncio.get_running_loop()
    self._timer = loop.call_later(QUIET_SECONDS, self._tell_waiting)

  def _tell_waiting(self) -> None:
    self._news.put_nowait(WAITING)
    self._wait()

  async def _watch(self, client: Request) -> None:
    """Notes when the client leaves."""
    while (await client.receive())['type'] != 'http.disconnect':
      pass
    self._ticket.cancel()  # at once, even if nobody reads the news
    self._news.put_nowait(None)

  async def updates(self) -> AsyncIterator[tuple[int, RequestUpdate]]:
    """Yields (number of the request, what is new), until all have ended.

    And WAITING every QUIET_SECONDS, for balancers cut connections on which
    nothing is sent for long.

    Raises:
      ApiError: 500 where the engine failed, 503 where it was stopped.
      ClientGoneError: the client left.
    """
    left = len(self._requests)
    while left:
      news = await self._news.get()
      if news is None:
        raise ClientGoneError
      if news is WAITING:
        yield news
        continue
      update = news[1]
      if update.error is not None:
        raise ApiError(500, f'the engine failed: {one_line(update.error)}')
      if any(x.reason == 'cancelled' for x in update.outputs or ()):
        raise _closed('draining')
      left -= update.outputs is not None
      yield news

  def close(self) -> None:
    """Frees what still runs."""
    for part in (self._timer, self._watcher, self._ticket):
      if part is not None:
        part.cancel()


def _submit(service: Service, requests, deliver):
  """Returns the engine's ticket, or raises ApiError."""
  from atm.serve.engine import EngineClosedError, QueueFullError

  try:
    with convert_errors(PARAMS):
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
