"""What is kept of a run draws the same page as the run."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from atm.evals import results
from atm.model import flops
from atm.pages import arm_records

import arm_runs
from synthetic import synthetic
from tiny_runs import small_model


@pytest.fixture(scope='module')
def run(train, tmp_path_factory):
  """A trained run with an evaluation."""
  path = tmp_path_factory.mktemp('arm') / 'run'
  shutil.copytree(train.whole(8), path)
  (path / 'eval').mkdir()
  made = synthetic(path / 'eval' / 'a', n=11, languages=('en',))
  read = results.read_results(made)
  results.write_results(made, {**read, 'step': 8})
  return str(path)


def test_a_run_is_condensed(run):
  (found,) = arm_records.read_arms({'arm': (run,)})
  config = small_model(dropout=0.1)
  assert found['steps'] == [0, 4, 8] and len(found['losses']['clm']) == 3
  assert found['flops'][-1] == 8 * flops.train_flops(config, 16, 32, 32)
  assert found['tokens'][0] == 0 < found['tokens'][1] < found['tokens'][2]
  assert found['config']['d_model'] == 32 and found['parameters'] > 10_000
  tasks = {task['name']: task for task in
           results.read_results(f'{run}/eval/a')['tasks']}  # fmt: skip
  (entry,) = [e for e in found['evaluations'] if e['task'] == 'xnli_en']
  right = arm_records.unpack_right(entry)
  rows = np.array(tasks['xnli_en']['statistics']['accuracy'])
  np.testing.assert_array_equal(right, rows[:, 0])
  assert 0 < right.mean() < 100 and entry['flops'] == found['flops'][-1]
  kept = {entry['task'] for entry in found['evaluations']}
  assert 'superglue_cb' in kept and not any('flores' in name for name in kept)


def test_two_equal_evaluations_are_refused(run, tmp_path):
  path = tmp_path / 'run'
  shutil.copytree(run, path)
  shutil.copytree(path / 'eval' / 'a', path / 'eval' / 'b')
  with pytest.raises(ValueError, match='eval/. and .*eval/. both have .*shots'):
    arm_records.read_arms({'arm': (str(path),)})
  shutil.rmtree(path / 'eval')
  rows = (path / 'metrics.jsonl').read_text()
  (path / 'metrics.jsonl').write_text(rows.replace('eval/loss', 'x'))
  with pytest.raises(ValueError, match='no held-out loss'):
    arm_records.read_arms({'arm': (str(path),)})
  os.remove(path / 'metrics.jsonl')
  shutil.rmtree(path / 'checkpoints')
  with pytest.raises(FileNotFoundError, match='run'):
    arm_records.read_arms({'arm': (str(path),)})


def test_what_is_written_is_read(tmp_path):
  path, runs = str(tmp_path / 'runs.jsonl'), arm_runs.make_arms()
  arm_records.write_arm_file(path, runs)
  assert arm_records.read_arm_file(path) == runs
  with pytest.raises(FileNotFoundError, match="RUNS = 'no': not there"):
    arm_records.read_arm_file('no')
  open(path, 'w').close()
  with pytest.raises(ValueError, match='has no runs'):
    arm_records.read_arm_file(path)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'flops': [0.0, 1.0]}, "'flops' has 2 values: expected .* steps, 3"),
    ({'steps': [0, 200, 100]}, 'steps: expected ascending'),
    ({'losses': {'clm': 1}}, 'losses.clm is 1: expected an array'),
    ({'losses': {'clm': []}}, "'clm' has 0 values"),
    ({'arm': None}, 'arm is None: expected a text'),
    ({'right': 'x' * 16}, "recall'.*expected 16 hexadecimal digits"),
    ({'right': '00'}, 'expected 16 hexadecimal digits'),
    ({'questions': -1}, 'expected'),
    ({'flops': [-1.0, 0.0, 1.0]}, 'flops = -1: expected 0 or more'),
    ({'shots': '1'}, 'evaluations.0..shots is .1.: expected a whole number'),
  ],
)
def test_a_broken_file_is_refused(tmp_path, change, message):
  run = arm_runs.make_run('a', 0)
  for name, value in change.items():
    target = run if name in run else run['evaluations'][0]
    target[name] = value
  path = tmp_path / 'runs.jsonl'
  path.write_text(json.dumps(run) + '\n')
  with pytest.raises(ValueError, match=message) as error:
    arm_records.read_arm_file(str(path))
  assert re.match(f'{path}, line 1', str(error.value))
  assert '\n' not in str(error.value)
