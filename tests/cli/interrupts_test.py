"""Signals that end a command: raised, noted, and heard inside libraries."""

import os
import signal
import subprocess
import sys
import time

import pytest

from atm import messages
from atm.cli import interrupts

BUSY = """
import hashlib, os, signal, sys, threading
from atm import messages
from atm.cli import interrupts
interrupts.PATIENCE = 0.2
with interrupts.catch_signals(), messages.note_work(lambda: '3 of 4 are left'):
  print('ready', flush=True)
  if sys.argv[1] == 'deferred':
    signal.signal(signal.SIGTERM, lambda *_: None)
  hashlib.pbkdf2_hmac('sha256', b'x', b'x', 10**7)  # without the GIL
"""


@pytest.mark.parametrize('number', interrupts.HANDLED)
def test_a_signal_is_raised_with_the_innermost_note(number):
  before = signal.getsignal(number)
  with (
    pytest.raises(interrupts.Terminated) as raised,
    interrupts.catch_signals(),
  ):
    with messages.note_work(lambda: 'outer'):
      with messages.note_work(lambda: 'inner'):
        signal.raise_signal(number)
  assert raised.value.number == number and raised.value.note == 'inner'
  assert messages.describe_work() == '' and signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so():
  """As `nohup` starts a command."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with interrupts.catch_signals():
      signal.raise_signal(signal.SIGHUP)
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_note_that_fails_is_none():
  with messages.note_work(lambda: 1 / 0):
    assert messages.describe_work() == ''
  assert interrupts.format_end(signal.SIGTERM, '') == 'atm: stopped by SIGTERM'


@pytest.mark.parametrize('mode', ['plain', 'deferred'])
def test_a_signal_inside_a_library_ends_the_process(mode):
  """Fault seen: heard of when the library returned, minutes later."""
  with subprocess.Popen(
    [sys.executable, '-c', BUSY, mode],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
  ) as child:
    assert child.stdout.readline() == 'ready\n'
    time.sleep(0.3)  # until it is inside
    child.send_signal(signal.SIGTERM)
    if mode == 'deferred':
      with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.8)
      child.kill()
      return
    assert child.wait(20) == 128 + signal.SIGTERM
    said = child.stderr.read()
    assert said == 'atm: stopped by SIGTERM: 3 of 4 are left\n'


@pytest.mark.parametrize('number', interrupts.HANDLED)
def test_a_signal_is_noted_and_raises_nothing(number):
  before = signal.getsignal(number)
  with interrupts.note_signals() as heard:
    assert not heard
    signal.raise_signal(number)
    assert heard == [number]
  assert signal.getsignal(number) == before


def test_a_second_signal_ends_the_process_at_once():
  code = (
    'import signal; from atm.cli import interrupts\n'
    'with interrupts.note_signals():\n'
    '  signal.raise_signal(signal.SIGTERM)\n'
    '  signal.raise_signal(signal.SIGTERM)\n'
    '  print("never")'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.returncode == 128 + signal.SIGTERM and not done.stdout
  assert done.stderr == 'atm: stopped by SIGTERM: at once\n'
