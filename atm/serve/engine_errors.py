"""Why an engine takes no requests."""


class EngineClosedError(RuntimeError):
  """The engine takes no requests: it starts, drains, is closed or failed."""


class QueueFullError(RuntimeError):
  """More requests wait than EngineSizes.queue.

  Attributes:
    waiting: requests that wait.
    limit: how many may.
  """

  def __init__(self, waiting: int, limit: int):
    super().__init__(f'{waiting} requests wait: at most {limit} may')
    self.waiting, self.limit = waiting, limit
