"""Damaged checkpoints, and checkpoints that could not be written."""

import collections
import contextlib
import dataclasses
import gc
import json
import os
import random
import resource
import shutil
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from atm.checkpoint import (
  checksums,
  convert,
  manager,
  reader,
  recovery,
  warm_start,
)
from atm.checkpoint import paths as paths_lib
from atm.inference import api
from atm.model import parameters
from atm.model.transformer import AlexaTM
from atm.parallel import mesh, sharding
from atm.train.step import State

from conftest import tiny

# Orbax leaves the other futures of a failed write to the collector.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning',
  'ignore::pytest.PytestUnhandledThreadExceptionWarning',
)

META = {'data': {'step': 5}, 'log': {'sums': {'loss': 0.1}, 'steps': 2}}
FLIPS = 300


@pytest.fixture(autouse=True)
def collected(few_objects):
  """So that they warn here, not in the tests to come."""
  yield
  gc.collect()


def small_state(step: int = 5, size: int = 24) -> State:
  """A state of every dtype there is, its leaves few: Orbax takes 1 ms each."""
  rng = np.random.default_rng(step)
  draw = lambda dtype, *shape: jnp.asarray(rng.normal(size=shape), dtype)
  params = {
    'encoder': {'layers': {'kernel': draw('float32', 2, size, 16)}},
    'lm_head': draw('bfloat16', 16, size),
  }
  count = jnp.asarray(step, jnp.int32)
  return State(count, params, ({'mu': draw('float32', size)}, {'count': count}))


def shapes_of(state: State) -> State:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def written(directory, steps, **options) -> manager.CheckpointManager:
  """Checkpoints of `small_state` at some steps."""
  made = manager.CheckpointManager(str(directory), **options)
  for n in steps:
    made.save(n, small_state(n).to_trees(), {'data': {'step': n}})
  made.wait_until_finished()
  return made


def restored(made: reader.CheckpointReader, step: int, shapes: State) -> State:
  return State.from_trees(made.restore(step, shapes.to_trees()))


def files(directory) -> list[str]:
  found = (
    os.path.join(d, f) for d, _, names in os.walk(directory) for f in names
  )
  return sorted(path for path in found if os.path.getsize(path))


def bits(state: State) -> list[bytes]:
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


@contextlib.contextmanager
def damaged(path: str, draw: random.Random):
  """A file with one bit flipped, or cut short; whole again afterwards."""
  with open(path, 'rb') as f:
    whole = f.read()
  how = draw.choice(['flip', 'flip', 'cut'])
  broken = bytearray(whole)
  if how == 'flip':
    broken[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
  else:
    del broken[draw.randrange(len(whole)) :]
  with open(path, 'wb') as f:
    f.write(broken)
  yield how
  with open(path, 'wb') as f:
    f.write(whole)


def fate(directory: str, state: State) -> str:
  """What a restore of step 5 makes of a damaged file."""
  try:
    made = reader.CheckpointReader(directory)
    meta, found = made.meta(5), restored(made, 5, shapes_of(state))
  except checksums.DamageError:
    return 'detected'
  same = meta == META and bits(found) == bits(state)
  return 'harmless' if same else 'missed'


def test_no_flip_or_cut_changes_a_value_unseen(tmp_path):
  """300 of them, over all files. Faults seen: arrays not compared (85 of the
  300 come back as other values, unseen); meta without a hash."""
  state, draw = small_state(), random.Random(1)
  made = manager.CheckpointManager(str(tmp_path))
  made.save(5, state.to_trees(), META)
  made.close()
  fates, touched = collections.Counter(), set()
  paths = files(tmp_path)
  for _ in range(FLIPS):
    path = draw.choice(paths)
    with damaged(path, draw):
      found = fate(str(tmp_path), state)
    fates[found] += 1
    touched.add(path)
    assert found != 'missed', path
  assert fates['detected'] > FLIPS / 4 and fates['harmless'], fates
  assert touched == set(paths)


def break_values(directory, step: int) -> None:
  """Changes the values of a step's parameters, as Orbax sees nothing of."""
  folder = os.path.join(directory, paths_lib.CHECKPOINTS, str(step), 'params')
  with ocp.StandardCheckpointer() as orbax:
    tree = orbax.restore(folder)
    tree['lm_head'] = tree['lm_head'].at[3, 3].add(1)
    shutil.rmtree(folder)
    orbax.save(folder, tree)


def test_the_newest_intact_step_is_found_and_the_others_kept(tmp_path):
  """Fault seen: damaged steps stay listed, and step 3 is never saved again."""
  lines = []
  made = written(tmp_path, [1, 2, 3], log=lines.append)
  break_values(tmp_path, 2)
  os.remove(tmp_path / 'checkpoints' / '3' / 'meta' / 'metadata')
  shapes = shapes_of(small_state())
  read = lambda step: restored(made, step, shapes)
  number, state = recovery.read_newest_intact(made, read)
  assert number == 1 and bits(state) == bits(small_state(1))
  assert [line.partition(' is damaged: ')[0] for line in lines[:2]] == [
    f'the checkpoint of step {n} in {tmp_path}/checkpoints' for n in (3, 2)
  ]
  assert 'params/lm_head differs from its checksum' in lines[1]
  assert lines[2].startswith('falling back to step 1')
  assert lines[2].endswith('3.damaged, 2.damaged')
  assert made.all_steps() == [1]
  made.save(3, small_state(3).to_trees(), {})
  made.close()
  again = manager.CheckpointManager(str(tmp_path), log=lines.append)
  assert again.all_steps() == [1, 3]
  break_values(tmp_path, 3)
  recovery.read_newest_intact(again, lambda step: restored(again, step, shapes))
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == [
    '1', '2.damaged', '3.damaged', '3.damaged-2',
  ]  # fmt: skip


def test_nothing_is_changed_where_all_steps_are_damaged(tmp_path):
  made = written(tmp_path, [1, 2], log=lambda text: None)
  for n in (1, 2):
    break_values(tmp_path, n)
  before = files(tmp_path)
  shapes = shapes_of(small_state())
  with pytest.raises(
    checksums.DamageError, match=r'all of \[1, 2\] are damaged'
  ):
    recovery.read_newest_intact(made, lambda step: restored(made, step, shapes))
  assert files(tmp_path) == before and made.all_steps() == [1, 2]


def test_another_model_is_no_damage(tmp_path):
  """Else a wrong setting would set sound checkpoints aside."""
  made = written(tmp_path, [1, 2])
  other = shapes_of(small_state(size=32))
  with pytest.raises(ValueError, match='of another model') as error:
    recovery.read_newest_intact(made, lambda step: restored(made, step, other))
  assert not isinstance(error.value, checksums.DamageError)
  fewer = dataclasses.replace(shapes_of(small_state()), opt_state=())
  with pytest.raises(ValueError, match='optimizer/state/0/mu is .* there'):
    recovery.read_newest_intact(made, lambda step: restored(made, step, fewer))
  assert made.all_steps() == [1, 2]


@pytest.mark.parametrize(
  'error', [MemoryError(), PermissionError('x'), OSError('Too many open files')]
)
def test_the_machines_trouble_is_no_damage(tmp_path, monkeypatch, error):
  made = written(tmp_path, [1])

  def fail(*args, **named):
    raise error

  monkeypatch.setattr(made.orbax, 'restore', fail)
  with pytest.raises(type(error)) as found:
    restored(made, 1, shapes_of(small_state()))
  assert not isinstance(found.value, checksums.DamageError)


def unsealed(directory, step: int) -> None:
  """Makes a step one of before there were checksums."""
  path = os.path.join(directory, 'checkpoints', str(step), 'meta', 'metadata')
  with open(path) as f:
    meta = json.load(f)
  for key in (checksums.SUMS, checksums.SEAL):
    del meta[key]
  with open(path, 'w') as f:
    json.dump(meta, f)


def test_an_old_checkpoint_is_taken_and_called_unverified(tmp_path):
  lines = []
  made = written(tmp_path, [1], log=lines.append)
  unsealed(tmp_path, 1)
  state = restored(made, 1, shapes_of(small_state()))
  assert bits(state) == bits(small_state(1))
  assert 'step 1' in lines[0] and 'nothing was verified' in lines[0]
  assert made.dtypes(1)[('lm_head',)] == jnp.bfloat16


def test_a_parameter_is_read_alone_and_verified(tmp_path):
  made = written(tmp_path, [1, 2])
  break_values(tmp_path, 2)
  for path in (('encoder', 'layers', 'kernel'), ('lm_head',)):
    want = small_state(1).params
    for key in path:
      want = want[key]
    got = made.read_parameter(1, path)
    assert got.dtype == want.dtype and (got == np.asarray(want)).all()
  with pytest.raises(checksums.DamageError, match=r'intact: \[1\]'):
    with reader.open_step(str(tmp_path), 2) as (opened, step):
      opened.read_parameter(step, ('lm_head',))


# --- Saves that fail


@contextlib.contextmanager
def full_disk(room: int = 2048):
  """No file can grow beyond `room` bytes, as on a disk that is full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('room', [0, 64, 300, 1024, 2048])
def test_a_save_that_failed_is_never_listed(tmp_path, room):
  """Faults seen: Orbax's list taken as it is; the leftovers kept."""
  made = written(tmp_path, [1])
  with pytest.raises(manager.SaveError, match='step 2 could not be saved'):
    with full_disk(room):
      made.save(2, small_state(2).to_trees(), {})
      made.wait_until_finished()
  assert made.all_steps() == [1] and made.latest_step() == 1
  assert reader.latest_step(str(tmp_path)) == 1
  assert os.listdir(tmp_path / 'checkpoints') == ['1']
  with pytest.raises(manager.SaveError):  # still true
    made.raise_if_unsaved()
  made.save(2, small_state(2).to_trees(), {})
  made.raise_if_unsaved()
  state = restored(made, 2, shapes_of(small_state()))
  assert bits(state) == bits(small_state(2))


def test_training_may_go_on_without_a_checkpoint(tmp_path):
  lines = []
  made = written(tmp_path, [1], on_error='go_on', log=lines.append)
  for n in (2, 3):
    with full_disk():
      made.save(n, small_state(n).to_trees(), {})
      made.wait_until_finished()
  assert made.failures == 2 and made.all_steps() == [1]
  assert lines[-1].startswith('the checkpoint of step 3 could not be saved: ')
  assert lines[-1].endswith('training goes on, saves failed so far: 2')
  with pytest.raises(manager.SaveError):
    made.raise_if_unsaved()
  made.save(4, small_state(4).to_trees(), {})
  made.raise_if_unsaved()
  assert made.all_steps() == [1, 4] and made.failures == 2


def test_a_failure_is_heard_of_between_two_saves(tmp_path):
  """Fault seen: it was heard of at the next save, SAVE_EVERY steps later."""
  made = written(tmp_path, [1])
  with full_disk():
    made.save(2, small_state(2).to_trees(), {})
    while made.orbax.is_saving_in_progress():
      time.sleep(0.01)
  with pytest.raises(manager.SaveError):
    made.check_for_errors()
  made.check_for_errors()  # once


def test_a_failed_commit_is_never_listed(tmp_path, monkeypatch):
  """What fails at the very last, when all files are there."""
  made = written(tmp_path, [1])
  rename = os.rename

  def fail(source, target, *args, **named):
    if 'checkpoint-tmp' in str(source):
      raise OSError(5, 'Input/output error')
    return rename(source, target, *args, **named)

  with monkeypatch.context() as patch:
    for name in ('rename', 'replace'):
      patch.setattr(os, name, fail)
    with pytest.raises(manager.SaveError, match='step 2 .*Input/output'):
      made.save(2, small_state(2).to_trees(), {})
      made.wait_until_finished()
  assert made.all_steps() == [1] and made.latest_step() == 1


def test_a_step_that_is_saved_is_not_called_lost(tmp_path, monkeypatch):
  """What fails after the commit: an old step that cannot be removed."""
  made = written(tmp_path, [1], keep=1)

  def fail(*args, **named):
    raise PermissionError(13, 'Permission denied')

  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'rmtree', fail)
    with pytest.raises(manager.SaveError, match='2 is saved, but .*13'):
      made.save(2, small_state(2).to_trees(), {})
      made.wait_until_finished()
  made.raise_if_unsaved()
  assert made.all_steps() == [1, 2]


# --- Those who read parameters


def one():
  return mesh.make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def run(tmp_path):
  """A MODEL_DIR of a real model at steps 1 and 2, of which 2 is damaged."""
  config = tiny(norm='uncentred', position_offset=2, logits_bias=True)
  abstract = parameters.abstract_params(
    AlexaTM(config), one(), sharding.Rules()
  )
  made = manager.CheckpointManager(str(tmp_path / 'run'))
  for number in (1, 2):
    full = lambda x, n=number: jnp.full(x.shape, n, x.dtype, device=x.sharding)
    state = State(jnp.int32(number), jax.tree.map(full, abstract), ())
    made.save(number, state.to_trees(), {'model': dataclasses.asdict(config)})
  made.close()
  break_values(tmp_path / 'run', 2)
  return str(tmp_path / 'run')


READERS = {
  'infer': lambda run, step: api.load(run, step),
  'export': lambda run, step: convert.export_weights(
    run, f'{run}-out-{step}', step, say=lambda text: None
  ),
}


@pytest.mark.parametrize('name', READERS)
def test_who_reads_damaged_parameters_is_told_which_are_intact(run, name):
  """Fault seen: parameters read one at a time were not compared."""
  message = r'step 2 .* is damaged: params/lm_head .* intact: \[1\]'
  with pytest.raises(checksums.DamageError, match=message):
    READERS[name](run, None)
  assert not os.path.exists(f'{run}-out-None')
  READERS[name](run, 1)


def test_an_encoder_to_start_from_is_verified(run):
  source = warm_start.open_source(run)
  with pytest.raises(checksums.DamageError, match='params/lm_head differs'):
    source.read(('lm_head',))
  source.read(('encoder_embedding',))


def test_imported_weights_have_checksums(run, tmp_path):
  """Fault seen: an import without them is taken for an old checkpoint."""
  folder, imported = f'{run}-folder', str(tmp_path / 'imported')
  quiet = lambda text: None
  convert.export_weights(run, folder, 1, say=quiet)
  convert.import_weights(folder, imported, one, say=quiet)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    api.load(imported)
  made = reader.CheckpointReader(imported)
  assert not made.has_optimizer(0)
  break_values(imported, 0)
  with pytest.raises(checksums.DamageError, match='params/lm_head differs'):
    api.load(imported)
