"""A log that nobody reads does not end a run; no file takes its number."""

import io
import os
import subprocess
import sys

import pytest

from atm.cli import log_output

LINES = """
import os, sys
from atm.cli import log_output
log_output.open_standard_streams()
with log_output.keep_going(sys.argv[1] == 'log'):
  for number in range(2000):
    print('line', number)
  with open(sys.argv[2], 'w') as f:
    print('whole', f.fileno() > 2, file=f)
"""


def lines(tmp_path, redirection, kind='log'):
  """Prints with a redirection of the shell; returns status, errors, file."""
  made = tmp_path / 'made'
  script = f'"$0" -c "$1" {kind} {made} {redirection}'
  done = subprocess.run(
    ['bash', '-c', f'set -o pipefail; {script}', sys.executable, LINES],
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
  )
  text = made.read_text() if made.exists() else None
  return done.returncode, done.stderr, text


@pytest.mark.parametrize(
  'redirection, said',
  [
    ('| true', 'Broken pipe'),
    ('> /dev/full', 'No space left'),
    ('>&-', ''),
    ('2>&-', ''),
    ('<&- >&- 2>&-', ''),
    ('2>&1 | true', ''),
  ],
)
def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, redirection, said):
  """Faults seen: BrokenPipeError; 120 at the end; a data file for a log."""
  code, errors, text = lines(tmp_path, redirection)
  assert (code, text) == (0, 'whole True\n')
  assert said in errors and len(errors.splitlines()) == bool(said)


@pytest.mark.parametrize('kind', ['log', 'chat'])
def test_what_an_encoding_lacks_is_escaped(kind):
  """Faults seen: a chat that ended after its first answer; a log cut."""
  script = LINES.replace("'line', number", r"'\u2068', '\udcff'")
  env = {**os.environ, 'PYTHONPATH': os.getcwd(), 'PYTHONIOENCODING': 'ascii'}
  command = [sys.executable, '-c', script, kind, os.devnull]
  done = subprocess.run(command, capture_output=True, text=True, env=env)
  assert (done.returncode, done.stderr) == (0, '')
  assert set(done.stdout.splitlines()) == {r'\u2068 \udcff'}


def test_an_output_that_cannot_be_written_is_an_error(tmp_path):
  code, errors, text = lines(tmp_path, '> /dev/full', 'output')
  assert code and 'No space left' in errors and text is None


def test_lines_appear_when_they_are_printed(tmp_path, monkeypatch):
  """Fault seen: the lines of a killed run stay in its buffer."""
  below = io.BytesIO()
  stream = io.TextIOWrapper(below, encoding='utf-8')
  monkeypatch.setattr(sys, 'stdout', stream)
  with log_output.keep_going(True):
    print('half', end='')
    print(' whole')
    assert below.getvalue() == b'half whole\n'
    assert sys.stdout.encoding == 'utf-8'
    assert sys.stdout.write('four') == 4
  assert sys.stdout is stream and below.getvalue().endswith(b'four')


def test_lines_of_gloo_are_dropped():
  """Fault seen: 48 lines about connections bury a log of two processes."""
  script = """
import os, sys
from atm.cli import log_output
log_output.open_standard_streams()
print('before')
log_output.silence_gloo()
print('after \\udcff')
os.write(1, b'[Gloo] Rank 0 is connected to 1 peer ranks.\\n')
os.write(2, b'an error\\n')
"""
  env = {**os.environ, 'PYTHONPATH': os.getcwd()}
  command = [sys.executable, '-c', script]
  done = subprocess.run(command, capture_output=True, text=True, env=env)
  assert done.stdout == 'before\nafter \\udcff\n'
  assert (done.returncode, done.stderr) == (0, 'an error\n')
