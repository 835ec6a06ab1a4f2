"""Sizes, names and first sentences that keep the code readable."""

import ast
import collections
import os

import pytest

import atm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))
FUNCTION, CLASS, MODULE = 60, 250, 450  # lines
# They offer under another's name what a room has under its own.
FACES = (
  'atm/__init__.py', 'atm/lm_eval.py', 'atm/storage/__init__.py', 'atm/t5x.py'
)  # fmt: skip
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


def files() -> list[str]:
  """Returns the paths of all modules, from the root."""
  return sorted(
    os.path.relpath(os.path.join(folder, name), ROOT)
    for top in ('atm', 'tasks')
    for folder, _, names in os.walk(f'{ROOT}/{top}')
    for name in names
    if name.endswith('.py')
  )


def parse(path: str) -> ast.Module:
  """Returns the syntax tree of a module."""
  with open(f'{ROOT}/{path}', encoding='utf-8') as f:
    return ast.parse(f.read())


def is_property(node) -> bool:
  """Tells whether a function is a property, which a noun describes."""
  return any('property' in ast.unparse(d) for d in node.decorator_list)


def lines_of(node) -> int:
  """Returns the lines of a definition without its docstring."""
  lines = node.end_lineno - node.lineno + 1
  if ast.get_docstring(node) is not None:
    doc = node.body[0]
    lines -= doc.end_lineno - doc.lineno + 1
  return lines


@pytest.mark.parametrize('path', files())
def test_a_reader_holds_it_in_the_head(path):
  tree = parse(path)
  with open(f'{ROOT}/{path}', encoding='utf-8') as f:
    assert len(f.readlines()) <= MODULE
  for node in ast.walk(tree):
    if isinstance(node, FUNCTIONS):
      assert lines_of(node) <= FUNCTION, f'{node.name}: {lines_of(node)} lines'
    if isinstance(node, ast.ClassDef):
      size = node.end_lineno - node.lineno + 1
      assert size <= CLASS, f'{node.name}: {size} lines'


@pytest.mark.parametrize('path', files())
def test_first_sentences_say_what_is_done(path):
  """A function's is a verb in the third person; public ones have one."""
  tree = parse(path)
  assert ast.get_docstring(tree), 'a module says what it is for'
  bad = []
  for node in ast.walk(tree):
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
      text = ast.get_docstring(node)
      public = node in tree.body and not node.name.startswith('_')
      if text is None:
        bad += [f'{node.name}: no docstring'] if public else []
        continue
      head = text.split('\n\n')[0].strip()
      first = head.split()[0].strip('`,:')
      if not head.endswith(('.', ':', '?')):
        bad.append(f'{node.name}: no full stop')
      verb = first.isalpha() and first.endswith('s') and first[0].isupper()
      if isinstance(node, FUNCTIONS) and not verb and not is_property(node):
        bad.append(f'{node.name}: {first} ...')
  assert not bad, bad


def test_a_public_name_has_one_home():
  homes = collections.defaultdict(set)
  for path in sorted({*files()} - {*FACES}):
    for node in parse(path).body:
      names = [getattr(node, 'name', None)]
      if isinstance(node, ast.Assign):
        names = [n.id for t in node.targets for n in ast.walk(t)
                 if isinstance(n, ast.Name)]  # fmt: skip
      for name in names:
        if name and not name.startswith('_'):
          homes[name].add(path)
  homes.pop('__all__', None)
  twice = {name: sorted(paths) for name, paths in homes.items()
           if len(paths) > 1}  # fmt: skip
  assert not twice, twice


@pytest.mark.parametrize('path', [p for p in files() if '__.py' not in p])
def test_every_module_has_a_test_of_its_name(path):
  room, _, name = path.removeprefix('atm/')[:-3].rpartition('/')
  if path.startswith('tasks/'):
    room = 'tasks'
  assert os.path.exists(
    f'{ROOT}/tests/{room}/{name}_test.py'.replace('//', '/')
  )
