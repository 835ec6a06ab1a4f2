"""Several processes of which one is slow, hangs or fails.

Processes have simulated CPU devices and talk over loopback; hooks_of_hosts.py
slows one of them.
"""

import os
import re

import pytest

from atm.train import goodput
from system.hosts_test import ENV, HERE, Processes, settings

pytestmark = pytest.mark.processes


def start(monkeypatch, directory, words, hook, steps, **more) -> Processes:
  """Two processes of one device each, of which one does what a hook says."""
  monkeypatch.setitem(ENV, 'HOST_HOOK', hook)
  path = f'{ENV["PYTHONPATH"]}:{HERE}'
  monkeypatch.setitem(ENV, 'PYTHONPATH', path)
  make = lambda *args, **named: [
    *settings(*args, **named), '--import=hooks_of_hosts'
  ]  # fmt: skip
  rare = dict(LOG_EVERY=10, EVAL_EVERY=1000, SAVE_EVERY=1000)
  return Processes(
    2, 2, directory, words, dict(data=2), steps, make=make, **rare | more
  )


def test_a_host_that_hangs_ends_all_with_their_stacks(
  words, tmp_path, monkeypatch
):
  """Fault seen: one exited first, and the other died without its stacks."""
  run = tmp_path / 'run'
  with start(
    monkeypatch, run, words, '[1, "hang", 100]', 100, DEBUG_HANG=3
  ) as running:
    assert running.wait() == [75, 75]
  for n in (0, 1):
    (line,) = [x for x in running.log(n).splitlines() if 'error' in x]
    begins = r'atm: error: no step has ended for 3 s after step [4-6] \(DEBUG'
    assert re.match(begins, line)
    # The one that sleeps is told from the one that waits for it.
    assert re.search(r'process 1 at atm/train/loop.py:\d+ \(run\)', line)
    assert re.search(r'process 0 at atm/train/metric_logger.py:\d+', line)
    assert f'{run}/hang' in line and len(line) < 500
  names = sorted(os.listdir(run / 'hang'))
  assert [re.sub(r'step-\d', 'step-N', name) for name in names] == [
    'process-0-step-N.txt', 'process-1-step-N.txt', 'step-N.hlo.txt'
  ]  # fmt: skip
  texts = [(run / 'hang' / name).read_text() for name in names]
  assert 'in oversleep' in texts[1] and 'in oversleep' not in texts[0]
  assert 'in _read' in texts[0] and 'Thread 0x' in texts[0]
  assert texts[2].startswith('HloModule') and 'all-reduce' in texts[2]


def test_a_slow_host_is_named_by_the_log_and_the_page(
  words, tmp_path, monkeypatch
):
  """Faults seen: the one that waits was named; both were."""
  run = tmp_path / 'run'
  with start(monkeypatch, run, words, '[1, "sleep", 0.6]', 12) as running:
    assert running.wait() == [0, 0]
  lines = goodput.read_goodput_lines(str(run))
  windows = [line for line in lines if 'hosts' in line]
  assert [(w['step'], w['slow']) for w in windows] == [
    (10, [1]), (12, [])
  ]  # fmt: skip
  assert [[h['steps'] for h in w['hosts']] for w in windows] == [
    [10, 10], [2, 2]
  ]  # fmt: skip
  waits, slow = windows[0]['hosts']
  assert (waits['process'], slow['process']) == (0, 1)
  # In lockstep both take as long.
  assert abs(waits['seconds'] - slow['seconds']) < 0.2 * slow['seconds']
  assert slow['own'] > 0.6 * 9 > waits['own']
  assert waits['devices'] > slow['devices']
  said = [x for x in running.log(0).splitlines() if 'is slow' in x]
  assert len(said) == 1 and said[0].startswith('step 10: process 1 on ')
  page = (run / 'report.html').read_text()
  assert 'Steps 1 to 10: process 1 on ' in page


def test_all_end_with_the_status_of_the_one_that_fails(
  words, tmp_path, monkeypatch
):
  """Faults seen: 2, which launchers take for a mistake; the note of where the
  run was met the others' step in a collective, and Gloo aborted both.
  """
  run = tmp_path / 'run'
  with start(
    monkeypatch, run, words, '[1, "fail", 0]', 100, SAVE_EVERY=4
  ) as running:
    assert running.wait() == [75, 75]
  lines = running.log(1).splitlines()
  assert lines[0] == 'atm: error: gs://bucket/x: HTTP 503'
  assert 'after step 5 of 100' in lines[1]
  (line,) = [x for x in running.log(0).splitlines() if 'error' in x]
  assert re.match('atm: error: process 1 of this run failed, and says', line)
