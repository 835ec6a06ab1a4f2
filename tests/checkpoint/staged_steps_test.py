"""Tests checkpoints in object stores: sent whole, then listed; fetched."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from atm import storage
from atm.checkpoint import manager, reader, recovery, staged_steps
from atm.checkpoint.checksums import DamageError

from damage import abstract_like

TREES = {
  'params': {'a': jnp.arange(12.0).reshape(3, 4), 'b': {'c': jnp.ones(5)}},
  'optimizer': {'m': jnp.full((3, 4), 2.0)},
}


@pytest.fixture(autouse=True)
def staging(tmp_path, monkeypatch):
  """Stages into a folder of the test's own."""
  monkeypatch.setattr(staged_steps, 'STAGING', str(tmp_path / 'staging'))
  return tmp_path / 'staging'


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
  """Gives up soon on a store that fails."""
  monkeypatch.setattr('atm.storage.client.TRY_FOR', 0.5)
  monkeypatch.setattr('atm.storage.client.FIRST_WAIT', 0.05)


def save(bucket, *steps, **settings):
  checkpoints = manager.CheckpointManager(bucket, **settings)
  for step in steps:
    checkpoints.save(step, TREES, {'step': step})
  checkpoints.raise_if_unsaved()
  checkpoints.close()


def test_a_step_comes_back(bucket, staging):
  assert reader.latest_step(bucket) is None
  save(bucket, 3, 7)
  assert reader.latest_step(bucket) == 7
  with reader.open_step(bucket, None) as (checkpoints, step):
    assert step == 7 and checkpoints.all_steps() == [3, 7]
    assert checkpoints.meta(3) == {'step': 3}
    found = checkpoints.read_parameter(7, ('b', 'c'))
    np.testing.assert_array_equal(found, TREES['params']['b']['c'])
    # Whoever needs no optimizer does not fetch it.
    local = checkpoints.orbax.local
    assert sorted(x.name for x in (local / '7').iterdir()) == [
      '_CHECKPOINT_METADATA', 'meta', 'params',
    ]  # fmt: skip
    restored = checkpoints.restore(7, abstract_like(TREES))
    np.testing.assert_array_equal(
      restored['optimizer']['m'], TREES['optimizer']['m']
    )
  assert not os.listdir(staging)


def test_older_steps_go_when_the_newest_is_whole(bucket):
  save(bucket, 1, 2, 3, keep=2)
  assert storage.list_names(f'{bucket}/checkpoints') == ['2', '3']


def test_a_step_that_was_not_listed_is_not_there(bucket):
  save(bucket, 1, 2)
  folder = f'{bucket}/checkpoints'
  storage.remove(f'{folder}/2/{staged_steps.COMMIT_FILE}')
  storage.write_bytes(f'{folder}/9/mine', b'')  # no part of a step
  assert reader.latest_step(bucket) == 1
  assert storage.exists(f'{folder}/2/meta')  # a reader cleans up nothing
  save(bucket, 3)
  assert storage.list_names(folder) == ['1', '3', '9']


def test_what_a_killed_process_staged_is_removed(bucket, staging):
  save(bucket, 1)
  (staging / 'dead' / 'steps').mkdir(parents=True)
  (staging / 'dead.lock').write_text('')
  alive = staged_steps._Staging()
  assert sorted(os.listdir(staging)) == sorted(
    [os.path.basename(alive._outer), f'{os.path.basename(alive._outer)}.lock']
  )
  reader.latest_step(bucket)
  assert os.path.isdir(alive.folder)
  alive.remove()


def damage(bucket, step) -> None:
  """Changes the largest object of a step's parameters."""
  folder = f'{bucket}/checkpoints/{step}/params'
  found = storage.find_objects(folder)
  name = max(found, key=lambda name: int(found[name]['size']))
  content = bytearray(storage.read_bytes(f'{folder}/{name}'))
  content[len(content) // 2] ^= 1
  storage.write_bytes(f'{folder}/{name}', bytes(content))


def test_a_damaged_step_is_kept_aside(bucket):
  save(bucket, 1, 2)
  damage(bucket, 2)
  with (
    pytest.raises(DamageError, match='not what was sent.*intact: .1.'),
    reader.open_step(bucket, 2) as (checkpoints, _),
  ):
    checkpoints.restore(2, abstract_like(TREES))
  checkpoints = manager.CheckpointManager(bucket, log=lambda text: None)
  read = lambda step: checkpoints.restore(step, abstract_like(TREES))
  assert recovery.read_newest_intact(checkpoints, read)[0] == 1
  assert storage.list_names(f'{bucket}/checkpoints') == ['1', '2.damaged']
  checkpoints.save(2, TREES, {})
  checkpoints.raise_if_unsaved()
  assert checkpoints.all_steps() == [1, 2]
  checkpoints.close()


def test_a_store_that_fails_loses_nothing(bucket, monkeypatch):
  save(bucket, 1)
  checkpoints = manager.CheckpointManager(bucket)
  with monkeypatch.context() as patch:
    patch.setattr(staged_steps.storage, 'upload_folder', lambda *a, **k: 1 / 0)
    checkpoints.save(2, TREES, {})
    with pytest.raises(manager.SaveError, match='could not be saved'):
      checkpoints.wait_until_finished()
  assert checkpoints.all_steps() == [1]
  checkpoints.close()


def test_a_store_that_is_away_is_no_damage(bucket, monkeypatch):
  save(bucket, 1)
  checkpoints = reader.CheckpointReader(bucket)
  for name in ('STORAGE_EMULATOR_HOST', 'AWS_ENDPOINT_URL'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')
  with pytest.raises(storage.StorageError, match='tries in'):
    checkpoints.meta(1)
  checkpoints.close()
