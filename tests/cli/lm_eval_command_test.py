"""The command `atm lm_eval`: the harness is found, and its tasks are.

tests/lm_eval_test.py runs it as a whole.
"""

import os
import sys

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import pytest

from atm import storage
from atm.cli import lm_eval_command

tasks = pytest.importorskip('lm_eval.tasks')
pytest.importorskip('atm.lm_eval')  # which a test imports anew


class Index:
  """An index of two tasks; that of the harness takes seconds."""

  all_tasks = ('xnli_de', 'xcopa_it')

  def __init__(self, include_path=None):
    self.include_path = include_path


@pytest.fixture(autouse=True)
def index(monkeypatch):
  monkeypatch.setattr(tasks, 'TaskManager', Index)


def test_names_and_yaml_files_are_tasks(tmp_path):
  """Fault seen: a file taken for a mistake."""
  path = tmp_path / 'ours.yaml'
  path.touch()
  find = lm_eval_command._find_tasks
  assert find(['xnli_de', str(path)], 'folder').include_path == 'folder'


def test_the_harness_is_given_a_folder_of_this_machine(bucket):
  storage.write_bytes(f'{bucket}/ours/a.yaml', b'task: a')
  found = lm_eval_command._find_tasks(['xnli_de'], f'{bucket}/ours')
  assert os.listdir(found.include_path) == ['a.yaml']


@pytest.mark.parametrize('names, message', [
  ([], 'TASKS is empty: expected names of tasks'),
  (['xnli_dee'], "'xnli_dee' is no task .* Did you mean 'xnli_de'"),
  (['a', 'xnli_de'], "TASKS: 'a' is no task or group of the harness"),
])  # fmt: skip
def test_what_is_no_task_is_named(names, message):
  """Fault seen: the last name alone is looked at."""
  with pytest.raises(ValueError, match=message):
    lm_eval_command._find_tasks(names, None)


def test_this_folder_on_the_path_shadows_nothing(monkeypatch):
  """Fault seen: lm_eval.py taken for the harness."""
  here = os.path.dirname(os.path.dirname(lm_eval_command.__file__))
  monkeypatch.syspath_prepend(here)
  for name in [*sys.modules]:
    if name.split('.')[0] in ('lm_eval', 'evaluate') or name == 'atm.lm_eval':
      monkeypatch.delitem(sys.modules, name)
  monkeypatch.delattr('atm.lm_eval')
  found = lm_eval_command._import_adapter()
  assert found.LM.__module__ == 'lm_eval.api.model' and here not in sys.path
