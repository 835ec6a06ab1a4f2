"""Several processes with MODEL_DIR in a store, where Orbax itself writes."""

import os

import pytest

from atm import storage
from atm.checkpoint import reader, staged_steps
from system.hosts_test import ENV, STEPS, Processes, settings

import faulty_proxy
from tiny_runs import comparable

pytestmark = pytest.mark.processes

MESH = dict(data=1, fsdp=2, tensor=1)
SERVERS = {'gs': 'STORAGE_EMULATOR_HOST', 's3': 'AWS_ENDPOINT_URL'}
WRITES = {'gs': 'POST', 's3': 'PUT'}  # how a store's clients send an object


def list_faults(scheme: str) -> list[dict]:
  """Returns faults that Orbax's own requests meet."""
  write = WRITES[scheme]
  return [
    dict(kind='status', code=503, method='GET'),
    dict(kind='status', code={'gs': 429, 's3': 503}[scheme], method=write),
    dict(kind='refuse', method=write),
    dict(kind='drop', method='GET'),
    dict(kind='lose', method=write),
  ]


def read_run(directory) -> tuple:
  """Returns all that a run leaves but clocks; arrays by their checksums."""
  checkpoints = reader.CheckpointReader(directory)
  checkpoints.verify(STEPS)
  meta, sums = checkpoints._unsealed(STEPS)
  steps = checkpoints.all_steps()
  checkpoints.close()
  return steps, meta['data'], sums, comparable(directory)


@pytest.fixture(scope='module')
def whole(words, tmp_path_factory) -> tuple:
  """What a run of two processes leaves in a local folder, without faults."""
  run = tmp_path_factory.mktemp('hosts') / 'whole'
  with Processes(2, 2, run, words, MESH, STEPS, KEEP=2) as hosts:
    assert hosts.wait() == [0, 0]
  return read_run(str(run))


@pytest.mark.parametrize('scheme', storage.SCHEMES)
def test_two_processes_killed_and_resumed_are_those_of_a_local_folder(
  words, whole, make_bucket, object_stores, scheme, tmp_path, monkeypatch
):
  """The last save of the first two is not whole; the next meet faults.

  Faults seen: TensorFlow's file system, which knows no emulator; process 1
  takes a step that it has saved for unfinished, when it is to be verified.
  """
  run = f'{make_bucket(scheme)}/run'
  for name in object_stores:
    monkeypatch.setitem(ENV, name, os.environ[name])
  make = lambda log, *args, **more: settings(run, *args, **more, KEEP=2)
  checkpoints = f'{run}/checkpoints'
  listed = lambda n: f'{checkpoints}/{n}/{staged_steps.COMMIT_FILE}'
  with Processes(2, 2, tmp_path / 'a', words, MESH, 1000, make=make) as hosts:
    hosts.until(lambda: storage.is_file(listed(4)))
  steps = [int(n) for n in storage.list_names(checkpoints) if n.isdigit()]
  *_, before, last = sorted(n for n in steps if storage.is_file(listed(n)))
  storage.remove(listed(last))
  faults = list_faults(scheme)
  with faulty_proxy.Proxy(os.environ[SERVERS[scheme]]) as proxy:
    for fault in faults:
      proxy.fail(**fault, path='optimizer')
    monkeypatch.setitem(ENV, SERVERS[scheme], proxy.url)
    with Processes(
      2, 2, tmp_path / 'b', words, MESH, STEPS, make=make
    ) as hosts:
      assert hosts.wait() == [0, 0]
    for fault in faults:
      assert proxy.count(fault['kind'])
  assert f'resumed from step {before} in {checkpoints}' in hosts.log(0)
  logs = hosts.log(0) + hosts.log(1)
  assert 'gcsfs' not in logs and 'aws' not in logs
  assert read_run(run) == whole
