"""Processes that end with the one that failed; whole runs: hosts_test."""

import threading

import pytest

from atm.cli import main
from atm.parallel import distributed, failures
from atm.storage.client import PassingError


@pytest.fixture
def shown(monkeypatch):
  """What each of three processes has shown; this one is process 1."""
  shown = {}
  monkeypatch.setattr(distributed, '_stage', 'met')
  monkeypatch.setattr(distributed, 'process_share', lambda: (1, 3))
  monkeypatch.setattr(
    distributed, 'publish', lambda name, value: shown.update({1: value})
  )
  monkeypatch.setattr(
    distributed, 'collect_published', lambda name: dict(shown)
  )
  monkeypatch.setattr(failures, 'HEAR_S', 0.2)
  return shown


def test_the_first_to_fail_shows_its_status(shown, capsys):
  assert failures.find_failure() is None
  assert main.report_error(PassingError('gs://b/x: 503'), ['pretrain']) == 75
  assert shown == {1: 75} and failures.find_failure() is None
  assert capsys.readouterr().err == 'atm: error: gs://b/x: 503\n'


def test_whoever_fails_after_another_ends_with_its_status(shown, capsys):
  shown[2] = 75
  lost = OSError('the checkpoint of step 4 could not be saved')
  assert main.report_error(lost, ['pretrain']) == 75
  text = capsys.readouterr().err
  assert text.startswith('atm: error: process 2 of this run failed, and says')
  assert text.endswith('75. Here: OSError: the checkpoint of step 4 could not '
                       'be saved\n')  # fmt: skip
  assert 1 not in shown


def test_who_is_told_by_another_waits_for_its_status(shown, capsys):
  told = distributed.OtherProcessError('process 0: no disk')
  assert main.report_error(told, ['pretrain']) == failures.UNKNOWN
  shown[0] = 2
  assert main.report_error(told, ['pretrain']) == 2
  assert not capsys.readouterr().err


def test_what_follows_from_a_killed_process_is_no_mistake(shown, capsys):
  """Fault seen: a save that misses a host ends with 2, as of a setting."""
  for text, status in (
    ('UNKNOWN: Gloo AllGather failed: Connection closed by peer', 1),
    ('RESOURCE_EXHAUSTED: No space left on device', 2),
  ):
    save = OSError('the checkpoint of step 4 could not be saved')
    save.__cause__ = ValueError(text)
    assert main.report_error(save, ['pretrain']) == status
    assert shown == {1: status}


def test_who_hangs_is_ended(shown, monkeypatch, capsys):
  ended = []
  monkeypatch.setattr(distributed, 'exit_process', ended.append)
  shown[0] = 75
  failures._watch(threading.Event())
  assert ended == [75]
  assert 'process 0 of this run failed' in capsys.readouterr().err


def test_nobody_asks_while_a_process_leaves(shown, monkeypatch):
  """Fault seen: a run that was done aborted, asked while JAX shut down."""
  calls, asked = [], threading.Event()

  def collect(name):
    asked.set()
    return dict(shown)

  monkeypatch.setattr(distributed, 'collect_published', collect)
  monkeypatch.setattr(distributed, 'call_before_leaving', calls.append)
  before = threading.active_count()
  failures.watch_others()
  assert asked.wait(5) and threading.active_count() == before + 1
  (stop,) = calls
  stop()
  assert threading.active_count() == before


def test_a_store_of_statuses_that_has_gone_is_no_failure(monkeypatch):
  def gone(*args):
    raise RuntimeError('UNAVAILABLE')

  monkeypatch.setattr(distributed, 'collect_published', gone)
  monkeypatch.setattr(distributed, 'publish', gone)
  assert failures.find_failure() is None
  failures.show_failure(2)
