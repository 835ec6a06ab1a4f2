"""The arrows between rooms and modules, and what a start may cost."""

import ast
import functools
import importlib.util
import os
import subprocess
import sys

import pytest

import atm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))

# A room imports only from rooms of earlier rows; those of a row know nothing of
# each other.
ROWS = (
  ('messages', 'storage', 'fileio'),
  ('parallel',),
  ('data',),
  ('model',),
  ('checkpoint',),
  ('train', 'inference', 't5x'),
  ('serve',),
  ('evals', 'plan', 'lm_eval'),
  ('pages',),
  ('cli',),
)
STRANGERS = {  # a room -> rooms of earlier rows that it knows nothing of
  'data': {'parallel'},
  'model': {'data'},
}
FLOORS = {room: floor for floor, row in enumerate(ROWS) for room in row}
FLOORS['messages'] = -2  # what refuses a file quotes it
FLOORS['storage'] = -1  # where files lie; fileio has what is in them
FLOORS['__main__'] = len(ROWS)  # no room: what `python -m atm` starts
HEAVY = {
  'tensorflow', 'seqio', 'clu', 'matplotlib', 'torch', 'tensorboard',
  'sacrebleu', 'rouge_score', 'lm_eval', 'datasets', 'evaluate', 'jinja2',
  'fsspec', 'gcsfs', 's3fs', 'botocore', 'aiohttp',
}  # fmt: skip
TASKS_MAY = {
  'atm.data.vocabulary', 'atm.data.counter_rng', 'atm.data.span_corruption',
  'atm.data.objectives', 'atm.data.packing', 'atm.data.languages',
  'atm.data.ul2',
  'atm.data.sentences', 'atm.data.token_store', 'atm.data.input_format',
  'atm.data.language_codes', 'atm.data.task_table',
  'atm.data.text_lines', 'atm.data.text_reader',
  'atm.inference.prompts', 'atm.evals.task', 'atm.messages', 'atm.fileio',
  'atm.storage',
}  # fmt: skip


def modules(package: str, folder: str) -> dict[str, str]:
  """Returns dotted name -> path of a package's modules."""
  found = {}
  for where, _, names in os.walk(f'{ROOT}/{folder}'):
    for name in names:
      if name.endswith('.py'):
        path = os.path.relpath(os.path.join(where, name), f'{ROOT}/{folder}')
        dotted = f'{package}.{path[:-3]}'.replace(os.sep, '.')
        found[dotted.removesuffix('.__init__')] = os.path.join(where, name)
  return found


ATM = modules('atm', 'atm')
TASKS = modules('atm_tasks', 'tasks')


@functools.cache
def imports(path: str) -> list[tuple[str, bool]]:
  """Returns (module, is at top level) of every import of a file."""
  with open(path) as f:
    tree = ast.parse(f.read())
  top, found = set(tree.body), []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [(alias.name, node in top) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        name = f'{node.module}.{alias.name}'
        known = name in ATM or name in TASKS
        found.append((name if known else node.module, node in top))
  return found


def room(module: str) -> str:
  return (module.split('.') + [''])[1]


def test_a_stranger_sees_rooms():
  top = {room(name) for name in ATM} - {''}
  assert top == set(FLOORS)
  files = [n for n in os.listdir(f'{ROOT}/atm') if n.endswith('.py')]
  assert len({*files} - {'__main__.py'}) <= 5


@pytest.mark.parametrize('name', sorted(ATM))
def test_arrows_between_rooms_point_one_way(name):
  for module, at_top in imports(ATM[name]):
    root = module.split('.')[0]
    assert root != 'atm_tasks', 'atm never imports tasks'
    gin_rooms = {f'atm.cli.gin_{x}' for x in ('config', 'reader', 'text')}
    assert root != 'gin' or name in gin_rooms, 'library code knows no gin'
    # To import atm.lm_eval is to register a model with lm_eval.
    heavy = root in HEAVY - {room(name)} or module == 'atm.lm_eval'
    assert not (at_top and heavy), f'{module} is heavy: import it late'
    mine, other = room(name), room(module)
    if root == 'atm' and mine and other and mine != other:
      assert FLOORS[other] < FLOORS[mine], f'{name} -> {module}'
      assert other not in STRANGERS.get(mine, ()), f'{name} -> {module}'


def test_a_contract_has_ten_floors():
  assert len(ROWS) <= 10


def test_the_picture_of_the_rooms_is_that_of_the_imports():
  """docs/code.md shows it."""
  spec = importlib.util.spec_from_file_location(
    'rooms', f'{ROOT}/docs/rooms.py'
  )
  rooms = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(rooms)
  with open(f'{ROOT}/docs/rooms.svg', encoding='utf-8') as f:
    same = f.read() == rooms.draw(rooms.imports())
  assert same, 'draw it again: python docs/rooms.py'


def test_modules_have_no_circles():
  """Late imports count, too."""
  arrows = {
    name: {module for module, _ in imports(path) if module in ATM}
    for name, path in ATM.items()
    if name != 'atm'
  }
  done, path = set(), []

  def visit(name):
    assert name not in path, ' -> '.join([*path[path.index(name) :], name])
    if name not in done:
      path.append(name)
      for other in sorted(arrows.get(name, ())):
        visit(other)
      done.add(path.pop())

  for name in arrows:
    visit(name)


@pytest.mark.parametrize('name', sorted(TASKS))
def test_tasks_import_little_of_atm(name):
  for module, _ in imports(TASKS[name]):
    assert module.split('.')[0] != 'gin'
    if module.split('.')[0] == 'atm':
      assert module in TASKS_MAY


def test_infer_starts_without_tensorflow():
  code = (
    'import sys; from atm.inference import api; '
    'from atm.cli import gin_config; gin_config.configurables(); '
    f'print([m for m in {sorted(HEAVY)} if m in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'


def test_answers_that_need_no_model_import_nothing_heavy():
  """A list, help, and what is found wrong by text; a time would be noise."""
  mistakes = [
    ['infr'], ['infer', '-x'], ['infer', '--gin_file=models/tinny.gin'],
    ['infer'], ['infer', '--gin.LIMIT=1'], ['infer', '--gin.x=1'],
    ['infer', '--gin.choosing.Config.topk=1'], ['infer', '--gin.SEED=['],
    ['pretrain', '--gin_file=models/tiny.gin'],
    ['pretrain', '--gin.trainer.trian.seed=1'],
    ['infer', '--gin.MODEL_DIR="no such"'],
    ['eval', '--gin_file=suites/shipped.gin', '--gin.MODEL_DIR="no such"'],
  ]  # fmt: skip
  answers = [[], ['--help'], ['-V'], ['pretrain', '--help'], ['help', 'eval']]
  heavy = sorted(HEAVY | {'jax', 'jaxlib', 'numpy', 'flax', 'orbax', 'rich'})
  code = (
    'import sys; from atm.cli.main import main; '
    f'assert [main(a) for a in {mistakes}] == [2] * {len(mistakes)}; '
    f'assert [main(a) for a in {answers}] == [0] * {len(answers)}; '
    f'found = [m for m in {heavy} if m in sys.modules]; '
    "sys.exit(f'imports {found}' if found else 0)"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert len(done.stderr.splitlines()) == len(mistakes)
