"""What the command prints of an error that ends it."""

import os
import re
import subprocess
import sys
import tempfile

import pytest

from atm import messages
from atm.cli import commands, error_report, gin_config, main
from atm.messages import CrashNote

COMMAND = ['infer', "--gin.INPUT='my prompts.txt'"]


@pytest.fixture
def crash(monkeypatch, tmp_path, capsys):
  """A function: what `atm report` prints where its work raises an error."""
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  monkeypatch.setattr(gin_config, 'apply_config', lambda *_: None)
  monkeypatch.setattr(commands, 'WITHOUT_DEVICES', tuple(commands.RUNS))

  def run(error, status):
    def work(run):
      raise error

    monkeypatch.setattr(commands, 'execute', work)
    assert main.main(['report']) == status
    return capsys.readouterr().err

  return run


@pytest.mark.parametrize(
  'error',
  [
    TypeError('x' * 2000),
    KeyError('tasks'),
    RecursionError('maximum recursion depth exceeded'),
    AssertionError(),
    MemoryError(),
    type('JaxRuntimeError', (RuntimeError,), {})(
      'RESOURCE_EXHAUSTED: no\n' * 9
    ),
    type('PanicException', (BaseException,), {})('a panic'),
  ],
  ids=lambda error: type(error).__name__,
)
def test_what_slips_through_is_one_screen(crash, error, tmp_path):
  """Fault seen: a traceback of pages."""
  error.add_note('a note of JAX')
  text = crash(error, 1)
  lines = text.splitlines()
  assert len(lines) <= 20 and all(len(line) < 500 for line in lines)
  assert lines[0].startswith(f'atm: error: {type(error).__name__}')
  for fact in (
    'where',
    'traceback',
    'command    atm report',
    'versions',
    'jax',
  ):
    assert fact in text
  assert 'in run_command, atm/cli/main.py:' in text
  (path,) = tmp_path.iterdir()
  assert str(path) in text and 'ATM_TRACEBACK=1' in text
  kept = path.read_text()
  assert 'Traceback' in kept and 'jaxlib' in kept
  memory = isinstance(error, MemoryError) or 'RESOURCE' in str(error)
  assert ('too little memory' in text) == memory


def test_an_extra_that_is_missing_is_one_line(crash, tmp_path):
  """Fault seen: a screen that asks for a report, for want of gcsfs."""
  text = messages.missing_extra('gs:// needs gcsfs', 'gcs')
  said = crash(messages.MissingExtraError(text), 2)
  assert said == "atm: error: gs:// needs gcsfs: pip install 'atm-jax[gcs]'\n"


def test_a_mistake_is_one_line(crash, tmp_path):
  """Faults seen: gin's lines about its call shown; a text of 900 names."""
  assert crash(OSError('no'), 2) == 'atm: error: no\n'
  text = "no\n  In call to configurable 'train' (<class>)"
  assert crash(ValueError(text), 2) == 'atm: error: no\n'
  long = crash(ValueError('/a/path: ' + 'x, ' * 900 + 'the end'), 2)
  assert long.startswith('atm: error: /a/path: x') and len(long) < 500
  assert long.endswith('the end\n') and long.count('\n') == 1
  assert crash(gin_config.UserError('\ud800'), 2) == 'atm: error: \\ud800\n'
  assert not list(tmp_path.iterdir())


def test_the_note_of_a_training_run_names_place_and_traceback(crash, tmp_path):
  """Fault seen: any note, JAX's as well, taken for that of a run."""
  error = KeyError('x')
  error.add_note('of JAX')
  error.add_note(CrashNote('  where      after step 4'))
  lines = crash(error, 1).splitlines()
  assert lines[:2] == ["atm: error: KeyError: 'x'", '  where      after step 4']
  assert not list(tmp_path.iterdir())


def test_a_traceback_that_cannot_be_written(monkeypatch, tmp_path):
  """Fault seen: a second error hides the first."""
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'none'))
  text = error_report.format_error(KeyError('x'), COMMAND)
  assert 'not written: ' in text and "KeyError: 'x'" in text
  assert """command    atm infer '--gin.INPUT='"'"'my prompts.txt'""" in text


def test_atm_traceback_prints_all(crash, monkeypatch):
  monkeypatch.setenv('ATM_TRACEBACK', '1')
  text = crash(KeyError('x'), 1)
  assert text.startswith('Traceback') and 'atm: error: KeyError' in text


def test_an_interrupt_is_quiet(crash):
  assert crash(KeyboardInterrupt(), 130) == ''


def test_a_reader_that_goes_ends_the_command_quietly():
  """Faults seen: 'Broken pipe' and status 2; 'Exception ignored' at exit."""
  read, write = os.pipe()
  os.close(read)
  code = 'import sys; from atm.cli.main import main; sys.exit(main())'
  done = subprocess.run(
    [sys.executable, '-c', code, 'help'], stdout=write, stderr=subprocess.PIPE
  )
  os.close(write)
  assert (done.returncode, done.stderr) == (main.CLOSED_OUTPUT, b'')


def test_a_broken_pipe_elsewhere_is_an_error(crash):
  assert re.match('atm: error: .*worker', crash(BrokenPipeError('worker'), 2))


@pytest.mark.parametrize('argument', [
  "--gin.API_KEY='secret key'", '--gin.api_key="secret key"',
  "--gin.serving.serve.api_key = 'secret key'", '--gin.API_KEY=secret key',
])  # fmt: skip
def test_no_report_tells_a_key(argument, tmp_path, monkeypatch):
  """A server's log is read by others than its owner."""
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  for error in (
    RuntimeError('secret key'),
    ValueError("API_KEY = 'secret key"),
  ):
    text = error_report.format_error(error, ['serve', argument])
    assert error_report.HIDDEN in text and 'secret' not in text
  (path,) = tmp_path.iterdir()
  assert 'secret' not in path.read_text()
  one = ['serve', '--gin.API_KEY=a']
  assert error_report.hide_keys('a large key', one) == 'a large key'
  assert error_report._format_command(one) == "atm serve '--gin.API_KEY=***'"
