"""What is read of a checkpoint is what was saved, or is called damaged."""

import collections
import gc
import random

import jax.numpy as jnp
import numpy as np
import pytest

from atm.checkpoint import checksums, manager, reader

from damage import (
  IGNORE_LEFTOVERS,
  abstract_like,
  bytes_of,
  change_a_value,
  damage_file,
  list_files,
  make_trees,
  remove_checksums,
  save_steps,
)

META = {'data': {'step': 5}, 'log': {'sums': {'loss': 0.1}, 'steps': 2}}
FLIPS = 300
pytestmark = IGNORE_LEFTOVERS


@pytest.fixture(autouse=True)
def collected(few_objects):
  """So that they warn here, not in the tests to come."""
  yield
  gc.collect()


def restore_damaged(directory: str, trees: dict) -> str:
  """Tells what a restore of step 5 makes of a damaged file."""
  try:
    made = reader.CheckpointReader(directory)
    meta, found = made.meta(5), made.restore(5, abstract_like(trees))
  except checksums.DamageError:
    return 'detected'
  same = meta == META and bytes_of(found) == bytes_of(trees)
  return 'harmless' if same else 'missed'


def test_opening_warns_of_nothing(tmp_path, caplog):
  """Seen: Orbax's "Given directory is read only", twice, below `atm.load`."""
  save_steps(tmp_path, [5])
  caplog.clear()
  assert reader.CheckpointReader(str(tmp_path)).meta(5)
  assert not caplog.records


def test_no_flip_or_cut_changes_a_value_unseen(tmp_path):
  """300 of them, over all files. Faults seen: arrays not compared (85 of the
  300 come back as other values, unseen); meta without a hash."""
  trees, draw = make_trees(), random.Random(1)
  made = manager.CheckpointManager(str(tmp_path))
  made.save(5, trees, META)
  made.close()
  fates, touched = collections.Counter(), set()
  paths = list_files(tmp_path)
  for _ in range(FLIPS):
    path = draw.choice(paths)
    with damage_file(path, draw):
      found = restore_damaged(str(tmp_path), trees)
    fates[found] += 1
    touched.add(path)
    assert found != 'missed', path
  assert fates['detected'] > FLIPS / 4 and fates['harmless'], fates
  assert touched == set(paths)


@pytest.mark.parametrize(
  'error', [MemoryError(), PermissionError('x'), OSError('Too many open files')]
)
def test_the_machines_trouble_is_no_damage(tmp_path, monkeypatch, error):
  made = save_steps(tmp_path, [1])

  def fail(*args, **named):
    raise error

  monkeypatch.setattr(made.orbax, 'restore', fail)
  with pytest.raises(type(error)) as found:
    made.restore(1, abstract_like(make_trees()))
  assert not isinstance(found.value, checksums.DamageError)


def test_an_old_checkpoint_is_taken_and_called_unverified(tmp_path):
  lines = []
  made = save_steps(tmp_path, [1], log=lines.append)
  remove_checksums(tmp_path, 1)
  trees = made.restore(1, abstract_like(make_trees()))
  assert bytes_of(trees) == bytes_of(make_trees(1))
  assert 'step 1' in lines[0] and 'nothing was verified' in lines[0]
  assert made.dtypes(1)[('lm_head',)] == jnp.bfloat16


def test_a_parameter_is_read_alone_and_verified(tmp_path):
  made = save_steps(tmp_path, [1, 2])
  change_a_value(tmp_path, 2)
  for path in (('encoder', 'layers', 'kernel'), ('lm_head',)):
    want = make_trees(1)['params']
    for key in path:
      want = want[key]
    got = made.read_parameter(1, path)
    assert got.dtype == want.dtype and (got == np.asarray(want)).all()
  with pytest.raises(checksums.DamageError, match=r'intact: \[1\]'):
    with reader.open_step(str(tmp_path), 2) as (opened, step):
      opened.read_parameter(step, ('lm_head',))


def test_dtypes_are_those_asked_for_or_as_saved(tmp_path):
  made = save_steps(tmp_path, [1])
  abstract = {'params': abstract_like(make_trees())['params']}
  abstract['params']['lm_head'] = abstract['params']['lm_head'].update(
    dtype=jnp.float32
  )
  want = np.asarray(make_trees(1)['params']['lm_head'])
  for as_saved, dtype in ((False, jnp.float32), (True, jnp.bfloat16)):
    found = made.restore(1, abstract, as_saved=as_saved)
    assert list(found) == ['params']
    assert found['params']['lm_head'].dtype == dtype
    assert (np.asarray(found['params']['lm_head']) == want).all()


@pytest.mark.parametrize('sealed', [True, False])
def test_weights_alone_have_no_optimizer(tmp_path, sealed):
  made = save_steps(tmp_path, [1])
  made.save(2, {'params': make_trees()['params']}, {})
  made.wait_until_finished()
  if not sealed:
    for step in (1, 2):
      remove_checksums(tmp_path, step)
  opened = reader.CheckpointReader(str(tmp_path))
  assert opened.has_optimizer(1) and not opened.has_optimizer(2)
  assert opened.latest_step() == reader.latest_step(str(tmp_path)) == 2


def test_damage_is_told_with_its_cause(tmp_path, monkeypatch):
  """Faults seen: no cause; no damage where another host alone found some."""
  made = save_steps(tmp_path, [1])
  shapes = abstract_like(make_trees())
  monkeypatch.setattr(reader, 'is_true_everywhere', lambda condition: False)
  expected = 'is damaged: another host found damage'
  with pytest.raises(checksums.DamageError, match=expected):
    made.restore(1, shapes)
  monkeypatch.undo()
  change_a_value(tmp_path, 1)
  expected = 'is damaged: .*params/lm_head differs from its checksum'
  with pytest.raises(checksums.DamageError, match=expected):
    made.restore(1, shapes)


def test_closing_ends_orbaxs_threads(tmp_path, monkeypatch):
  made, closed = save_steps(tmp_path, [1]), []
  close = made.orbax.close
  monkeypatch.setattr(made.orbax, 'close', lambda: closed.append(1) or close())
  made.close()
  assert closed


# --- Opening


def test_a_bucket_is_no_folder(tmp_path, monkeypatch):
  """Fault seen: a folder named gs: made in the working directory."""
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match='gs://BUCKET.*s3://BUCKET'):
    reader.latest_step('gcs://bucket/run')
  assert not list(tmp_path.iterdir())


def test_a_step_is_opened_or_the_steps_there_are_named(tmp_path):
  """Faults seen: the oldest step taken; any step taken as there."""
  with pytest.raises(FileNotFoundError, match='no checkpoints/ in MODEL_DIR'):
    with reader.open_step(str(tmp_path), None):
      pass
  save_steps(tmp_path, [1, 2]).close()
  for wanted, step in ((None, 2), (1, 1)):
    with reader.open_step(str(tmp_path), wanted) as (checkpoints, found):
      assert found == step and checkpoints.meta(found)['data']['step'] == step
  with pytest.raises(FileNotFoundError, match=r'step 3 .*there: \[1, 2\]'):
    with reader.open_step(str(tmp_path), 3):
      pass


def test_wrong_steps_and_names_are_named(tmp_path):
  """Faults seen: a traceback of a format, a step -1 saved, a KeyError."""
  made = save_steps(tmp_path, [1])
  for step in (-1, 'x', 1.5, True, float('nan'), b'1', [1], None):
    for call in (made.meta, made.dtypes, made.verify, made.has_optimizer,
                 lambda step: made.restore(step, {}),
                 lambda step: made.save(step, make_trees(), {})):  # fmt: skip
      with pytest.raises(ValueError, match='^step = .*whole number of at lea'):
        call(step)
  assert made.all_steps() == [1]
  with pytest.raises(ValueError, match="a parameter = 'params/x'"):
    made.read_parameter(1, ('x',))
  made.close()


@pytest.mark.parametrize('folder', [None, '', 5, b'x', '\ud83d'])
def test_what_is_no_folder_is_refused(folder):
  """Fault seen: '' was the working directory."""
  for open_it in (reader.CheckpointReader, manager.CheckpointManager):
    with pytest.raises(ValueError, match='MODEL_DIR = '):
      open_it(folder)


def test_wrong_ways_to_fail_are_refused(tmp_path):
  """Fault seen: anything but 'stop' went on without a checkpoint."""
  for wrong in ('halt', None, 0):
    with pytest.raises(ValueError, match='ON_ERROR = '):
      manager.CheckpointManager(str(tmp_path), on_error=wrong)
  with pytest.raises(ValueError, match='log = '):
    manager.CheckpointManager(str(tmp_path), log='x')
