"""Parameters read in source are those of what is imported."""

import inspect

import pytest

import atm_tasks
from atm.cli import gin_config, gin_names, source_text


def test_parameters_are_those_of_signatures():
  every = gin_config.configurables()
  every |= {f'atm_tasks.{f.__name__}': f for f in atm_tasks.GIN}
  for name, owner in every.items():
    found = source_text.list_parameters(gin_names.TARGETS[name])
    expected = inspect.signature(owner).parameters
    assert found.keys() == expected.keys(), name
    for parameter in expected.values():
      default = found[parameter.name].default
      assert bool(default) == (parameter.default is not parameter.empty), name
      if isinstance(parameter.default, str | int | float | None):
        assert eval(default) == parameter.default, (name, parameter.name)


def test_meanings_come_from_docstrings_and_comments():
  read = source_text.list_parameters
  config = read('atm.inference.sampling:Config')
  assert config['top_p'] == source_text.Parameter(
    'top_p', '1.0', 'float',
    'among the likeliest that together have this probability.',
  )  # fmt: skip
  shared = read('atm.train.optimizer:OptimizerConfig')
  assert shared['b1'].meaning == shared['b2'].meaning == "Adam's."
  rules = read('atm.parallel.sharding:Rules')
  assert rules['position'].meaning == 'rows of position tables'
  assert read('atm_tasks:configure')['wikipedia'].default.startswith("'wiki")
  for name in ('infer_file', 'score_file'):  # of a base in another module
    target = gin_names.TARGETS[f'atm.files.{name}']
    assert read(target)['at_step'].meaning.startswith('the step of a check')


@pytest.mark.parametrize('name', gin_names.TARGETS)
def test_every_configurable_says_what_it_is(name):
  summary = source_text.read_summary(gin_names.TARGETS[name])
  assert summary.endswith(('.', ':')) and '\n' not in summary
