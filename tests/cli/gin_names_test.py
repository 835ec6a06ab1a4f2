"""Names of configurables, found without an import."""

import inspect

import pytest

import atm_tasks
from atm.cli import gin_config, gin_names
from atm.cli.gin_text import UserError


def test_a_name_is_found_by_its_end():
  find = lambda selector: gin_names.find_name(selector, gin_names.TARGETS)
  for selector in ('model.Config', 'atm.model.Config'):
    assert find(selector) == 'atm.model.Config'
  assert find('infer_file') == 'atm.files.infer_file'
  assert find('Config') is None and find('odel.Config') is None
  assert gin_names.shorten('atm.model.Config') == 'model.Config'
  check = lambda s: gin_names.check_name(s, 'x.gin', gin_names.TARGETS)
  assert check('suite') == 'atm_tasks.suite'
  with pytest.raises(UserError, match="x.gin: 'Config' is ambiguous"):
    check('Config')
  with pytest.raises(UserError, match="'model.Confg' is nothing.*'model.Conf"):
    check('model.Confg')


def test_names_are_those_of_what_is_imported():
  made = gin_config.configurables()
  assert list(made) == list(gin_names.CONFIGURABLES)
  assert all(map(inspect.signature, made.values()))
  tasks = {
    f'atm_tasks.{f.__name__}': f'{f.__module__}:{f.__name__}'
    for f in atm_tasks.GIN
  }
  assert tasks == gin_names.TASK_CONFIGURABLES
