"""Signals: what is kept, what is given up, and that all hosts stop as one."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from atm.train import held_out_loss, preemption

from tiny_runs import (
  comparable,
  parameters,
)


@pytest.fixture
def heard():
  """Signals that act as ever are counted, not raised."""
  came = []
  before = {
    number: signal.signal(number, lambda n, frame: came.append(n))
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  yield came
  for number, old in before.items():
    signal.signal(number, old)


def raise_both():
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.raise_signal(number)


def test_signals_are_kept_from_the_first_step_on(heard):
  with preemption.SignalHandler() as signals:
    raise_both()
    assert len(heard) == 2 and not signals.stops_after(1)
    signals.listen()
    raise_both()
    assert len(heard) == 2 and signals.stops_after(2)
    raise_both()  # the second of each
    assert len(heard) == 4
  raise_both()
  assert len(heard) == 6


def test_a_terminal_that_closes_saves_as_a_preemption_does():
  """Fault seen: SIGHUP ended a run with all since its last checkpoint.

  `nohup` has it ignored.
  """
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  try:
    with preemption.SignalHandler() as signals:
      signals.listen()
      signal.raise_signal(signal.SIGHUP)
      assert signals.stops_after(1)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with preemption.SignalHandler() as signals:
      signals.listen()
      signal.raise_signal(signal.SIGHUP)
      assert not signals.stops_after(1)
  finally:
    signal.signal(signal.SIGHUP, before)


def test_signals_act_as_ever_while_nothing_can_be_lost(heard):
  with preemption.SignalHandler() as signals:
    signals.listen()
    with signals.at_once():
      raise_both()
      assert len(heard) == 2
    assert not signals.stops_after(1)
    raise_both()
    assert len(heard) == 2 and signals.stops_after(2)


def test_work_is_given_up_for_a_signal(heard):
  done = []

  def work(number=None):
    if number:
      signal.raise_signal(number)
    done.append(number)
    return 'value'

  with preemption.SignalHandler() as signals:
    signals.listen()
    assert signals.breakable(work) == 'value'
    with pytest.raises(preemption.Interrupted):
      signals.breakable(work, signal.SIGTERM)
    with pytest.raises(preemption.Interrupted):  # it came before
      signals.breakable(work)
    work(signal.SIGINT)  # not breakable here
  assert done == [None, signal.SIGINT] and not heard


def test_an_evaluation_given_up_is_made_up(train, tmp_path, monkeypatch):
  """Fault seen: the next process leaves the evaluation out."""
  whole, parts = train.whole(8), tmp_path / 'parts'
  evaluated, call = [], held_out_loss.HeldOutLoss.__call__

  def slow(self, params):
    evaluated.append(1)
    if len(evaluated) == 2:  # the one after step 4
      os.kill(os.getpid(), signal.SIGTERM)
      for _ in range(1000):
        time.sleep(0.1)
    return call(self, params)

  with monkeypatch.context() as patch:
    patch.setattr(held_out_loss.HeldOutLoss, '__call__', slow)
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
      train(parts, 8)
    assert time.perf_counter() - began < 30
  assert [r for r in comparable(parts) if r['step'] == 4] == [
    r for r in comparable(whole) if r['step'] == 4 and 'loss' in r
  ]
  run = train(parts, 8)
  assert any(line.startswith('resumed from step 4') for line in run.lines)
  assert comparable(parts) == comparable(whole)
  a, b = parameters(whole, 8), parameters(parts, 8)
  assert all((a[name] == b[name]).all() for name in a)


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def two_hosts(directory, number):
  """Lines of both hosts of a run; the second gets a signal."""
  here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  root = os.path.dirname(here)
  port, hosts = free_port(), []
  for host in range(2):
    hosts.append(
      subprocess.Popen(
        [sys.executable, f'{here}/hosts.py', str(port), str(host), directory],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, 'PYTHONPATH': root},
      )
    )
  seen = []
  for line in hosts[1].stdout:
    seen.append(line.strip())
    if sum(x.startswith('step') for x in seen) == 3:
      hosts[1].send_signal(number)
      break
  began = time.perf_counter()
  first = hosts[0].communicate(timeout=60)[0].split('\n')
  second = seen + hosts[1].communicate(timeout=60)[0].split('\n')
  assert time.perf_counter() - began < 30
  assert [host.returncode for host in hosts] == [0, 0]
  return [[line for line in x if line] for x in (first, second)]


@pytest.mark.processes
def test_a_signal_on_one_host_stops_all_after_the_same_step(tmp_path):
  """And what both have saved is verified by both.

  Faults seen: each host stops by its own signal; a handler of ours in place of
  JAX's for SIGTERM; Orbax opened `lightweight`, which fails when it subtracts
  the times of two checkpoints after a notice.
  """
  run = str(tmp_path / 'run')
  first, second = two_hosts(run, signal.SIGTERM)
  assert first[-1] == second[-1] and first[-1].startswith('saved ')
  assert first[-2] == second[-2] == 'step ' + first[-1].split()[1]
  again = two_hosts(run, signal.SIGINT)
  restored = f'restored {first[-1].split()[1]} True'
  assert all(restored in lines for lines in again)
  assert again[0][-1] == again[1][-1] != first[-1]
  # Both have verified the newest before the older one was removed.
  assert os.listdir(f'{run}/checkpoints') == [again[0][-1].split()[1]]
