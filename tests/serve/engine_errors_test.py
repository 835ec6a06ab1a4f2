"""An error of the queue says how full it is."""

from atm.serve.engine_errors import QueueFullError


def test_a_full_queue_says_how_many_wait():
  error = QueueFullError(8, 9)
  assert str(error) == '8 requests wait: at most 9 may'
  assert (error.waiting, error.limit) == (8, 9)
