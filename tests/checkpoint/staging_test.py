"""Folders that commands write beside their targets, and what is in the way."""

import os
import shutil

import pytest

from atm.checkpoint import staging


@pytest.mark.parametrize('suffix', ['.importing', '.exporting'])
def test_a_folder_of_a_user_beside_is_not_removed(tmp_path, suffix):
  """Fault seen: whatever had the name was removed."""
  beside = tmp_path / f'run{suffix}'
  beside.mkdir()
  (beside / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError, match=f'{beside} is in the way'):
    with staging.staging_folder(str(tmp_path / 'run'), suffix):
      pass
  assert (beside / 'notes.txt').read_text() == 'mine'


def test_what_a_killed_process_left_is_removed_but_not_of_one_at_work(tmp_path):
  target = str(tmp_path / 'run')
  with staging.staging_folder(target, '.importing') as folder:
    with open(f'{folder}/part', 'w') as f:
      f.write('half')
    with pytest.raises(ValueError, match='another process writes'):
      staging.staging_folder(target, '.importing').__enter__()
    shutil.copytree(f'{target}.importing', tmp_path / 'killed')
  assert os.listdir(tmp_path) == ['killed']
  os.rename(tmp_path / 'killed', f'{target}.importing')
  with staging.staging_folder(target, '.importing') as folder:
    assert os.listdir(folder) == []
  assert os.listdir(tmp_path) == []
