"""A run that hangs ends, and tells where it was; one that goes on does not.

Faults seen: an evaluation counted from the step before it; compiling counted;
a process that held Python's lock was never ended.
"""

import os
import re
import subprocess
import sys
import time

import pytest

from atm import storage
from atm.train import hang_watchdog

# Reads a folder, what to do, and GRACE_S.
CHILD = """
import ctypes, sys, time
from atm import storage
from atm.train import hang_watchdog
hang_watchdog.GRACE_S = float(sys.argv[3])
with hang_watchdog.HangWatchdog(sys.argv[1], 1) as watchdog:
  watchdog.program = lambda: 'HloModule step'
  watchdog.touch(1234)
  if sys.argv[2] == 'sleep':
    time.sleep(60)
  ctypes.PyDLL(None).sleep(60)  # holds the lock of Python
"""


def end(folder, what, grace=1) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', CHILD, str(folder), what, str(grace)],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True, text=True, timeout=60,
  )  # fmt: skip


def test_a_process_that_hangs_writes_its_stacks_and_exits(tmp_path):
  done = end(tmp_path, 'sleep')
  assert done.returncode == hang_watchdog.HANG_STATUS == 75
  (line,) = done.stderr.splitlines()
  assert re.match(
    r'atm: error: no step has ended for 1 s after step 1,234 \(DEBUG_HANG\): '
    r'process 0 at <string>:\d+ \(<module>\); stacks and the step are in ',
    line,
  )
  assert sorted(os.listdir(tmp_path / 'hang')) == [
    'process-0-step-1234.txt', 'step-1234.hlo.txt'
  ]  # fmt: skip
  stacks = (tmp_path / 'hang' / 'process-0-step-1234.txt').read_text()
  assert 'MainThread' in stacks and 'File "<string>", line' in stacks
  assert (tmp_path / 'hang' / 'step-1234.hlo.txt').read_text() == (
    'HloModule step'
  )


def test_a_process_that_holds_the_lock_ends_too(tmp_path):
  assert end(tmp_path, 'lock').returncode == 1
  (name,) = os.listdir(tmp_path / 'hang')
  assert name.startswith('stuck-process-0-')
  assert 'File "<string>", line' in (tmp_path / 'hang' / name).read_text()


def test_a_run_that_goes_on_is_left_alone(tmp_path, monkeypatch):
  ended = []
  monkeypatch.setattr(
    hang_watchdog.HangWatchdog, '_end', lambda watchdog: ended.append(1)
  )
  with hang_watchdog.HangWatchdog(str(tmp_path), 0.3) as watchdog:
    for step in range(5):
      time.sleep(0.15)
      watchdog.touch(step)
    with watchdog.paused():
      time.sleep(0.5)
    with watchdog.paused(compiles=False):
      time.sleep(0.15)
    assert not ended
  assert os.listdir(tmp_path) == []


def test_it_is_off_by_default(tmp_path):
  with hang_watchdog.HangWatchdog(str(tmp_path), None) as watchdog:
    watchdog.touch(1)
    with watchdog.paused():
      pass
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  'places, text',
  [
    ({0: 'a:1 (f)'}, 'process 0 at a:1 (f)'),
    (
      {n: 'b:2 (g)' if n == 3 else 'a:1 (f)' for n in range(64)},
      'process 3 at b:2 (g), processes 0-2, 4-63 at a:1 (f)',
    ),
    ({0: 'a:1 (f)', 1: 'silent'}, 'process 0 at a:1 (f), process 1 silent'),
  ],
)
def test_those_who_wait_are_told_apart(places, text):
  assert hang_watchdog.describe_places(places) == text


def test_stacks_may_go_to_a_bucket(make_bucket, tmp_path, monkeypatch):
  """Fault seen: a folder gs: of this machine."""
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  folder = make_bucket('gs')
  assert end(folder, 'sleep', 30).returncode == hang_watchdog.HANG_STATUS
  assert storage.list_names(f'{folder}/hang') == [
    'process-0-step-1234.txt', 'step-1234.hlo.txt'
  ]  # fmt: skip
  assert os.listdir(tmp_path) == []
