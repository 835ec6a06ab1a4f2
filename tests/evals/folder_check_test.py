"""`atm check` on a tiny Blenderbot, with transformers' answers from a file."""

import json
import os
import shutil

import numpy as np
import pytest

from atm import storage
from atm.evals import folder_check, peer_process

from goldens import HERE

FOLDER = f'{HERE}/blenderbot_generate'
PEER = f'{HERE}/check/blenderbot'


@pytest.fixture
def both(monkeypatch):
  """Both libraries are there, by their versions."""
  versions = {'transformers': '5.24.0', 'torch': '2.13.0'}
  monkeypatch.setattr(peer_process, 'list_versions', lambda: versions)


def run(change=lambda folder: None, directory=FOLDER, **settings):
  """Returns (whether all agrees, the lines), of changed answers of the peer."""
  lines = []

  def ask_peer(folder, say):
    shutil.copytree(PEER, folder, dirs_exist_ok=True)
    change(folder)
    return ''

  check = folder_check.FolderCheck(
    directory, **{'limit': 3, 'ask_peer': ask_peer, 'say': lines.append}
    | settings,
  )  # fmt: skip
  return check.run(), lines


def test_a_sound_folder_agrees(both):
  agrees, lines = run()
  assert agrees
  verdict = lines[-1]
  assert verdict.startswith(
    "atm check: agrees | 'blenderbot_generate': blenderbot, 48,608 "
    'parameters, float32, config.json sha256 '
  )
  assert 'transformers 5.24.0 torch 2.13.0' in verdict
  assert 'greedy ids 3 of 3 equal, beams ids 3 of 3 equal' in verdict
  assert len(verdict) < 500 and not any('DIFFERS' in line for line in lines)


def test_each_difference_is_named(both):
  def change_logits(folder):
    logits = np.load(path := f'{folder}/logits_1.npy')
    logits[0, 5] += 0.01 * np.abs(logits).max()
    np.save(path, logits)

  def change_ids(folder):
    with open(path := f'{folder}/answer.json') as f:
      answer = json.load(f)
    answer['beams'][2][1] += 1
    with open(path, 'w') as f:
      json.dump(answer, f)

  for change, name in (
    (change_logits, 'differs: logits 1.0e-02 apart | '),
    (change_ids, 'differs: beams ids 2 of 3 equal (prompt 3, place 0: '),
  ):
    agrees, lines = run(change)
    assert not agrees and lines[-1].startswith(f'atm check: {name}'), lines
    assert sum('DIFFERS' in line for line in lines) == 1
  # In bfloat16 other ids are no fault, and neither is a rounded logit.
  agrees, lines = run(change_ids, weights='bfloat16')
  assert agrees and 'atm check: agrees' in lines[-1]


def test_without_torch_the_model_is_checked_alone(monkeypatch):
  monkeypatch.setattr(peer_process, 'list_versions', dict)
  agrees, lines = run()
  assert agrees and lines[-1].startswith(
    'atm check: not compared: transformers is not installed: pip install '
    "'atm-jax[hf]' | "
  )
  assert 'states, logits all finite, uncached greedy 3 of 3 equal' in lines[-1]


def test_transformers_is_given_a_folder_of_this_machine(both, bucket):
  storage.upload_folder(FOLDER, f'{bucket}/model')
  seen = []

  def look(folder, say):
    with open(f'{folder}/request.json') as f:
      seen.append(set(os.listdir(json.load(f)['directory'])))
    return 'enough'

  run(ask_peer=look, directory=f'{bucket}/model', limit=1)
  assert seen == [set(os.listdir(FOLDER))]


def test_transformers_that_fails_is_no_agreement(both):
  failed = 'transformers was ended by signal 9'
  agrees, lines = run(ask_peer=lambda folder, say: failed)
  assert not agrees
  assert lines[-1].startswith(f'atm check: not compared: {failed} | ')


def test_a_folder_that_cannot_be_read_says_why(tmp_path):
  shutil.copytree(FOLDER, tmp_path / 'model')
  os.remove(tmp_path / 'model' / 'model.safetensors')
  with pytest.raises(FileNotFoundError, match='no weights'):
    run(directory=str(tmp_path / 'model'))
  with pytest.raises(FileNotFoundError):
    run(directory=str(tmp_path))
