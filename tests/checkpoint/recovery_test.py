"""Falling back to the newest intact step."""

import os

import pytest

from atm.checkpoint import checksums, manager, recovery

from damage import (
  abstract_like,
  bytes_of,
  change_a_value,
  list_files,
  make_trees,
  save_steps,
)


def test_the_newest_intact_step_is_found_and_the_others_kept(tmp_path):
  """Fault seen: damaged steps stay listed, and step 3 is never saved again."""
  lines = []
  made = save_steps(tmp_path, [1, 2, 3], log=lines.append)
  change_a_value(tmp_path, 2)
  os.remove(tmp_path / 'checkpoints' / '3' / 'meta' / 'metadata')
  shapes = abstract_like(make_trees())
  read = lambda step: made.restore(step, shapes)
  number, state = recovery.read_newest_intact(made, read)
  assert number == 1 and bytes_of(state) == bytes_of(make_trees(1))
  assert [line.partition(' is damaged: ')[0] for line in lines[:2]] == [
    f'the checkpoint of step {n} in {tmp_path}/checkpoints' for n in (3, 2)
  ]
  assert 'params/lm_head differs from its checksum' in lines[1]
  assert lines[2].startswith('falling back to step 1')
  assert lines[2].endswith('3.damaged, 2.damaged')
  assert made.all_steps() == [1]
  made.save(3, make_trees(3), {})
  made.close()
  again = manager.CheckpointManager(str(tmp_path), log=lines.append)
  assert again.all_steps() == [1, 3]
  change_a_value(tmp_path, 3)
  recovery.read_newest_intact(again, lambda step: again.restore(step, shapes))
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == [
    '1', '2.damaged', '3.damaged', '3.damaged-2',
  ]  # fmt: skip


def test_nothing_is_changed_where_all_steps_are_damaged(tmp_path):
  made = save_steps(tmp_path, [1, 2], log=lambda text: None)
  for n in (1, 2):
    change_a_value(tmp_path, n)
  before = list_files(tmp_path)
  shapes = abstract_like(make_trees())
  with pytest.raises(
    checksums.DamageError, match=r'all of \[1, 2\] are damaged'
  ):
    recovery.read_newest_intact(made, lambda step: made.restore(step, shapes))
  assert list_files(tmp_path) == before and made.all_steps() == [1, 2]


def test_a_run_without_checkpoints_begins_anew(tmp_path):
  made = save_steps(tmp_path, [])
  assert recovery.read_newest_intact(made, made.meta) == (None, None)


def test_another_model_is_no_damage(tmp_path):
  """Else a wrong setting would set sound checkpoints aside."""
  made = save_steps(tmp_path, [1, 2])
  other = abstract_like(make_trees(size=32))
  with pytest.raises(ValueError, match='of another model') as error:
    recovery.read_newest_intact(made, lambda step: made.restore(step, other))
  assert not isinstance(error.value, checksums.DamageError)
  fewer = abstract_like(make_trees())
  fewer['optimizer']['state'] = ()
  with pytest.raises(ValueError, match='optimizer/state/0/mu is .* there'):
    recovery.read_newest_intact(made, lambda step: made.restore(step, fewer))
  assert made.all_steps() == [1, 2]
