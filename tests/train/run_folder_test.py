"""A run's folder: its lock, and what is put into it."""

import os

import pytest

from atm.train.run_folder import RunFolder


def test_a_lock_is_held_by_one_and_leaves_nothing_alone(tmp_path):
  """Faults seen: no lock; its folder left behind by a run that is refused."""
  directory = str(tmp_path / 'run')
  with pytest.raises(KeyError), RunFolder(directory).lock() as folder:
    assert folder.path == directory and os.listdir(directory) == ['lock']
    raise KeyError
  assert not os.path.exists(directory)
  message = f'in use by process {os.getpid()} on '
  with RunFolder(directory).lock(), pytest.raises(ValueError, match=message):
    RunFolder(directory).lock().__enter__()
  os.makedirs(f'{directory}/checkpoints')
  with pytest.raises(KeyError), RunFolder(directory).lock():
    raise KeyError
  assert sorted(os.listdir(directory)) == ['checkpoints', 'lock']


def test_a_runs_own_vocabulary_is_not_replaced(words, tmp_path):
  """Fault seen: written anew by each process of a run."""
  folder = RunFolder(str(tmp_path))
  folder.save_setup('# one\n', words)
  path = tmp_path / 'vocabulary' / 'sentencepiece.model'
  assert path.read_bytes() == words.model
  path.write_bytes(b'own')
  folder.save_setup('# two\n', words)
  assert path.read_bytes() == b'own'
  assert (tmp_path / 'config.gin').read_text() == '# two\n'


def test_a_step_was_evaluated_if_its_held_out_losses_are_there(tmp_path):
  """Fault seen: any row of the step taken for its evaluation."""
  folder = RunFolder(str(tmp_path))
  rows = '{"step": 4, "loss": 1}\n{"step": 8, "eval/loss/clm": 1}\n'
  (tmp_path / 'metrics.jsonl').write_text(rows)
  assert [folder.was_evaluated(n) for n in (0, 4, 8)] == [False, False, True]
