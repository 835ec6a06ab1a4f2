"""Every run has a command, and every command its gin file."""

import re

import pytest

from atm.cli import commands, gin_config

from command_line import parse


@pytest.mark.parametrize('run', commands.RUNS)
def test_every_run_parses_with_its_required_settings(run):
  with open(gin_config.find_file(f'runs/{run}.gin')) as f:
    required = re.findall(r'^(\w+) = %gin.REQUIRED', f.read(), re.M)
  parse(run, *(f'--gin.{name}="x"' for name in required))


def test_a_command_is_a_function_a_text_or_a_job(monkeypatch, capsys):
  """Faults seen: a job made and not run; a text not printed; the path that a
  job returns, and has told, printed once more."""

  class Job:
    def run(self):
      print('ran')
      return 'path'

  def shout(name):
    return lambda: {'a.text': 'said', 'a.job': Job(), 'a.rest': 7}[name]

  runs = {name: f'a.{name}' for name in ('text', 'job', 'rest')}
  runs['function'] = lambda: print('called')
  monkeypatch.setattr(commands, 'RUNS', runs)
  monkeypatch.setattr(commands, 'get_configurable', shout)
  for run in ('function', 'text', 'job', 'rest'):
    commands.execute(run)
  assert capsys.readouterr().out == 'called\nsaid\nran\n'


def test_an_unknown_pod_is_named_with_the_nearest():
  with pytest.raises(gin_config.UserError, match="'v5p_4x4x9'.*'v5p_4x4x8'"):
    commands.settings_for_pod('v5p_4x4x9')
