"""Signals that end a run between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading


@contextlib.contextmanager
def stop_signals():
  """Yields a list that is non-empty once SIGINT or SIGTERM has come.

  A second signal acts as it did before.
  """
  came: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield came
    return
  before = {}

  def handler(number, frame):
    came.append(number)
    signal.signal(number, before[number])

  for number in (signal.SIGINT, signal.SIGTERM):
    before[number] = signal.signal(number, handler)
  try:
    yield came
  finally:
    for number, old in before.items():
      signal.signal(number, old)
