"""A compiler that computes wrongly ends a run before it trains or decodes."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from atm.inference import api
from atm.model import compiler_check
from atm.model.config import ModelConfig
from atm.parallel import xla_options
from atm.train import metric_writer

from conftest import QUICK

pytestmark = pytest.mark.checks_compiler
CONFIG = ModelConfig(dtype='float32')
MAKE_PROGRAMS = compiler_check.make_programs


@pytest.fixture
def one_program(monkeypatch, tmp_path):
  """Leaves out the model, whose step compiles for a second, and old verdicts.

  Returns the folder of verdicts.
  """
  if compiler_check.jaxlib.__version__ in xla_options.BROKEN_FUSIONS:
    cpu = {**xla_options.PLATFORM_OPTIONS['cpu'], xla_options.YNN_FUSIONS: ''}
    monkeypatch.setitem(xla_options.PLATFORM_OPTIONS, 'cpu', cpu)
  monkeypatch.setattr(
    compiler_check, 'make_programs', lambda *args: MAKE_PROGRAMS(*args)[:1]
  )
  monkeypatch.setattr(compiler_check, '_passed', set())
  folder = tmp_path / 'cache'
  monkeypatch.setattr(
    compiler_check, 'verdict_path', lambda key: str(folder / key)
  )
  return folder


@pytest.fixture
def wrong_compiler(monkeypatch):
  """Compiles programs whose last number of 40,000 is wrong."""
  compile_program = xla_options.compile_program

  def call(*args):
    compiled = compile_program(*args)

    def run(*arguments):
      values, gradients = compiled(*arguments)
      return values.at[-1].add(values.max() / 100), gradients

    return run

  monkeypatch.setattr(xla_options, 'compile_program', call)


def test_a_wrong_number_is_found_and_not_remembered(
  one_program, wrong_compiler
):
  expected = r'^jaxlib [\d.]+ computes wrongly on cpu .*1 of 40,000 numbers of'
  for _ in range(2):
    with pytest.raises(ValueError, match=expected) as e:
      compiler_check.check_compiler(CONFIG)
    assert 'pip install -U' in str(e.value) and len(str(e.value)) < 500
  assert not one_program.exists()


def test_a_wrong_compiler_ends_training_and_loading(
  request, train, tmp_path, one_program
):
  run = train.whole(8)
  compiler_check._passed.clear()
  shutil.rmtree(one_program, ignore_errors=True)
  request.getfixturevalue('wrong_compiler')
  with pytest.raises(ValueError, match='computes wrongly'):
    train(tmp_path / 'run', 8)
  assert not os.path.exists(tmp_path / 'run' / 'checkpoints')
  assert not metric_writer.read_metrics(str(tmp_path / 'run'))
  with pytest.raises(ValueError, match='computes wrongly'):
    api.load(str(run))


def test_what_passed_is_remembered_by_compiler_and_options(
  one_program, monkeypatch
):
  compiled, compile_program = [], xla_options.compile_program
  monkeypatch.setattr(
    xla_options, 'compile_program',
    lambda *args: compiled.append(args[2]) or compile_program(*args),
  )  # fmt: skip
  check = compiler_check.check_compiler
  check(CONFIG)
  check(CONFIG)
  compiler_check._passed.clear()  # another process
  check(CONFIG)
  assert len(compiled) == len(list(one_program.iterdir())) == 1
  check(CONFIG, options={'xla_cpu_enable_fast_math': False})
  check(ModelConfig(dtype='bfloat16'))
  monkeypatch.setattr(compiler_check.jaxlib, '__version__', '0.99')
  check(CONFIG)
  assert len(compiled) == len(list(one_program.iterdir())) == 4


def test_numbers_are_compared_by_the_largest():
  rows, gradients = np.ones(3), {'w': np.full(2, 100.0), 'none': np.zeros(2)}
  count = lambda *got: compiler_check.count_wrong(got, (rows, gradients), 0.01)
  assert count(rows + 1e-3, gradients) is None
  # Zero but for rounding, beside a gradient of 100.
  assert count(rows, {**gradients, 'none': np.full(2, 1e-3)}) is None
  assert count(rows, {**gradients, 'none': np.full(2, 0.1)}) == (2, 7)
  assert count(np.array([1, np.nan, np.inf]), gradients) == (2, 7)


def test_this_compiler_passes_with_the_flags_of_users(tmp_path):
  """The other tests compile without LLVM's optimization, see conftest.py."""
  code = """
import sys
import jax
from atm.parallel import xla_options
xla_options.set_flags()
from atm.inference import api
from atm.model import compiler_check
from atm.model.config import ModelConfig
compiler_check.check_compiler(ModelConfig(dtype=sys.argv[1]))
print('passed')
"""
  flags = os.environ.get('XLA_FLAGS', '').replace(QUICK, '').strip()
  done = subprocess.run(
    [sys.executable, '-c', code, 'float32'], capture_output=True, text=True,
    env={
      **os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(tmp_path),
    },
  )  # fmt: skip
  assert done.stdout == 'passed\n', done.stderr
