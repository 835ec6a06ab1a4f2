"""A run's folder: its lock, and what is put into it."""

import json
import os

import pytest

from atm import fileio, storage
from atm.checkpoint import generation_config, paths
from atm.train import run_folder
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
  own = tmp_path / 'generation_config.json'
  assert not own.exists()
  folder.save_setup('# one\n', words, {'num_beams': 5})
  folder.save_setup('# two\n', words, {'num_beams': 6})
  assert json.loads(own.read_text()) == {'num_beams': 5}
  assert path.read_bytes() == b'own'
  assert (tmp_path / 'config.gin').read_text() == '# two\n'


def test_settings_of_generation_come_with_the_first_model(words, tmp_path):
  folder = RunFolder(str(tmp_path))
  folder.save_setup('# one\n', words)
  assert not (tmp_path / 'generation_config.json').exists()
  for beams in (5, 4):  # of a later command, whose file is not taken
    folder.save_setup('# two\n', words, {'num_beams': beams})
  _, kept = generation_config.read_generation_config(str(tmp_path))
  assert kept == {'num_beams': 5}


def test_a_run_s_own_settings_of_generation_are_written_over(words, tmp_path):
  """Over those of the first model, and over its own before it resumed."""
  folder = run_folder.RunFolder(str(tmp_path))
  read = lambda: generation_config.read_generation_config(str(tmp_path))[1]
  first = {'num_beams': 4, 'forced_bos_token_id': 7}
  folder.save_setup('', words, first, {'num_beams': 2, 'max_new_tokens': 9})
  want = {'num_beams': 2, 'forced_bos_token_id': 7, 'max_new_tokens': 9}
  assert read() == want
  folder.save_setup('', words, {}, {'max_new_tokens': 5})
  assert read() == want | {'max_new_tokens': 5}
  folder.save_setup('', words, first)
  assert read() == want | {'max_new_tokens': 5}


def test_a_step_was_evaluated_if_its_held_out_losses_are_there(tmp_path):
  """Fault seen: any row of the step taken for its evaluation."""
  folder = RunFolder(str(tmp_path))
  rows = '{"step": 4, "loss": 1}\n{"step": 8, "eval/loss/clm": 1}\n'
  (tmp_path / 'metrics.jsonl').write_text(rows)
  assert [folder.was_evaluated(n) for n in (0, 4, 8)] == [False, False, True]


def test_one_run_at_a_time_is_at_work_on_checkpoints(tmp_path):
  """Fault seen: a copy of a run, and the run, removed each other's."""
  folders = [RunFolder(str(tmp_path / name)) for name in 'ab']
  bucket = str(tmp_path / 'bucket')
  for folder in folders:
    paths.set_checkpoint_dir(folder.path, bucket)
  with folders[0].lock_checkpoints():
    with pytest.raises(
      ValueError, match='CHECKPOINT_DIR = .* is in use by pro'
    ):
      folders[1].lock_checkpoints().__enter__()
  with folders[1].lock_checkpoints():  # in turn
    assert os.listdir(bucket) == ['lock']
  plain = RunFolder(str(tmp_path / 'c'))
  with plain.lock(), plain.lock_checkpoints():
    assert os.listdir(plain.path) == ['lock']
  inside = f'{plain.path}/checkpoints'
  paths.set_checkpoint_dir(plain.path, inside)  # where they lie anyway
  assert not os.path.exists(inside)


def test_one_run_at_a_time_is_at_work_in_a_store(bucket, tmp_path):
  folder = RunFolder(f'{bucket}/a')
  with folder.lock(), folder.lock_checkpoints():
    assert run_folder.is_locked(folder.path)
    with pytest.raises(ValueError, match='MODEL_DIR = .* is in use by process'):
      RunFolder(folder.path).lock().__enter__()
  assert not run_folder.is_locked(folder.path)
  plain = RunFolder(str(tmp_path / 'c'))
  paths.set_checkpoint_dir(plain.path, folder.path)
  with folder.lock(), pytest.raises(ValueError, match='CHECKPOINT_DIR = .* is'):
    plain.lock_checkpoints().__enter__()
  with plain.lock_checkpoints():
    assert os.listdir(plain.path) == ['checkpoints']


def test_a_run_in_a_store_keeps_its_setup(bucket, words):
  folder = RunFolder(bucket)
  storage.write_bytes(f'{bucket}/config.gin', b'# mine')
  folder.save_setup('# one', words, {'num_beams': 3})
  assert storage.read_bytes(f'{bucket}/config.gin.given') == b'# mine'
  writer = folder.open_metrics(0)
  for step in (1, 2, 3):
    writer.write(step, {'loss': 1.0})
  writer.close()
  folder.save_setup('# two', words)
  assert storage.read_bytes(f'{bucket}/config.gin') == b'# two'
  assert storage.list_names(bucket) == [
    'config.gin', 'config.gin.given', 'generation_config.json',
    'metrics.jsonl', 'tensorboard', 'vocabulary',
  ]  # fmt: skip
  folder.open_metrics(2).close()  # the third step is done again
  assert [row['step'] for row in folder.metrics()] == [1, 2]
  dropped = fileio.read_own_lines(f'{bucket}/metrics_dropped.jsonl', {})
  assert [row['step'] for row in dropped] == [3]
  assert run_folder.get_change_time(bucket) > 0


def test_an_interrupted_run_says_what_is_saved(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  folder = RunFolder(str(tmp_path))
  said = f'{tmp_path} has saved {{}}; the same command goes on'
  assert folder.describe_progress() == said.format('no step yet')
  (tmp_path / 'checkpoints' / '1200').mkdir()
  assert folder.describe_progress() == said.format('step 1,200')


def test_settings_that_a_user_wrote_into_the_folder_are_kept(words, tmp_path):
  """Fault seen: their comments were lost. A run's own are written anew."""
  folder, config = RunFolder(str(tmp_path)), tmp_path / 'config.gin'
  config.write_text('# mine\n')
  folder.save_setup('# one\n', words)
  given = tmp_path / 'config.gin.given'
  assert config.read_text() == '# one\n' and given.read_text() == '# mine\n'
  (tmp_path / 'metrics.jsonl').touch()
  folder.save_setup('# two\n', words)
  assert config.read_text() == '# two\n' and given.read_text() == '# mine\n'
