"""What the code before its rooms wrote, this code reads: bit for bit.

testdata/before holds a run stopped at step 4, its rows, rows of pairs,
unfinished `atm infer` and `atm score`, and what that code made of them.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import atm
import gin
from atm.cli.gin_config import apply_config
from atm.cli.gin_files import find_file

pytestmark = pytest.mark.processes

HERE = os.path.dirname(os.path.abspath(__file__))
BEFORE = os.path.join(os.path.dirname(HERE), 'testdata', 'before')
COMMAND = 'import sys; from atm.cli.main import main; sys.exit(main())'
PROMPTS = ['All human beings', 'Everyone has', 'Jeder hat', 'und']
# What metrics.jsonl says of the clock and the machine.
TIMED = ('goodput', 'mfu', 'seconds_per_step', 'tokens_per_second')
# What its rows say since then.
ADDED_METRICS = ('flops',)
PAIRS = ('--gin.MIXTURE_OR_TASK_NAME="pairs"', '--gin.PAIRS="pairs.jsonl"')
CPU = '--gin_file=pods/cpu.gin'
# The same path whoever runs it: an unfinished file is known by its model's.
RUN = '/proc/self/cwd/run'
LINUX = pytest.mark.skipif(
  not os.path.isdir('/proc/self/cwd'), reason='needs /proc/self/cwd'
)


# Settings that runs have since then; their defaults are what it did.
ADDED = re.compile(
  r'(trainer\.|configure\.|suite\.|start\.|optimizer\.Config\.)?(train\.)?'
  r'(held_out|vocabulary_size|new_languages|pairs_temperature|'
  r'source_language|target_language|compilation_cache|debug_hang|tracker|'
  r'keep_best|patience|min_delta|label_smoothing|warmup_steps|schedule|'
  r'freeze|generation|pairs_columns|pairs_weights|lora|lora_\w+|'
  r'lora\.config\.\w+|prompt_loss|model\.Config\.architecture) = ',
  re.IGNORECASE,
)


def without_added(lines: list[str], before) -> list[str]:
  """Leaves out the lines of settings that are new, if they were not there."""
  kept = [x for x in lines if x in before or not ADDED.match(x)]
  # And the heading of what has no settings then.
  empty = r'^# Parameters for [\w.]+:\n# =+\n\n'
  return re.sub(empty, '', '\n'.join(kept), flags=re.M).split('\n')


def cpu() -> str:
  """Tells kinds of CPU apart: the same program may round otherwise on them."""
  flags = ''
  if os.path.exists('/proc/cpuinfo'):
    with open('/proc/cpuinfo') as f:
      known = (line for line in f if line.startswith(('flags', 'Features')))
      flags = ' '.join(sorted(next(known, '').split()))
  return hashlib.sha256(f'{jax.__version__} {flags}'.encode()).hexdigest()[:16]


def generated(model) -> dict[str, list[str]]:
  """What a model writes, greedily, sampled and with beams."""
  settings = {
    'greedy': {},
    'sampled': dict(temperature=1.0, seed=3),
    'beams': dict(beams=3, length_penalty=0.6),
    'completed': dict(mode='denoise', temperature=1.0),
  }
  return {
    name: model.generate(PROMPTS, max_tokens=8, **options)
    for name, options in settings.items()
  }


def command(*arguments, cwd) -> str:
  """What `atm` says, in a process of its own."""
  done = subprocess.run(
    [sys.executable, '-c', COMMAND, *arguments],
    capture_output=True,
    text=True,
    cwd=cwd,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def lines(*path) -> list[dict]:
  with open(os.path.join(*path), encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def meta_of(run, step: int) -> dict:
  with open(os.path.join(run, f'checkpoints/{step}/meta/metadata')) as f:
    return json.load(f)


def contents(folder) -> dict[str, tuple]:
  """path -> (time of its last change, hash of its bytes)."""
  found = {}
  for where, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(where, name)
      with open(path, 'rb') as f:
        digest = hashlib.sha256(f.read()).hexdigest()
      found[path] = os.stat(path).st_mtime_ns, digest
  assert found
  return found


@pytest.fixture(scope='module')
def expected():
  with open(os.path.join(BEFORE, 'expected.json'), encoding='utf-8') as f:
    return json.load(f)


@pytest.fixture
def written(tmp_path):
  """A folder of all that was written before."""
  shutil.unpack_archive(f'{BEFORE}/runs.tar.xz', tmp_path, filter='data')
  return tmp_path


@pytest.fixture(scope='module')
def resumed(tmp_path_factory):
  """(folder, what the resumed run said, its rows as they were before)."""
  folder = tmp_path_factory.mktemp('resumed')
  shutil.unpack_archive(f'{BEFORE}/runs.tar.xz', folder, filter='data')
  rows = contents(folder / 'run' / 'rows')
  said = command(
    'pretrain', '--gin_file=run/config.gin', '--gin.TRAIN_STEPS=8', cwd=folder
  )
  return folder, said, rows


# --- A checkpoint


def checksum(array: np.ndarray) -> str:
  """The checksum of an array of 32-bit numbers, as `meta` holds it."""

  def mix(x):
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

  words = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
  place = np.arange(len(words), dtype=np.uint32) * np.uint32(0x9E3779B9)
  first = mix(words ^ place)
  second = mix(first + np.uint32(0x85EBCA77))
  shape = ','.join(map(str, array.shape))
  sums = (int(x.sum(dtype=np.uint32)) for x in (first, second))
  return f'{array.dtype.name}[{shape}] ' + ''.join(f'{x:08x}' for x in sums)


def test_parameters_come_back_as_they_were_sealed(written):
  """All of them, under their names, bit for bit.

  Fault seen: a module of a layer under another name.
  """
  model = atm.load(str(written / 'run'))
  assert model.step == 4
  flat = jax.tree_util.tree_flatten_with_path(model.params)[0]
  name = lambda path: '/'.join(key.key for key in path)
  found = {f'params/{name(path)}': checksum(np.array(x)) for path, x in flat}
  sealed = meta_of(written / 'run', 4)['checksums']
  assert found == {k: v for k, v in sealed.items() if k.startswith('params/')}


def test_a_loaded_model_writes_what_it_wrote(written, expected):
  assert expected['prompts'] == PROMPTS
  assert generated(atm.load(str(written / 'run'))) == expected['generated']


# --- A run


def test_a_run_goes_on_where_it_stopped(resumed, expected):
  """At its step, with its optimizer, on the batches that came next.

  Fault seen: each step on the batch behind its own.
  """
  folder, said, _ = resumed
  assert 'resumed from step 4 in ' in said
  assert 'training a vocabulary' not in said
  rows = lines(folder, 'run', 'metrics.jsonl')
  before = meta_of(folder / 'run', 4)
  assert [row['step'] for row in rows if 'loss' in row] == list(range(1, 9))
  after = [row for row in rows if row['step'] > 4]
  assert len(after) == len(expected['metrics'])
  for row, wanted in zip(after, expected['metrics']):
    row = {k: v for k, v in row.items() if k not in TIMED + ADDED_METRICS}
    assert row.keys() == wanted.keys()
    for name, value in wanted.items():
      if name.startswith(('step', 'tokens', 'padding', 'skipped')):
        assert row[name] == value, name
      elif 'accuracy' in name:  # of two that are as likely either may win
        assert row[name] == pytest.approx(value, abs=0.01), name
      else:
        assert row[name] == pytest.approx(value, rel=1e-5), name
  meta = meta_of(folder / 'run', 8)
  assert meta['data'] == expected['data'] == {**before['data'], 'step': 8}
  assert meta['checksums'].keys() == expected['checksums'].keys()


def test_a_run_goes_on_bit_for_bit(resumed, expected):
  if cpu() != expected['made_on']:
    pytest.skip('written on another kind of CPU')
  meta = meta_of(resumed[0] / 'run', 8)
  assert meta['checksums'] == expected['checksums']
  assert meta['log'] == expected['log']


def test_a_run_keeps_its_configuration(resumed):
  """config.gin, written anew from what it bound, is the same text.

  But for the machine's devices: the next start may be on another.
  """
  folder, _, _ = resumed
  with open(os.path.join(BEFORE, 'run.gin')) as f:
    before = f.read()
  assert before.count('TRAIN_STEPS = 4\n') == 1
  after = (folder / 'run' / 'config.gin').read_text()
  before = before.replace('TRAIN_STEPS = 4\n', 'TRAIN_STEPS = 8\n')
  kept = re.sub('# Parameters for start:\n# =+\nstart.*\n\n', '', before)
  assert kept != before
  assert without_added(after.split('\n'), kept.split('\n')) == kept.split('\n')


@pytest.mark.parametrize(
  'run, name', [('pretrain', 'run'), ('finetune', 'tuned')]
)
def test_a_configuration_binds_the_same(run, name, expected):
  """Fault seen: a configurable that was no longer registered."""
  try:
    with gin.unlock_config():
      gin.clear_config()
      path = os.path.join(BEFORE, f'{name}.gin')
      apply_config([find_file(f'runs/{run}.gin'), path], [], set())
      bound = gin.config_str().splitlines()
  finally:
    gin.clear_config()
  before = expected['bindings'][f'{name}/config.gin']
  assert without_added(bound, before) == before


# --- Rows


def test_a_run_reads_the_rows_that_are_there(resumed):
  """Nothing is built anew, and no file is touched.

  Fault seen: `Denoise` under another name, which manifests hold.
  """
  folder, said, rows = resumed
  assert 'building rows' not in said
  assert contents(folder / 'run' / 'rows') == rows


def test_a_cache_of_pairs_is_finished(written):
  """Fault seen: `Pairs` under another name."""
  rows = contents(written / 'pairs_rows')
  said = command(
    'cache', *PAIRS, '--gin.CACHE_DIR="pairs_rows"',
    '--gin.VOCABULARY="run/vocabulary"',
    '--gin.TASK_FEATURE_LENGTHS={"inputs": 48, "targets": 48}', cwd=written,
  )  # fmt: skip
  assert 'building rows' not in said
  assert contents(written / 'pairs_rows') == rows


def test_tuning_reads_a_cache_of_pairs(written):
  rows = contents(written / 'pairs_rows')
  command(
    'finetune', CPU, *PAIRS, '--gin.INIT_FROM="run"', '--gin.MODEL_DIR="new"',
    '--gin.CACHE_DIR="pairs_rows"', '--gin.TRAIN_STEPS=1',
    '--gin.BATCH_SIZE=2', cwd=written,
  )  # fmt: skip
  assert contents(written / 'pairs_rows') == rows
  assert not (written / 'new' / 'rows').exists()


# --- Unfinished files


@LINUX
@pytest.mark.parametrize(
  'run, input, output, result, settings',
  [
    ('infer', 'prompts', 'prompts.out', 'output',
     ('--gin.MAX_TOKENS=8', '--gin.BATCH_SIZE=2', '--gin.TEMPERATURE=1.0')),
    ('score', 'pairs', 'pairs.scores', 'log_probability',
     ('--gin.BATCH_SIZE=4',)),
  ],
)  # fmt: skip
def test_an_unfinished_file_is_finished(
  written, run, input, output, result, settings
):
  """What was done is kept, not done again: a mark on it stays.

  Faults seen: `Config` of sampling under another name, which the file's first
  line is a hash of; sampling by place in the batch.
  """
  part = written / f'{output}.jsonl.part'
  head, *done = lines(part)
  rows = [row.pop('row') for row in done]
  whole = lines(written, f'{input}.whole.jsonl')
  assert 0 < len(rows) < len(whole)
  for i, row in zip(rows, done):
    assert {**whole[i], **row} == whole[i]
    row |= {'row': i, 'mark': 'done before'}
  part.write_text(
    ''.join(f'{json.dumps(row, ensure_ascii=False)}\n' for row in (head, *done))
  )
  said = command(
    run, CPU, f'--gin.MODEL_DIR="{RUN}"', f'--gin.INPUT="{input}.jsonl"',
    *settings, cwd=written,
  )  # fmt: skip
  assert f'{len(rows)} of {len(whole)} were done before' in said
  assert not part.exists()
  made = lines(written, f'{output}.jsonl')
  assert [i for i, row in enumerate(made) if row.pop('mark', 0)] == sorted(rows)
  for row, wanted in zip(made, whole, strict=True):
    if isinstance(wanted[result], float):
      wanted[result] = pytest.approx(wanted[result], rel=1e-5)
    assert row == wanted
