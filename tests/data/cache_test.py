"""Rows are the same bytes, whoever makes them and however often it is killed.

Faults seen: units shared out after leaving out those that are there; a file
renamed before its facts are complete.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from atm import messages
from atm.data import (
  batches,
  cache,
  cache_shards,
  task_registry,
  vocabulary_training,
)

from row_caches import SIZES, build, contents, write_shipped_texts

quiet = lambda text: None


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_shipped_texts(tmp_path_factory.mktemp('text'))


@pytest.fixture
def configure(words):
  """Configures the tasks, and as they were again afterwards."""
  import atm_tasks

  yield lambda **named: atm_tasks.configure(vocabulary=words.path, **named)
  atm_tasks.configure(vocabulary=words.path)


@pytest.fixture(scope='module')
def whole(folder, words, tmp_path_factory):
  """What an undisturbed build makes."""
  import atm_tasks

  directory = tmp_path_factory.mktemp('whole')
  configure = functools.partial(atm_tasks.configure, vocabulary=words.path)
  assert build(directory, words, configure, folder)
  return contents(directory)


def test_what_there_is(whole):
  files = [name for name in whole if name.endswith('.array_record')]
  # 3 languages x 2 objectives x 2 splits x 3 files of text
  assert len(files) == 36
  assert sum(name.endswith('manifest.json') for name in whole) == 12
  assert sum(name.endswith('sentencepiece.model') for name in whole) == 1


def test_nothing_is_made_twice(folder, words, configure, whole, tmp_path):
  assert build(tmp_path, words, configure, folder)
  assert contents(tmp_path) == whole
  made = {p: os.stat(tmp_path / p).st_mtime_ns for p in whole}
  assert build(tmp_path, words, configure, folder)
  assert made == {p: os.stat(tmp_path / p).st_mtime_ns for p in whole}


# A child dies at its n-th step of writing, n random: in a row, between a file
# and its facts, before a file is renamed, in a manifest.
KILLED = """
import json, os, random, signal, sys
import atm_tasks
from atm import fileio
from atm.data import cache, token_store

directory, vocabulary, text_dir, kills = sys.argv[1:]
draw = random.Random(0)

def build():
  cache.build(
    'text', vocabulary, {'inputs': 64, 'targets': 64}, directory,
    configure_tasks=lambda vocabulary: atm_tasks.configure(
      vocabulary=vocabulary, text_dir=text_dir),
    say=lambda text: None)

def mortal(function, left):
  def call(*arguments, **named):
    left[0] -= 1
    if left[0] < 0:
      os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **named)
  return call

seen, killed = set(), 0
for number in range(int(kills)):
  child = os.fork()
  if not child:
    left = [draw.randrange(25)]
    for module, name in ((os, 'replace'), (os, 'fsync'), (fileio, 'checksum'),
                         (json, 'dump'), (token_store.np, 'ascontiguousarray')):
      setattr(module, name, mortal(getattr(module, name), left))
    build()
    os._exit(0)
  draw.random()
  killed += os.waitpid(child, 0)[1] == signal.SIGKILL
  seen.add(sum(len(names) for _, _, names in os.walk(directory)))
build()
print(json.dumps([killed, sorted(seen)]))
"""


@pytest.mark.processes
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
  folder, words, whole, tmp_path
):
  done = subprocess.run(
    [sys.executable, '-c', KILLED, tmp_path, words.path, folder, '100'],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  killed, seen = json.loads(done.stdout)
  assert killed >= 30 and len(seen) >= 20  # it was at many places
  assert contents(tmp_path) == whole


def test_machines_that_start_at_different_times(
  folder, words, configure, whole, tmp_path
):
  said = []
  make = functools.partial(build, tmp_path, words, configure, folder)
  assert not make(share=(2, 3), say=said.append)
  assert 'still missing' in said[-1]
  assert not make(share=(0, 3))
  assert make(share=(1, 3))
  assert contents(tmp_path) == whole


def units_of(sizes) -> list[cache_shards.CacheUnit]:
  return [
    cache_shards.CacheUnit(('t',), 'train', i, len(sizes), (i,), (f'{i}',), n)
    for i, n in enumerate(sizes)
  ]


def test_progress_is_told_every_ten_seconds_and_at_the_end(monkeypatch):
  """Units of 10 to 40 bytes; the time that is left follows their sizes."""
  times = iter([100.0, 104.0, 110.0, 119.0, 120.0])
  monkeypatch.setattr(cache.time, 'perf_counter', lambda: next(times))
  units, said = units_of([10, 15, 35, 40]), []
  cache.log_progress(zip(units, [300, 200, 400, 1100]), units, said.append)
  assert said == [
    f'2/4 units  500 tokens  50 tokens/s  {messages.clock_text(30.0)} left',
    f'4/4 units  2,000 tokens  100 tokens/s  {messages.clock_text(0.0)} left',
  ]


@pytest.mark.parametrize('processes, prepare', [(1, print), (None, None)])
def test_one_process_makes_the_units_in_order(monkeypatch, processes, prepare):
  made = lambda unit, job: {'tokens': (unit.number, job)}
  monkeypatch.setattr(cache, 'make_unit', made)
  units = units_of([1, 2, 3])
  assert list(cache.make_units(units, 'job', processes, prepare)) == [
    (unit, (unit.number, 'job')) for unit in units
  ]


def test_what_is_left_out_is_summed_by_source():
  """The text of two tasks counts once, that of two languages twice."""
  counted = [
    ('a (train)', 'en', {'skipped': 1200, 'unknown': 5, 'documents': 9}),
    ('a (train)', 'en', {'skipped': 1200, 'full': 3}),
    ('a (train)', 'ja', {'skipped': 34, 'dropped/flores': 2}),
    ('b (train)', 'en', {'skipped': 1}),
  ]
  assert cache.describe_omissions(counted) == [
    'a (train): 2 sentences dropped that flores holds',
    'a (train): 3 pairs fill TASK_FEATURE_LENGTHS; what is longer is cut',
    'a (train): 1,234 lines or records skipped',
    'a (train): 5 tokens are <unk>: characters not in the vocabulary',
    'b (train): 1 lines or records skipped',
  ]


@pytest.mark.parametrize('share', [(3, 3), (-1, 2), 2, (0.5, 1), (1,)])
def test_bad_shares(words, configure, folder, tmp_path, share):
  with pytest.raises(ValueError, match=r'SHARE = .*: expected \(i, n\)'):
    build(tmp_path, words, configure, folder, share=share)


def atm(*arguments, first='pass'):
  """Runs the command, and before it some Python in the same process."""
  code = f'{first}\nimport sys; from atm.cli.main import main; sys.exit(main())'
  return subprocess.run(
    [sys.executable, '-c', code, *map(str, arguments)],
    capture_output=True, text=True,
  )  # fmt: skip


def command(directory, words, folder, *more):
  return (
    'cache', '--gin.MIXTURE_OR_TASK_NAME="text"',
    f'--gin.TEXT_DIR="{folder}"', f'--gin.VOCABULARY="{words.path}"',
    f'--gin.CACHE_DIR="{directory}"',
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 64}", *more,
  )  # fmt: skip


@pytest.mark.processes
def test_the_command_and_several_processes(folder, words, whole, tmp_path):
  done = atm(*command(tmp_path, words, folder, '--gin.PROCESSES=2'))
  assert done.returncode == 0, done.stderr
  assert 'tokens/s' in done.stdout and 'left' in done.stdout
  assert contents(tmp_path) == whole


@pytest.mark.processes
def test_a_full_disk_is_one_line_and_loses_nothing(
  folder, words, configure, whole, tmp_path
):
  """The limit on a file's size stands for the disk's."""
  limit = (
    'import resource, signal\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))'
  )
  largest = max(
    os.path.getsize(os.path.join(where, name))
    for where, _, names in os.walk(folder)
    for name in names
  )
  os.makedirs(tmp_path / 'vocabulary')  # larger than the limit
  with open(words.path, 'rb') as f:
    (tmp_path / 'vocabulary' / 'sentencepiece.model').write_bytes(f.read())
  big = tmp_path / 'big'
  big.mkdir()
  line = 'a text that takes some room ' * 20
  with open(big / 'en.txt', 'w') as f:
    f.writelines(f'{line} {i} {i * i}\n' for i in range(largest // 20))
  arguments = command(tmp_path, words, big, '--gin.PROCESSES=1')
  done = atm(*arguments, first=limit)
  assert done.returncode == 2
  assert (
    done.stderr.startswith('atm: error:') and 'Traceback' not in done.stderr
  )
  assert 'cannot be written' in done.stderr
  assert not os.path.exists(tmp_path / 'text_en_denoise-train/manifest.json')
  assert not any('.partial-' in name for name in contents(tmp_path))
  assert atm(*arguments).returncode == 0
  fresh = tmp_path / 'fresh'
  build(fresh, words, configure, big)
  again = contents(tmp_path)
  assert all(again[name] == value for name, value in contents(fresh).items())


# --- Bad text


def test_a_bad_line_stops_the_build_and_keeps_what_is_done(
  words, configure, tmp_path
):
  text = tmp_path / 'text'
  text.mkdir()
  (text / 'de.txt').write_text('gut\n' * 50)
  (text / 'fr.txt').write_bytes(
    b'bon\n' * 50 + 'fran\xe7ais\n'.encode('latin-1')
  )
  directory = tmp_path / 'rows'
  with pytest.raises(ValueError, match='fr.txt, line 51: expected UTF-8'):
    build(directory, words, configure, text, splits=('train',))
  assert not list(directory.glob('*/manifest.json'))
  kept = contents(directory)
  assert any('text_de_clm-train' in name for name in kept)
  (text / 'fr.txt').write_bytes('bon\nfrançais\n'.encode() * 50)
  assert build(directory, words, configure, text, splits=('train',))
  assert kept.items() <= contents(directory).items()


def test_empty_text_is_named(words, configure, tmp_path):
  text = tmp_path / 'text'
  text.mkdir()
  (text / 'en.txt').write_text(' \n\n')
  with pytest.raises(
    ValueError, match="'text_en_.*' has no text in its 'train'"
  ):
    build(tmp_path / 'rows', words, configure, text)


# --- Never another's rows


def test_another_vocabulary_is_refused(folder, words, configure, tmp_path):
  build(tmp_path / 'rows', words, configure, folder, splits=('train',))
  made = vocabulary_training.train_vocabulary(
    'udhr', str(tmp_path / 'v'), 900, say=quiet
  )
  with pytest.raises(ValueError, match='made with another vocabulary'):
    build(tmp_path / 'rows', made, configure, folder, splits=('train',))
  with pytest.raises(ValueError, match='made with vocabulary = '):
    batches.load_parts('text', 'train', made, SIZES, str(tmp_path / 'rows'))


def test_a_build_killed_before_it_stored_the_vocabulary(words, tmp_path):
  """Fault seen: the empty folder was taken for a vocabulary, for good."""
  (tmp_path / 'vocabulary').mkdir()
  assert cache.store_vocabulary(words, str(tmp_path)).sha256 == words.sha256


def test_other_schemes_are_refused(folder, words, configure):
  with pytest.raises(ValueError, match="'hdfs://a/rows': expected a path of"):
    build('hdfs://a/rows', words, configure, folder)


# --- What the rows hold


def test_training_needs_the_rows_alone(folder, words, configure, tmp_path):
  """On a training host the text is not there, only its rows."""
  build(tmp_path, words, configure, folder)
  text = lambda: batches.load_parts(
    'text', 'train', words, SIZES, str(tmp_path)
  )
  first = batches.Batches(text(), words, SIZES, 8, 0)(5)
  configure(cache_dir=str(tmp_path))
  second = batches.Batches(text(), words, SIZES, 8, 0)(5)
  assert all((first[k] == second[k]).all() for k in first)
  assert {p.language for p in text()} == {'en', 'ja', 'te'}
  with pytest.raises(ValueError, match='not named, only its rows'):
    list(task_registry.read_texts('text'))


def test_what_lies_beside_the_rows(folder, words, configure, tmp_path):
  with pytest.raises(FileNotFoundError, match='no finished rows'):
    cache.open_cache(str(tmp_path))
  build(tmp_path, words, configure, folder, splits=('validation',))
  made, lengths = cache.open_cache(str(tmp_path))
  assert made.sha256 == words.sha256 and lengths == SIZES
  with pytest.raises(FileNotFoundError, match='no finished rows of .text_en'):
    batches.load_parts('text', 'train', words, lengths, str(tmp_path))


def processes_below(pid: int) -> set[int]:
  """Returns the ids of all processes that one has started, and theirs."""
  with open(f'/proc/{pid}/task/{pid}/children') as f:
    children = set(map(int, f.read().split()))
  return children.union(*map(processes_below, children))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir('/proc'), reason='needs /proc')
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_build(folder, words, whole, tmp_path, number):
  """It says what is left, and goes on to the same bytes.

  Faults seen: workers that wait for ever; a signal without a word.
  """
  arguments = command(tmp_path, words, folder, '--gin.PROCESSES=2')
  code = 'import sys; from atm.cli.main import main; sys.exit(main())'
  child = subprocess.Popen(
    [sys.executable, '-c', code, *map(str, arguments)],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  with child:
    assert child.stdout.readline().startswith('building rows of tokens')
    while len(started := processes_below(child.pid)) < 3:
      assert child.poll() is None
      time.sleep(0.01)
    child.send_signal(number)
    said = child.communicate(timeout=60)[1]
  if number == signal.SIGTERM:
    assert child.returncode == 128 + number
    assert 'atm: stopped by SIGTERM: ' in said
    assert f'units of rows are finished in {tmp_path}; the same' in said
  until = time.perf_counter() + 60
  while any(os.path.exists(f'/proc/{pid}') for pid in started):
    assert time.perf_counter() < until, 'a worker lives on'
    time.sleep(0.1)
  assert atm(*arguments).returncode == 0
  assert contents(tmp_path) == whole
