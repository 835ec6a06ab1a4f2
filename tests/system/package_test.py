"""A wheel holds gin files, text and templates, and works from anywhere."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import atm
from atm.train import trackers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  if not os.path.exists(os.path.join(ROOT, 'setup.py')):
    pytest.skip('not a checkout')
  out = tmp_path_factory.mktemp('wheel')
  # A module of an earlier build.
  (out / 'build' / 'lib' / 'atm').mkdir(parents=True)
  (out / 'build' / 'lib' / 'atm' / 'removed.py').touch()
  (out / 'setup.cfg').write_text(f'[build]\nbuild_base = {out}/build\n')
  subprocess.run(
    [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
     '--no-build-isolation', '--wheel-dir', str(out), ROOT],
    check=True,
    cwd=out,
    env={**os.environ, 'DIST_EXTRA_CONFIG': f'{out}/setup.cfg'},
  )  # fmt: skip
  return next(out.glob('atm_jax-*.whl'))


def test_a_checkout_imports_tasks_as_atm_tasks():
  import atm_tasks

  assert os.path.dirname(atm_tasks.__file__) == os.path.join(ROOT, 'tasks')


def test_the_wheel_ships_what_the_checkout_has(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  shipped = ('.gin', '.py', '.tsv', '.jinja', '.css', '.html', '.js')
  for folder, inside in (
    ('gin', 'atm/configs'), ('tasks', 'atm_tasks'), ('atm', 'atm')
  ):  # fmt: skip
    for where, _, files in os.walk(os.path.join(ROOT, folder)):
      for file in files:
        if file.endswith(shipped) or file == 'LICENSE':
          path = os.path.relpath(os.path.join(where, file), f'{ROOT}/{folder}')
          assert f'{inside}/{path}' in names
  assert 'atm/removed.py' not in names
  tops = {name.split('/')[0] for name in names}
  assert tops == {'atm', 'atm_tasks', f'atm_jax-{atm.__version__}.dist-info'}


def test_the_wheel_says_what_it_is(wheel):
  archive = zipfile.ZipFile(wheel)
  folder = f'atm_jax-{atm.__version__}.dist-info'
  text = archive.read(f'{folder}/METADATA').decode()
  fields, _, description = text.partition('\n\n')
  assert f'Name: {atm.DISTRIBUTION}\n' in fields
  assert 'License-Expression: Apache-2.0 AND MIT\n' in fields
  for path in ('LICENSE', 'tasks/udhr/LICENSE'):
    with open(os.path.join(ROOT, path), 'rb') as f:
      assert archive.read(f'{folder}/licenses/{path}') == f.read()
  for version in ('3.11', '3.12', '3.13'):
    assert f'Python :: {version}\n' in fields
    assert os.path.exists(f'{ROOT}/requirements/lock-{version}.txt')
  # An index shows it without the checkout's files.
  assert len(description) > 5000
  assert not re.findall(r'\]\((?!https://)', description)


@pytest.mark.processes
def test_an_installed_copy_runs_from_any_directory(wheel, tmp_path):
  """Installed beside this environment's packages, in front of the checkout."""
  target, elsewhere = tmp_path / 'target', tmp_path / 'elsewhere'
  elsewhere.mkdir()
  subprocess.run(
    [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps',
     '--target', str(target), str(wheel)],
    check=True,
  )  # fmt: skip
  env = {**os.environ, 'PYTHONPATH': str(target), 'JAX_PLATFORMS': 'cpu'}
  run = lambda *command: subprocess.run(
    [sys.executable, *command], capture_output=True, text=True, env=env,
    cwd=elsewhere,
  )  # fmt: skip
  listed = run('-m', 'atm.cli.main')
  assert 'models/tiny.gin' in listed.stdout, listed.stderr
  where = run(
    '-c', 'import atm, atm_tasks; print(atm.__file__, atm_tasks.__file__)'
  )
  assert where.stdout.count(str(target)) == 2, where.stderr
  made = run(
    '-m', 'atm.cli.main', 'vocab', '--gin.VOCABULARY_DIR="v"',
    '--gin.VOCABULARY_SIZE=1500',
  )  # fmt: skip
  assert made.returncode == 0, made.stderr
  assert (elsewhere / 'v' / 'sentencepiece.model').exists()


def test_a_checkout_wins_over_folders_of_its_names(tmp_path):
  """A clone named atm has in its parent the name of a namespace package."""
  pytest.importorskip('setuptools', minversion='77')  # pyproject.toml's
  if not os.path.exists(os.path.join(ROOT, 'setup.py')):
    pytest.skip('not a checkout')
  clone, installed = tmp_path / 'atm', tmp_path / 'installed'
  for folder in ('atm', 'tasks', 'gin/models'):
    (clone / folder).mkdir(parents=True)
  for file in ('setup.py', 'pyproject.toml', 'README.md'):
    shutil.copy(os.path.join(ROOT, file), clone)
  (clone / 'atm' / '__init__.py').write_text(
    "__version__ = '0'\nDISTRIBUTION = 'atm-jax'"
  )
  (clone / 'tasks' / '__init__.py').touch()
  (tmp_path / 'atm_tasks').mkdir()
  python = lambda code, where: subprocess.run(
    [sys.executable, *('-S',) * (where != clone), '-c', code],
    capture_output=True, check=True, text=True, cwd=where,
  ).stdout.split()  # fmt: skip
  python(
    'from setuptools import build_meta; build_meta.build_editable("..")', clone
  )
  zipfile.ZipFile(next(tmp_path.glob('*.whl'))).extractall(installed)
  where = (
    f'import site; site.addsitedir({str(installed)!r}); import atm, atm_tasks; '
    'print(atm.__file__, atm_tasks.__file__)'
  )
  ours = [str(clone / name / '__init__.py') for name in ('atm', 'tasks')]
  assert python(where, tmp_path) == ours
  # As everywhere, what stands first on the path is taken: another clone.
  (tmp_path / 'other' / 'atm').mkdir(parents=True)
  other = tmp_path / 'other' / 'atm' / '__init__.py'
  other.touch()
  assert python(where, tmp_path / 'other') == [str(other), ours[1]]


def list_texts() -> list[str]:
  """Returns the paths of the checkout's texts: code, documents, settings."""
  endings = '.py', '.md', '.gin', '.toml', '.yml', '.ipynb', '.cfg', 'Makefile'
  folders = 'atm', 'tasks', 'gin', 'docs', 'tests', 'benchmarks', '.ci'
  inner = (os.walk(os.path.join(ROOT, folder)) for folder in folders)
  return [
    os.path.join(folder, name)
    for walk in [[(ROOT, [], os.listdir(ROOT))], *inner]
    for folder, _, names in walk
    for name in names
    if name.endswith(endings) and name != os.path.basename(__file__)
  ]


def read_extras() -> set[str]:
  """Returns the names of the extras in setup.py."""
  with open(os.path.join(ROOT, 'setup.py')) as f:
    (extras,) = (
      node.value
      for node in ast.parse(f.read()).body
      if isinstance(node, ast.Assign) and node.targets[0].id == 'EXTRAS'
    )
  return {key.value for key in extras.keys}


def test_pip_is_told_our_name_and_our_extras():
  """Fault seen: `atm` is a stranger's distribution, and was named for pip."""
  if not os.path.exists(os.path.join(ROOT, 'setup.py')):
    pytest.skip('not a checkout')
  # Up to the end of a line that does not go on, and of a code span.
  install = re.compile(r'pip install((?:[^\n\\`]|\\\n|\\.)*)')
  known = read_extras()
  for path in list_texts():
    with open(path, encoding='utf-8') as f:
      text = f.read()
    named = re.findall(r'(?<![\w./-])(atm[\w-]*)\[', text)
    for arguments in install.findall(text):
      named += re.findall(r'(?<![\w./-])atm[\w-]*(?![\w/])', arguments)
    assert {*named} <= {atm.DISTRIBUTION}, path
    asked = re.findall(rf'(?:{atm.DISTRIBUTION}|[\'"]\.)\[([\w,]+)\]', text)
    if path.endswith('.py'):
      asked += [
        node.args[1].value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith('missing_extra')
        and isinstance(node.args[1], ast.Constant)
      ]
    extras = {name for texts in asked for name in texts.split(',')}
    assert extras <= known, f'{path}: {extras - known} are no extras'
  assert {*trackers.TRACKERS} <= known  # each names its own


def test_releases_that_crash_are_neither_allowed_nor_locked():
  if not os.path.exists(os.path.join(ROOT, 'setup.py')):
    pytest.skip('not a checkout')
  with open(os.path.join(ROOT, 'setup.py')) as f:
    setup = f.read()
  locks = ''
  for version in ('3.11', '3.12', '3.13'):
    with open(os.path.join(ROOT, 'requirements', f'lock-{version}.txt')) as f:
      locks += f.read()
  for release in ('0.10.2', '0.11.0'):
    assert f'!={release}' in setup
    assert f'jaxlib=={release}\n' not in locks
