"""Signals that end a command, and what it says of the work that is left.

A signal raises `Terminated` in the main thread, so what is half done is cleaned
up. A main thread that is inside a library (a compilation, the training of a
vocabulary) would hear of it when that returns: a second thread ends the process
then.
"""

import contextlib
import os
import signal
import sys
import threading
import time

from atm.messages import describe_work

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 5.0  # seconds that the main thread has to hear of a signal


class Terminated(KeyboardInterrupt):
  """Raised in the main thread by a signal.

  Attributes:
    number: the signal's.
    note: what was under way, see `messages.note_work`.
  """

  def __init__(self, number: int, note: str):
    super().__init__(number)
    self.number, self.note = number, note


_heard = [0.0]  # when the main thread heard of a signal last


@contextlib.contextmanager
def catch_signals(at_once: bool = True):
  """Lets signals raise `Terminated` in the main thread, while open.

  Args:
    at_once: end the process where the main thread does not hear of one.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  # `nohup` starts a command with SIGHUP ignored.
  mine = [n for n in HANDLED if signal.getsignal(n) != signal.SIG_IGN]
  before = {number: signal.signal(number, _raise) for number in mine}
  try:
    with _watched() if at_once else contextlib.nullcontext():
      yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def _watched():
  """Lets another thread hear of signals, too, while open."""
  read, write = os.pipe()
  os.set_blocking(write, False)
  threading.Thread(target=_watch, args=[read], daemon=True).start()
  before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(write)


@contextlib.contextmanager
def note_signals():
  """Notes the first signal, in the list that it yields, while open.

  A second one ends the process at once.
  """
  heard: list[int] = []

  def note(number: int, frame) -> None:
    if heard:
      # The main thread may be inside of a print.
      os.write(2, f'{format_end(number, "at once")}\n'.encode())
      os._exit(128 + number)
    heard.append(number)

  if threading.current_thread() is not threading.main_thread():
    yield heard
    return
  mine = [n for n in HANDLED if signal.getsignal(n) != signal.SIG_IGN]
  before = {number: signal.signal(number, note) for number in mine}
  try:
    yield heard
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _raise(number: int, frame) -> None:
  _heard[0] = time.monotonic()
  if number != signal.SIGINT:  # a second ends the process, whatever it does
    signal.signal(number, signal.SIG_DFL)
  raise Terminated(number, describe_work())


def _watch(fd: int) -> None:
  """Ends the process where the main thread does not hear of a signal."""
  with open(fd, 'rb', buffering=0) as numbers:
    while number := numbers.read(1):
      came = time.monotonic() - 1  # it may have been heard before this
      # A training run has handlers of its own, and stops after its step.
      is_mine = lambda: signal.getsignal(number[0]) is _raise
      if not is_mine():
        continue
      time.sleep(PATIENCE)
      if _heard[0] < came and is_mine():
        with contextlib.suppress(BaseException):
          line = format_end(number[0], describe_work())
          print(line, file=sys.stderr, flush=True)
        os._exit(128 + number[0])


def format_end(number: int, note: str) -> str:
  """Formats the line that a command ends with."""
  name = signal.Signals(number).name
  return f'atm: stopped by {name}' + (f': {note}' if note else '')
