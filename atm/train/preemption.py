"""Signals and preemption notices that end a run between two steps."""

import contextlib
import signal
import threading

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
  """Raised in work that a signal ends."""


class SignalHandler(contextlib.AbstractContextManager):
  """Catches SIGINT, SIGTERM, which clouds send on preemption, and SIGHUP.

  Until `listen` they act as ever: nothing can be lost before the first step.
  After it the first is kept until a step is done; a second acts as ever.
  """

  # Of several hosts all must stop after the same step, though only one may hear
  # of it. JAX does that: its preemption service takes SIGTERM from the start of
  # the process, tells all hosts, and names a step that none has passed yet.
  # Here SIGINT is turned into SIGTERM then.

  def __init__(self):
    self.came: list[int] = []
    self.hosts = jax.process_count()
    self._before: dict = {}
    self._breakable = False

  def __exit__(self, *error) -> None:
    self._restore()

  def listen(self) -> None:
    """Keeps signals from here on, if called in the main thread."""
    if threading.current_thread() is not threading.main_thread():
      return
    of_jax = () if self.hosts == 1 else (signal.SIGTERM,)
    for number in set(SIGNALS).difference(of_jax):
      # `nohup` starts a command with SIGHUP ignored.
      if signal.getsignal(number) != signal.SIG_IGN:
        self._before[number] = signal.signal(number, self._handle)

  def _handle(self, number, frame) -> None:
    if number in self.came:  # a second
      signal.signal(number, self._before[number])
      signal.raise_signal(number)
      return
    self.came.append(number)
    if self.hosts > 1:
      signal.raise_signal(signal.SIGTERM)
    elif self._breakable:
      self._breakable = False
      raise Interrupted

  def _restore(self) -> None:
    while self._before:
      signal.signal(*self._before.popitem())

  @contextlib.contextmanager
  def at_once(self):
    """Lets signals act as ever inside, where everything is saved."""
    self._restore()
    try:
      yield
    finally:
      self.listen()

  def stops_after(self, step: int) -> bool:
    """Tells whether to stop after this step; every host asks at every step."""
    if self.hosts > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return bool(self.came)

  def breakable(self, function, *args):
    """Calls a function; with one host a signal, also earlier, interrupts it.

    Raises Interrupted then.
    """
    if self.hosts > 1:
      return function(*args)
    self._breakable = True
    try:
      if self.came:
        raise Interrupted
      return function(*args)
    finally:
      self._breakable = False
