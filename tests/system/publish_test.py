"""Packages are checked and work in an empty environment; the site is whole.

Run by `make test-package`, in an environment that has twine.
"""

import os
import re
import subprocess
import sys
import venv

import pytest

import atm

pytest.importorskip('twine', reason='needs twine: make test-package')
pytestmark = pytest.mark.publish

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))
LOCK = 'requirements/lock-{}.{}.txt'.format(*sys.version_info)
# A few steps, and nothing that takes long after them.
FEW_STEPS = (
  '--gin_file=models/tiny.gin', '--gin.MODEL_DIR="run"',
  '--gin.TRAIN_STEPS=4', '--gin.EVAL_EVERY=4', '--gin.SAVE_EVERY=4',
  '--gin.LOG_EVERY=2',
)  # fmt: skip
LOAD = """
import atm
model = atm.load('run')
print(model.generate(['All human beings'], mode='clm', max_tokens=4))
"""


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """Builds an sdist and its wheel, and a wheel of the checkout."""
  out = tmp_path_factory.mktemp('built')
  (out / 'setup.cfg').write_text(f'[build]\nbuild_base = {out}/build\n')
  variables = {
    'DIST_EXTRA_CONFIG': f'{out}/setup.cfg', 'SOURCE_DATE_EPOCH': '1700000000'
  }  # fmt: skip
  for folder, what in (('sdist', ()), ('checkout', ('--wheel',))):
    subprocess.run(
      [sys.executable, '-m', 'build', '--no-isolation', *what, '--outdir',
       str(out / folder), ROOT],
      check=True, capture_output=True,
      env=os.environ | variables,
    )  # fmt: skip
  return out


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
  """Installs the wheel in an environment of its own; returns what runs there.

  Nothing is left of this environment: no variable, no home, no checkout.
  """
  home = tmp_path_factory.mktemp('home')
  venv.create(home / 'env', with_pip=True)
  (wheel,) = (built / 'sdist').glob('*.whl')
  subprocess.run(
    [home / 'env' / 'bin' / 'python', '-I', '-m', 'pip', 'install', '--quiet',
     '--constraint', os.path.join(ROOT, LOCK), wheel],
    check=True,
  )  # fmt: skip
  empty = home / 'empty'
  empty.mkdir()
  (empty / 'prompts.txt').write_text('All human beings are born\n')

  def run(program: str, *arguments: str) -> str:
    """Returns a program's output; fails with its errors unless it succeeds."""
    done = subprocess.run(
      [home / 'env' / 'bin' / program, *arguments],
      capture_output=True, text=True, cwd=empty,
      env={'PATH': f'{home}/env/bin:/usr/bin:/bin', 'HOME': str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout

  return run


def test_an_index_would_take_them(built):
  """Checks the metadata, and the description as PyPI renders it."""
  files = sorted((built / 'sdist').iterdir())
  assert len(files) == 2
  checked = subprocess.run(
    [sys.executable, '-m', 'twine', 'check', '--strict', *files],
    capture_output=True, text=True,
  )  # fmt: skip
  assert checked.returncode == 0, checked.stdout


def test_the_sdist_holds_all_that_the_wheel_needs(built):
  """Compares its wheel with the checkout's, byte for byte."""
  (ours,) = (built / 'sdist').glob('*.whl')
  assert ours.read_bytes() == (built / 'checkout' / ours.name).read_bytes()


def test_an_empty_environment_trains_and_prompts(installed):
  assert 'models/tiny.gin' in installed('atm')
  assert installed('atm', '--version') == f'atm {atm.__version__}\n'
  assert 'step 4/4' in installed('atm', 'pretrain', *FEW_STEPS)
  installed(
    'atm', 'infer', '--gin.MODEL_DIR="run"', '--gin.OUTPUT="out.jsonl"',
    '--gin.INPUT="prompts.txt"',
  )  # fmt: skip
  assert installed('python', '-c', LOAD).startswith('[')


def test_the_folder_above_a_checkout_imports_it(tmp_path):
  """Fault seen: `import atm` found the clone's folder, without `load`."""
  os.symlink(ROOT, tmp_path / 'atm')
  where = subprocess.run(
    [sys.executable, '-c', 'import atm; print(atm.load, atm.__file__)'],
    capture_output=True, text=True, cwd=tmp_path,
  )  # fmt: skip
  assert f'{ROOT}/atm/__init__.py' in where.stdout, where.stderr


def test_the_site_is_whole_and_asks_no_other_host(tmp_path):
  """Builds it as `make site` does: a warning is an error."""
  built = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir',
     tmp_path],
    capture_output=True, text=True, cwd=ROOT,
    env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
  )  # fmt: skip
  assert built.returncode == 0, built.stderr
  pages = list(tmp_path.rglob('*.html'))
  assert len(pages) > 20
  for page in pages:
    text = page.read_text()
    asked = re.findall(r'<(?:script|link|img|iframe)[^>]*//[^>]*>', text)
    assert not asked, f'{page.name}: {asked}'
  # Tables of settings are generated from docstrings, which must be found.
  assert 'TrainConfig' in (tmp_path / 'api' / 'training.html').read_text()
