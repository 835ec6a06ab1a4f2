"""Several processes whose MODEL_DIR is on gs://, where Orbax itself writes."""

import os

import pytest

from atm import storage
from atm.checkpoint import reader, staged_steps
from system.hosts_test import ENV, STEPS, Processes, settings

from tiny_runs import comparable

pytestmark = pytest.mark.processes

MESH = dict(data=1, fsdp=2, tensor=1)


def read_run(directory) -> tuple:
  """Returns all that a run leaves but clocks; arrays by their checksums."""
  checkpoints = reader.CheckpointReader(directory)
  checkpoints.verify(STEPS)
  meta, sums = checkpoints._unsealed(STEPS)
  steps = checkpoints.all_steps()
  checkpoints.close()
  return steps, meta['data'], sums, comparable(directory)


def test_two_processes_killed_and_resumed_are_those_of_a_local_folder(
  words, make_bucket, tmp_path, monkeypatch
):
  """Of the first two, the last save is not whole; then one reads their steps.

  Faults seen: TensorFlow's file system, which knows no emulator; process 1
  takes a step that it has saved for unfinished, when it is to be verified.
  """
  run = f'{make_bucket("gs")}/run'
  monkeypatch.setitem(
    ENV, 'STORAGE_EMULATOR_HOST', os.environ['STORAGE_EMULATOR_HOST']
  )
  make = lambda log, *args, **more: settings(run, *args, **more, KEEP=2)
  checkpoints = f'{run}/checkpoints'
  listed = lambda n: f'{checkpoints}/{n}/{staged_steps.COMMIT_FILE}'
  with Processes(2, 2, tmp_path / 'a', words, MESH, 1000, make=make) as hosts:
    hosts.until(lambda: storage.is_file(listed(4)))
  steps = [int(n) for n in storage.list_names(checkpoints) if n.isdigit()]
  *_, before, last = sorted(n for n in steps if storage.is_file(listed(n)))
  storage.remove(listed(last))
  with Processes(2, 2, tmp_path / 'b', words, MESH, STEPS, make=make) as hosts:
    assert hosts.wait() == [0, 0]
  assert f'resumed from step {before} in {checkpoints}' in hosts.log(0)
  assert 'gcsfs' not in hosts.log(0) + hosts.log(1)
  whole = tmp_path / 'whole'
  with Processes(2, 2, whole, words, MESH, STEPS, KEEP=2) as hosts:
    assert hosts.wait() == [0, 0]
  assert read_run(run) == read_run(str(whole))
