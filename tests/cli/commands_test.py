"""Every run has a command, and every command its gin file."""

import os
import re
import shutil

import pytest

import gin
from atm.cli import commands, gin_config, gin_files
from atm.cli.gin_text import UserError

from command_line import parse


def required(run) -> list[str]:
  """Lists the settings that a user must give."""
  with open(gin_files.find_file(f'runs/{run}.gin')) as f:
    return re.findall(r'^(\w+) = %gin.REQUIRED', f.read(), re.M)


TINY_FILE = 'models/tiny.gin'


@pytest.mark.parametrize('run', commands.RUNS)
def test_every_run_parses_with_its_required_settings(run):
  parse(run, *(f'--gin.{name}="x"' for name in required(run)))


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


def test_a_check_tells_by_its_exit_status(monkeypatch):
  for agrees, status in ((True, 0), (False, 1)):

    class Check:
      def run(self, agrees=agrees):
        return agrees

    monkeypatch.setattr(commands, 'get_configurable', lambda name: Check)
    assert commands.execute('check') == status


def test_an_unknown_pod_is_named_with_the_nearest():
  with pytest.raises(gin_config.UserError, match="'v5p_4x4x9'.*'v5p_4x4x8'"):
    commands.settings_for_pod('v5p_4x4x9')


@pytest.mark.parametrize('name', ['../other', '/tmp/other', '', 'a/b', 5])
def test_a_pod_is_a_name(name, tmp_path, monkeypatch):
  """Fault seen: a path to a file anywhere, which was then read."""
  (tmp_path / 'pods').mkdir()
  (tmp_path / 'other.gin').write_text('SEED = 1')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(gin_config.UserError, match='PODS: no pods file'):
    commands.settings_for_pod(name)


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
  """A run folder in the working directory, as a run named runs/x left it."""
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / 'runs' / 'x'
  (folder / 'checkpoints').mkdir(parents=True)
  (folder / 'config.gin').write_text("MODEL_DIR = 'runs/x'\n")
  return folder


def check_folder(*files, run='pretrain', bindings=()):
  """Does what the command does before a run is at work."""
  files = [gin_files.find_file(f) for f in (f'runs/{run}.gin', *files)]
  others = {*required(run), 'TASK_FEATURE_LENGTHS'} - {'MODEL_DIR'}
  bindings = [*(f'{name} = "x"' for name in sorted(others)), *bindings]
  with gin.unlock_config():
    gin.clear_config()
    gin_config.apply_config(files, bindings, set())
  commands.check_run_folder()


@pytest.mark.parametrize('run', ['pretrain', 'finetune', 'report', 'export'])
def test_a_run_folder_that_was_moved_does_not_begin_anew_elsewhere(
  run_folder, run
):
  """Fault seen: a run anew in the old place, after its folder was moved."""
  check_folder('runs/x/config.gin', run=run)
  check_folder(f'{run_folder}/config.gin', run=run)
  for change in (shutil.copytree, os.rename):  # the old one is there, or not
    change(run_folder, 'new')
    with pytest.raises(UserError) as raised:
      check_folder('new/config.gin', run=run)
    said = str(raised.value)
    assert said.startswith('./new/config.gin lies in a run folder, but names ')
    assert len(said) < 500 and '\n' not in said
    add = said.partition(' add --gin.')[2]
    assert add == 'MODEL_DIR="\'new\'"'
    check_folder('new/config.gin', run=run, bindings=[add.replace('"', '')])
    shutil.rmtree('new')


def test_a_run_is_its_own_under_another_name(run_folder):
  """By a link, a relative path, or a slash; and its settings start others."""
  os.symlink(run_folder, 'link')
  check_folder('link/config.gin')
  config = run_folder / 'config.gin'
  for name in (f'{run_folder}/', 'runs/../link', str(run_folder)):
    config.write_text(f'MODEL_DIR = {name!r}\n')
    check_folder('runs/x/config.gin')
  os.rename(run_folder, 'new')
  with open('mine.gin', 'w') as f:
    f.write("MODEL_DIR = 'another'\n")
  check_folder('new/config.gin', 'mine.gin')
  check_folder('new/config.gin', bindings=['MODEL_DIR = "another"'])
  os.rename('new/config.gin', 'new/settings.gin')  # no longer the run's own
  check_folder('new/settings.gin')


def test_a_run_folder_is_another_one_in_another_working_directory(
  run_folder, monkeypatch
):
  monkeypatch.chdir(run_folder)
  with pytest.raises(UserError, match='names another, MODEL_DIR = .runs/x.'):
    check_folder('config.gin')


@pytest.mark.parametrize(
  'size, expected', [(1500, 1500), (500, 1280), (None, 1280)]
)
def test_a_larger_vocabulary_enlarges_the_model(size, expected):
  """A smaller one leaves entries unused; without a size, the text decides."""
  files = [gin_files.find_file(f) for f in ('runs/pretrain.gin', TINY_FILE)]
  bindings = ['MODEL_DIR = "x"', f'VOCABULARY_SIZE = {size}']
  with gin.unlock_config():
    gin.clear_config()
    gin_config.apply_config(files, bindings, set())
  commands.adopt_vocabulary_size()
  assert gin_config.get_configurable('model.Config')().vocab_size == expected


def test_a_plan_has_the_lengths_of_its_model():
  files = [gin_files.find_file(f) for f in ('runs/plan.gin', TINY_FILE)]
  with gin.unlock_config():
    gin.clear_config()
    gin_config.apply_config(
      files,
      ['model.Config.positions = 64', 'TASK_FEATURE_LENGTHS = None'],
      set(),
    )
  given = gin_config.get_configurable('plan.plan')(instead=dict)
  assert given['lengths'] == {'inputs': 64, 'targets': 64}
