"""Each script of `make bench` runs, in its smallest form.

Scripts run in this process, and so does what they would start: a process for
each contestant would take seconds. Faults seen: see each test.
"""

import contextlib
import functools
import importlib
import io
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest

from atm.model import kernels
from atm.parallel import distributed, xla_options
from atm.parallel import mesh as mesh_lib

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'benchmarks'
SMALL = dict(V=64, D=16, L=1, F=32, H=2, B=2, S=8, T=8, NEW=2)
CONFIG = dict(
  vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1,
  encoder_heads=2, decoder_heads=2, encoder_ff=32, decoder_ff=32,
  dtype='float32',
)  # fmt: skip


class Scripts:
  """Imports benchmarks with small sizes, and runs them in this process."""

  def __init__(self, patch):
    self.patch, self.loaded = patch, {}
    # Behind the tests: benchmarks/survive.py imports tests/survive.py.
    patch.setattr(sys, 'path', [*sys.path, str(FOLDER)])
    for name in ('train_step', 'small_model', 'decode'):
      patch.delitem(sys.modules, name, raising=False)
    patch.setattr(subprocess, 'run', self._run_here)

  def load(self, name: str, **sizes):
    """Returns a script as a module of small sizes."""
    if name in ('train_step', 'small_model', 'decode'):
      module = importlib.import_module(name)
    else:
      path = FOLDER / f'{name}.py'
      spec = importlib.util.spec_from_file_location(f'bench_{name}', path)
      module = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(module)
    for key, value in {**SMALL, **sizes}.items():
      if hasattr(module, key):
        self.patch.setattr(module, key, value)
    self.loaded[f'{name}.py'] = module
    return module

  def main(self, name: str, *arguments: str, **sizes) -> str:
    """Runs a script's `main`; returns what it printed."""
    module = self.loaded.get(f'{name}.py') or self.load(name, **sizes)
    self.patch.setattr(sys, 'argv', [f'{name}.py', *arguments])
    with contextlib.redirect_stdout(io.StringIO()) as out:
      module.main()
    return out.getvalue()

  def _run_here(self, command, **_):
    """Stands in for subprocess.run: a contestant, or a question of packages."""
    if command[1] == '-c':  # peers, which the tests' environment lacks
      return types.SimpleNamespace(returncode=1, stdout='')
    name = pathlib.Path(command[1]).stem
    out = self.main(name, *command[2:])
    return types.SimpleNamespace(returncode=0, stdout=out.encode())


@pytest.fixture
def scripts(monkeypatch):
  one = functools.partial(mesh_lib.make_mesh, devices=jax.devices()[:1])
  monkeypatch.setattr(mesh_lib, 'make_mesh', one)
  monkeypatch.setattr(distributed, 'start_jax', lambda **_: None)
  monkeypatch.setattr(xla_options, 'set_flags', lambda: None)
  monkeypatch.setattr(xla_options, 'set_compilation_cache', lambda: None)
  monkeypatch.setattr(os, 'sched_setaffinity', lambda *_: None)
  made = Scripts(monkeypatch)
  made.load('train_step')
  made.load('small_model')
  return made


def list_scripts() -> list[str]:
  text = (ROOT / 'Makefile').read_text()
  return re.findall(r'benchmarks/(\w+)\.py', text.partition('\nbench:')[2])


def test_every_script_has_a_test():
  text = pathlib.Path(__file__).read_text()
  assert list_scripts()
  for name in list_scripts():
    assert re.search(rf"scripts\.main\(\s*'{name}'", text), name


@pytest.mark.parametrize('name', sorted({*list_scripts()} - {'data'}))
def test_a_script_is_imported(scripts, name):
  """Also those that are run by `make test-slow` alone; `data` is run below."""
  assert callable(scripts.load(name).main)


def test_training_step(scripts):
  out = scripts.main('train_step', '--rounds=1', '--steps=1', '--only', 'atm')
  assert re.search(r'^atm +\d', out, re.M), out
  assert 'of XLA' in out


def test_products(scripts):
  out = scripts.main('products', SHAPES=[(8, 4, 16)])
  assert '8, 4, 16 bfloat16' in out, out


@pytest.mark.skipif(
  not kernels.are_available(), reason='there is no C compiler'
)
def test_kernels(scripts):
  out = scripts.main('kernels', ROWS=(1, 3), POSITIONS=32)
  assert 'N = 3' in out and 'R = 3' in out


def test_startup(scripts, monkeypatch):
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: None)
  out = scripts.main('startup', ROUNDS=1, COMMANDS=((), ('--version',)))
  assert out.count('processor') == 2, out


def test_startup_of_a_run(scripts, tmp_path, monkeypatch):
  """The clock of `pretrain` stops at its first step, not at its end."""
  for name in ('rows', 'vocabulary'):
    (tmp_path / name).mkdir()
  code = (
    'import sys, time; open(sys.argv[1], "w").write(\'{"step": 1, "loss"\'); '
    'time.sleep(0.5)'
  )
  popen = subprocess.Popen

  def stand_in(command, **options):
    (folder,) = (x[16:-1] for x in command if x.startswith('--gin.MODEL_DIR='))
    file = f'{folder}/metrics.jsonl'
    return popen([sys.executable, '-S', '-c', code, file], **options)

  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: None)
  monkeypatch.setattr(subprocess, 'Popen', stand_in)
  out = scripts.main('startup', str(tmp_path), ROUNDS=1, COMMANDS=())
  (seconds,) = re.findall(r'first step +(\S+) s', out)
  assert 0 < float(seconds) < 0.5, out


@pytest.mark.processes
def test_decoding(scripts):
  out = scripts.main(
    'decode', '--rounds=1', '--repeats=1', '--batches', '2', '--beams=2'
  )
  assert re.search(r'^atm .* 100.0%', out, re.M), out
  assert re.search(r'^atm_bf16 ', out, re.M), out
  assert re.search(r'^atm_int8 ', out, re.M), out


@pytest.mark.processes
def test_choices(scripts):
  sizes = {k: v for k, v in CONFIG.items() if k not in ('vocab_size', 'dtype')}
  out = scripts.main('choices', '--repeats=1', QUESTIONS=2, SIZES=sizes)
  assert re.search(r'^denoise +\d', out, re.M), out


@pytest.mark.processes
def test_freezing(scripts):
  from atm.model import config

  sizes = config.ModelConfig(**CONFIG, positions=8)
  out = scripts.main('freeze', PAIRS=1, CONFIG=sizes)
  assert re.search(r'^ratio +\d', out, re.M), out


@pytest.mark.processes
def test_adapters(scripts):
  sizes = {k: v for k, v in CONFIG.items() if k != 'dtype'}
  out = scripts.main(
    'lora', '--here', '--steps=1', SIZES={'base': sizes}, S=8, T=8, RANK=2
  )
  assert len(re.findall(r'^base +(full|lora).* s a step', out, re.M)) == 3, out


@pytest.mark.processes
def test_micro_batches(scripts):
  from atm.model import config

  sizes = config.ModelConfig(**CONFIG, positions=8)
  out = scripts.main(
    'accumulate', '--batch=2', '--rounds=1', LENGTH=8, NUMBERS=(1, 2),
    CONFIG=sizes,
  )  # fmt: skip
  assert re.search(r'^ +2 +\d', out, re.M), out


@pytest.mark.processes
def test_prompt_lookup(scripts):
  out = scripts.main(
    'prompt_lookup', '--cases', 'denoise', '--drafts', '0', '3',
    '--repeats=1', '--tokens=12', '--inputs=64', '--width=128', '--layers=1',
    '--vocabulary=96',
  )  # fmt: skip
  assert re.search(r'^denoise +3 +-?\d', out, re.M), out


@pytest.mark.processes
def test_gpu(scripts):
  """All of it on a CPU, with XLA in cuDNN's place."""
  from atm.model import config

  gpu = scripts.load(
    'gpu', ATTENTION=dict(B=2, T=12, H=2, K=8), ROWS=2, LENGTH=8, NEW=2,
    STEPS=1, SMALL={k: v for k, v in CONFIG.items() if k != 'dtype'},
  )  # fmt: skip
  sizes = config.ModelConfig(**{**CONFIG, 'dtype': 'bfloat16'})
  scripts.patch.setattr(gpu, 'read_config', lambda name: sizes)
  out = scripts.main('gpu', '--platform=cpu')
  assert out.count('| passed |') == 12 and 'FAILED' not in out, out
  assert re.search(r'^\| large: a step .* MFU \d', out, re.M), out
  # A kernel that forgets who may see whom.
  from atm.model import attention

  whole = lambda query, key, value, mask, kernel: attention.einsum_attention(
    query, key, value, mask.replace(key_segments=mask.query_segments * 0,
                                    query_segments=mask.query_segments * 0)
  )  # fmt: skip
  scripts.patch.setattr(attention, 'cudnn_attention', whole)
  out = scripts.main('gpu', '--platform=cpu', '--only', 'attention')
  assert out.count('| FAILED |') == 3, out


@pytest.mark.slow
def test_fusions(scripts):
  sizes = {'tiny': ({}, (8, 2, 2))}
  scripts.load('decode')
  out = scripts.main('fusions', '--rounds=1', '--steps=1', SIZES=sizes)
  assert out.count('ratio') == 4, out


@pytest.mark.slow
def test_cost_of_checksums(scripts):
  out = scripts.main('survive', 'cost', SIZES=CONFIG)
  assert 'restore' in out, out


@pytest.mark.processes
def test_data(scripts, words):
  """Called a function of the data without one of its arguments."""
  out = scripts.main(
    'data', '--length=32', f'--vocabulary={words.path}', ROUNDS=1, AHEAD=1
  )
  assert 'one core of one host makes' in out, out
