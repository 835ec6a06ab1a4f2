"""Fixtures: 8 simulated CPU devices, a tiny model, and the shipped text."""

import gc
import importlib.util
import os
import signal
import sys

import jaxlib.version

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

# Tests compile far more than they compute: LLVM optimizes nothing, here and in
# what tests start, and a training step of the tiny model compiles in 1.3 s of
# CPU time, not 9.5. Programs before LLVM are as users have them; only fusions
# are those of XLA's older emitters, and a test that looks at them compiles with
# FUSED_AS_USERS. What compiles for TPUs compiles as for users.
# Releases from 0.11.1 have no older emitters; XLA ends a process over a flag
# that it does not know.
FUSED_AS_USERS, OLD_EMITTERS = {}, ''
if jaxlib.version.__version_info__ < (0, 11, 1):
  FUSED_AS_USERS = {'xla_cpu_use_fusion_emitters': True}
  OLD_EMITTERS = '--xla_cpu_use_fusion_emitters=false '
QUICK = (
  f'--xla_backend_optimization_level=0 {OLD_EMITTERS}'
  '--xla_cpu_parallel_codegen_split_count=1'
)
flags = os.environ.get('XLA_FLAGS', '')
if QUICK not in flags and importlib.util.find_spec('libtpu') is None:
  os.environ['XLA_FLAGS'] = f'{QUICK} {flags}'.strip()  # the later one counts

import jax

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update(
  'jax_compilation_cache_dir',
  os.environ.get('JAX_COMPILATION_CACHE_DIR')
  or os.path.expanduser('~/.cache/atm/xla'),
)
KEPT = {  # compiled programs, all of them
  'jax_enable_compilation_cache': True,
  'jax_persistent_cache_min_compile_time_secs': 0,
}
for name, value in KEPT.items():
  jax.config.update(name, value)

# As a terminal starts commands; nohup and a shell's & have these ignored.
for number in (signal.SIGINT, signal.SIGHUP):
  if signal.getsignal(number) == signal.SIG_IGN:
    as_ever = {signal.SIGINT: signal.default_int_handler}
    signal.signal(number, as_ever.get(number, signal.SIG_DFL))

import hypothesis
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from atm.data import vocabulary
from atm.model import compiler_check, config
from atm.parallel import distributed, mesh, xla_options

xla_options.set_flags()  # fusions are those of the commands

pytest_plugins = ['eval_folders']  # fixtures of evaluations for pages

# Hypothesis draws the same examples every time; no deadline on slow machines.
hypothesis.settings.register_profile('atm', deadline=None, derandomize=True)
hypothesis.settings.load_profile('atm')


def tiny(**changes) -> config.ModelConfig:
  """A model small enough to compile in a second."""
  sizes = dict(
    vocab_size=96,
    d_model=32,
    encoder_layers=2,
    decoder_layers=3,
    encoder_heads=4,
    decoder_heads=4,
    encoder_ff=64,
    decoder_ff=48,
    positions=48,
    init_std=0.2,
    dtype='float32',
  )
  return config.ModelConfig(**{**sizes, **changes})


@pytest.fixture(autouse=True)
def kept():
  """Programs are kept again after a command that keeps none, or fewer.

  Planning for absent devices did it: no test behind it found a program.
  """
  yield
  changed = {k: v for k, v in KEPT.items() if getattr(jax.config, k) != v}
  for name, value in changed.items():
    jax.config.update(name, value)
  if changed:
    compilation_cache.reset_cache()  # whether there is one is asked once


@pytest.fixture(autouse=True)
def forget_bindings():
  """Clears what a test bound: a later one read another's model sizes."""
  yield
  if 'gin' in sys.modules:
    sys.modules['gin'].clear_config()


@pytest.fixture(autouse=True)
def forget_processes():
  """Clears that a test joined others: an error's exit ended a later one."""
  yield
  distributed._stage = None


@pytest.fixture(autouse=True)
def compiler_is_trusted(request, monkeypatch):
  """Runs of tests do not check XLA, whose flags here are not a user's."""
  if not request.node.get_closest_marker('checks_compiler'):
    monkeypatch.setattr(
      compiler_check, 'check_compiler', lambda *args, **settings: None
    )


@pytest.fixture
def one_device():
  return mesh.make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture(scope='session')
def object_stores():
  """The environment of servers of both object stores, see storage_servers."""
  import storage_servers

  with storage_servers.running() as environment:
    yield environment


@pytest.fixture
def make_bucket(object_stores, monkeypatch, tmp_path):
  """A function: 'gs' or 's3' -> a folder of its own in such an object store."""
  for name, value in object_stores.items():
    monkeypatch.setenv(name, value)
  # Copies of another test's objects are no copies of this one's.
  monkeypatch.setattr(
    'atm.storage.copies.CACHE', str(tmp_path / 'storage_cache')
  )
  return lambda scheme: f'{scheme}://bucket/{tmp_path.name}-{os.getpid()}'


@pytest.fixture(params=['gs', 's3'])
def bucket(request, make_bucket):
  """A folder of its own in each kind of object store: gs://..., s3://..."""
  return make_bucket(request.param)


@pytest.fixture(scope='session')
def words(tmp_path_factory) -> vocabulary.Vocabulary:
  """A 2048-piece vocabulary of the shipped text."""
  import atm_tasks
  from atm.data import vocabulary_training

  folder = str(tmp_path_factory.mktemp('vocabulary'))
  made = vocabulary_training.train_vocabulary(
    'udhr', folder, 2048, say=lambda text: None
  )
  atm_tasks.configure(vocabulary=made.path)
  return made


@pytest.fixture(scope='session')
def byte_words(tmp_path_factory) -> vocabulary.Vocabulary:
  """A vocabulary that spells what is not in its few texts in bytes."""
  from atm.data import vocabulary_training

  texts = ['a plain text; <br> no more', 'and another one.', 'よって、もう一つ']
  folder = str(tmp_path_factory.mktemp('bytes'))
  return vocabulary_training.train_sentencepiece(
    texts * 20, folder, 294, byte_fallback=True
  )


@pytest.fixture(scope='session')
def model(words):
  """An untrained model over the shipped vocabulary, on one device."""
  import small_models

  return small_models.untrained(words)


@pytest.fixture(scope='session')
def runs(tmp_path_factory):
  """A folder of runs, and of their rows, that several modules compare with."""
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='session')
def train(words, runs):
  """Trains small runs, see `tiny_runs.Trainer`."""
  import tiny_runs

  return tiny_runs.Trainer(words, runs)


def batch(rng, B: int, S: int, T: int, vocab_size: int = 96, full=False):
  """A random batch with ragged lengths."""

  def side(length):
    n = np.full(B, length) if full else rng.integers(2, length + 1, B)
    inside = np.arange(length) < n[:, None]
    ids = rng.integers(3, vocab_size, (B, length))
    return np.where(inside, ids, 0).astype(np.int32), inside.astype(np.int32)

  source, source_segments = side(S)
  target, target_segments = side(T)
  shifted = np.roll(target, 1, axis=1)
  shifted[:, 0] = 1
  return {
    'encoder_input_tokens': source,
    'encoder_segment_ids': source_segments,
    'decoder_input_tokens': shifted * target_segments,
    'decoder_target_tokens': target,
    'decoder_segment_ids': target_segments,
    'decoder_loss_weights': target_segments.astype(np.float32),
    'objective': (np.arange(B) % 2).astype(np.int32),
  }


@pytest.fixture
def configured():
  """Configures `atm plan` with more files; forgets it afterwards."""
  import gin
  from atm.cli import gin_config, gin_files

  def call(*files, bindings=()):
    files = [gin_files.find_file(f) for f in ('runs/plan.gin', *files)]
    gin_config.apply_config(files, list(bindings), set())

  with gin.unlock_config():
    yield call
  gin.clear_config()


def collect_rarely() -> None:
  """Python looks for garbage less often, and never at what is imported.

  Tracing makes so many objects that a fifth of the tests' time was spent on
  going through those of JAX and TensorFlow.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000)


@pytest.fixture(scope='module')
def few_objects():
  """For modules that look for garbage, which takes two seconds in the end."""
  collect_rarely()


def pytest_collection_finish():
  collect_rarely()


def pytest_ignore_collect(collection_path, config):
  """Modules without the mark that `-m` begins with are not imported.

  `make test-docs` read all modules, for those of one folder, in 11 seconds.
  """
  mark = config.option.markexpr.partition(' ')[0]
  if mark in ('', 'not') or not collection_path.name.endswith('_test.py'):
    return None
  return f'mark.{mark}' not in collection_path.read_text('utf-8') or None


def pytest_collection_modifyitems(items):
  """Tests that compile for TPUs run wherever libtpu is; the longest is first.

  The notebook came last, alone on one of two cores, and at first both waited
  for the model that all other documents share.
  """
  items.sort(key=lambda item: item.name != 'test_the_notebook_runs')
  if importlib.util.find_spec('libtpu') is None:
    why = "needs libtpu: make test-plan, or pip install 'atm-jax[plan]'"
    for item in items:
      if item.get_closest_marker('libtpu'):
        item.add_marker(pytest.mark.skip(reason=why))
