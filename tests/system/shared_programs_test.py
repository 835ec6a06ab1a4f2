"""Hosts share compiled programs: a restart of a run compiles nothing.

Two processes with simulated CPU devices, whose own caches are empty.
"""

import os
import re
import time

import pytest

from atm import storage
from atm.train import goodput
from system.hosts_test import ENV, Processes, settings

pytestmark = pytest.mark.processes

LOGGED = re.compile(r'^step \d+/', re.M)


def wait_for_writers(folder: str) -> list[str]:
  """Returns a folder's names, once none has come for two seconds."""
  names, before = storage.list_names(folder), None
  while names != before:
    time.sleep(2)
    names, before = storage.list_names(folder), names
  return names


def test_a_restart_compiles_nothing_on_any_host(
  words, tmp_path, monkeypatch, make_bucket
):
  """The second start compiles what reads the checkpoint, the third nothing.

  Faults seen: the first process alone wrote, the second had none of its own;
  a fast machine ended the run while this test waited for a step by its number.
  """
  folder, run = make_bucket('gs'), tmp_path / 'run'
  for name in ('STORAGE_EMULATOR_HOST', 'XLA_FLAGS'):
    monkeypatch.setitem(ENV, name, os.environ[name])
  monkeypatch.setitem(ENV, 'HOME', str(tmp_path / 'home'))
  names = []
  for _ in range(3):
    with Processes(
      2, 2, run, words, dict(data=2), 10**6, make=settings, SAVE_EVERY=4,
      EVAL_EVERY=4, LOG_EVERY=2, COMPILATION_CACHE=folder,
    ) as running:  # fmt: skip
      # Six steps hold what evaluates and saves, wherever the start stood.
      running.until(lambda log=running.log: len(LOGGED.findall(log(0))) >= 3)
      assert 'first step ' in running.log(0)
      names.append(wait_for_writers(folder))
  starts = [
    line['starts']
    for line in goodput.read_goodput_lines(str(run))
    if 'starts' in line
  ]
  assert [[s['process'] for s in each] for each in starts] == [[0, 1]] * 3
  first, _, third = ([s['compiled'] for s in each] for each in starts)
  assert min(first) >= 5 and third == [0, 0]
  assert all(s['cached'] >= 5 and s['seconds'] > 1 for s in starts[2])
  # Nor what evaluates and saves after the first step; each host wrote its own.
  assert names[2] == names[1]
  assert sum(name.startswith('jit_train_step-') for name in names[2]) == 2
