"""A pipeline makes the bytes of a local build, whatever happens to workers.

`make test-beam` runs what needs Apache Beam, in an environment of its own.
"""

import contextlib
import functools
import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

from atm import storage
from atm.data import beam_runner

from row_caches import build, contents, write_shipped_texts

needs_beam = pytest.mark.skipif(
  importlib.util.find_spec('apache_beam') is None,
  reason="needs Apache Beam: make test-beam, or pip install 'atm-jax[beam]'",
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_shipped_texts(tmp_path_factory.mktemp('text'))


@pytest.fixture(scope='module')
def whole(folder, words, tmp_path_factory):
  """What a build without a pipeline makes."""
  import atm_tasks

  directory = tmp_path_factory.mktemp('whole')
  configure = functools.partial(atm_tasks.configure, vocabulary=words.path)
  assert build(directory, words, configure, folder)
  return contents(directory)


def start(directory, words, text, *more, env=None) -> subprocess.Popen:
  """Starts `atm cache` as a pipeline of two worker processes."""
  return subprocess.Popen(
    [
      sys.executable, '-m', 'atm', 'cache', '--gin.RUNNER="beam"',
      '--gin.PROCESSES=2', '--gin.MIXTURE_OR_TASK_NAME="text"',
      f'--gin.TEXT_DIR="{text}"', f'--gin.VOCABULARY="{words.path}"',
      f'--gin.CACHE_DIR="{directory}"',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 64}", *more,
    ],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    env={**os.environ, **(env or {})},
  )  # fmt: skip


def find_workers(parent: int) -> list[int]:
  """Returns the worker processes below a process."""
  parents, workers = {}, []
  for name in filter(str.isdigit, os.listdir('/proc')):
    try:
      with open(f'/proc/{name}/stat', encoding='utf-8') as f:
        parents[int(name)] = int(f.read().rpartition(')')[2].split()[1])
      with open(f'/proc/{name}/cmdline', 'rb') as f:
        words = f.read().split(b'\0')
    except OSError:  # it has ended
      continue
    if b'apache_beam.runners.worker.sdk_worker_main' in words:
      workers.append(int(name))
  above = lambda pid: pid == parent or pid in parents and above(parents[pid])
  return [pid for pid in workers if above(pid)]


def read_end(process: subprocess.Popen) -> str:
  """Returns the one line of stderr of a command that ends with its workers."""
  try:
    _, err = process.communicate(timeout=60)
  finally:
    left = find_workers(process.pid)
    for pid in [*left, process.pid]:
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
  assert not left
  (line,) = err.splitlines()
  return line


def count_facts(directory) -> int:
  return sum(
    name.endswith('.json') and name != 'manifest.json'
    for _, _, names in os.walk(directory)
    for name in names
  )


# --- With Apache Beam


@needs_beam
@pytest.mark.beam
def test_the_bytes_are_those_of_a_local_build(folder, words, whole, tmp_path):
  """By two pipelines at once: each unit may be made twice."""
  both = [start(tmp_path, words, folder) for _ in range(2)]
  ends = [process.communicate() for process in both]
  assert [process.returncode for process in both] == [0, 0], ends
  assert contents(tmp_path) == whole
  counted = 'Beam counters: '
  lines = [line for out, _ in ends for line in out.splitlines()]
  found = [line for line in lines if line.startswith(counted)]
  made = dict.fromkeys(('units', 'tokens', 'units_there'), 0)
  for count, name in (
    x.split() for line in found for x in line[len(counted) :].split(', ')
  ):
    made[name] = made.get(name, 0) + int(count.replace(',', ''))
  assert made['units'] + made['units_there'] >= 18
  # The text has so many; more are counted where both pipelines made a unit.
  assert made['tokens'] >= 12_367
  again = start(tmp_path, words, folder)
  out, _ = again.communicate()
  assert again.returncode == 0 and counted not in out  # nothing was left


@needs_beam
@pytest.mark.beam
def test_killed_workers_lose_nothing(folder, words, whole, tmp_path):
  kills = 0
  for _ in range(20):
    before = count_facts(tmp_path)
    process = start(tmp_path, words, folder)
    while process.poll() is None and kills < 3:
      workers = find_workers(process.pid)
      if workers and count_facts(tmp_path) > before:
        os.kill(workers[0], signal.SIGKILL)
        kills += 1
        break
      time.sleep(0.005)
    out, err = process.communicate(timeout=300)
    if process.returncode == 0:
      break
    assert process.returncode == 2, err
    assert 'a worker process has ended' in err.splitlines()[0], err
    assert len(err.splitlines()) <= 2 and 'the same command' in err
  assert kills >= 2
  assert contents(tmp_path) == whole


@needs_beam
@pytest.mark.beam
def test_text_and_rows_in_a_bucket(bucket, folder, words, whole, tmp_path):
  storage.upload_folder(str(folder), f'{bucket}/text')
  process = start(f'{bucket}/rows', words, f'{bucket}/text')
  out, err = process.communicate()
  assert process.returncode == 0, err
  found = storage.find_objects(f'{bucket}/rows')
  storage.download(f'{bucket}/rows', str(tmp_path / 'rows'), found)
  assert contents(tmp_path / 'rows') == whole


@needs_beam
@pytest.mark.beam
def test_options_are_handed_on(folder, words, whole, tmp_path):
  runner = f'--runner={beam_runner.LOCAL_RUNNER}'  # in this process
  options = f'--gin.BEAM_OPTIONS=("{runner}", "--direct_num_workers=1")'
  process = start(tmp_path / 'rows', words, folder, options)
  _, err = process.communicate()
  assert process.returncode == 0, err
  assert contents(tmp_path / 'rows') == whole
  wrong = '--gin.BEAM_OPTIONS=("--runner=NoRunner",)'
  process = start(tmp_path / 'other', words, folder, wrong)
  _, err = process.communicate()
  assert process.returncode == 2 and 'NoRunner' in err.splitlines()[-1]


@needs_beam
@pytest.mark.beam
def test_bad_text_is_one_line(words, tmp_path):
  text = tmp_path / 'text'
  text.mkdir()
  (text / 'en.jsonl').write_text('{"text": "a"}\n{"tex": 1}\n')
  process = start(tmp_path / 'rows', words, text)
  _, err = process.communicate()
  assert process.returncode == 2
  (line,) = err.splitlines()
  assert 'en.jsonl, line 2: expected an object with a string `text`' in line


# Workers of a process that reads this end with another status than 0.
FAILING_END = """
import atexit, os, sys
if 'apache_beam.runners.worker.sdk_worker_main' in sys.orig_argv:
  atexit.register(os._exit, 1)
"""


@needs_beam
@pytest.mark.beam
def test_a_worker_that_fails_at_its_end_keeps_no_build(words, tmp_path):
  """Fault seen: the others were not ended, and waited for, for ever."""
  text = tmp_path / 'text'
  text.mkdir()
  (text / 'en.jsonl').write_text('{"tex": 1}\n')
  (tmp_path / 'sitecustomize.py').write_text(FAILING_END)
  paths = f'{tmp_path}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
  env = {'PYTHONPATH': paths}
  process = start(tmp_path / 'rows', words, text, env=env)
  line = read_end(process)
  assert process.returncode == 2
  assert 'en.jsonl, line 1: expected an object' in line


@needs_beam
@pytest.mark.beam
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_alone_ends_it(words, folder, tmp_path, number):
  """Fault seen: it waited for ever for workers that had not connected yet."""
  process = start(tmp_path, words, folder)
  while not find_workers(process.pid):
    time.sleep(0.01)
  process.send_signal(number)
  line = read_end(process)
  assert process.returncode == 128 + number
  assert 'the same command makes the rest' in line


# --- Without


@pytest.mark.skipif(
  importlib.util.find_spec('apache_beam') is not None, reason='Beam is there'
)
def test_without_beam_the_extra_is_named(folder, words, tmp_path):
  import atm_tasks

  configure = functools.partial(atm_tasks.configure, vocabulary=words.path)
  with pytest.raises(ValueError, match=r"RUNNER = 'beam' needs .*\[beam\]'"):
    build(tmp_path, words, configure, folder, runner='beam')


def test_errors_of_workers_are_those_of_a_local_build():
  lines = 'Traceback (most recent call last):\n  File "a.py", line 1\n{}\n'
  cases = {
    "ValueError: en.txt, line 3: bad [while running 'MakeUnit']":
      ValueError('en.txt, line 3: bad'),
    'atm.storage.client.StorageError: gs://b: no': OSError('gs://b: no'),
    'SomeError: x': RuntimeError(lines.format('SomeError: x')),
  }  # fmt: skip
  for line, expected in cases.items():
    error = beam_runner._shorten_error(RuntimeError(lines.format(line)))
    assert (type(error), str(error)) == (type(expected), str(expected))
