"""Reads parameters and their meanings in the source of what gin may bind.

So help and errors about names need no import of what computes.
"""

import ast
import dataclasses
import functools
import importlib.util
import os
import re
import textwrap

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
# An entry of a docstring: `name, other: meaning`.
_ENTRY = re.compile(r'(\w+(?:, \w+)*): (.*)')


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter of a function, or a field of a dataclass.

  Attributes:
    default: as the source writes it; '' where there is none.
    annotation: its type, as the source writes it.
    meaning: of the docstring, or of the comment at the field.
  """

  name: str
  default: str
  annotation: str
  meaning: str


@functools.cache
def find_module_file(module: str) -> str:
  """Returns the path of a module of atm or atm_tasks, without importing it."""
  package, *rest = module.split('.')
  (folder,) = importlib.util.find_spec(package).submodule_search_locations
  path = os.path.join(folder, *rest)
  return f'{path}/__init__.py' if os.path.isdir(path) else f'{path}.py'


@functools.cache
def _parse(module: str) -> tuple[ast.Module, list[str]]:
  """Returns the syntax tree of a module, and its lines."""
  with open(find_module_file(module), encoding='utf-8') as f:
    text = f.read()
  return ast.parse(text), text.splitlines()


def _find_definition(target: str):
  """Returns the class or function 'module:name', or None."""
  module, _, name = target.partition(':')
  for node in _parse(module)[0].body:
    if getattr(node, 'name', None) == name:
      return node
  return None


def read_summary(target: str) -> str:
  """Returns the first sentence of the docstring of 'module:name'."""
  text = ast.get_docstring(_find_definition(target)) or ''
  return ' '.join(text.partition('\n\n')[0].split())


@functools.cache
def list_parameters(target: str) -> dict[str, Parameter]:
  """Returns name -> parameter of 'module:name', those of bases first."""
  module, _, _ = target.partition(':')
  node = _find_definition(target)
  meanings = _read_meanings(ast.get_docstring(node) or '')
  if isinstance(node, FUNCTIONS):
    return _list_arguments(module, node, meanings)
  if not any('dataclass' in ast.unparse(d) for d in node.decorator_list):
    (init,) = (n for n in node.body if getattr(n, 'name', '') == '__init__')
    own = _read_meanings(ast.get_docstring(init) or '')
    return _list_arguments(module, init, meanings | own)
  found: dict[str, Parameter] = {}
  for base in node.bases:
    if (name := _resolve(module, ast.unparse(base))) is not None:
      found |= list_parameters(name)
  return found | _list_fields(module, node, meanings)


def _list_fields(module: str, node, meanings: dict) -> dict[str, Parameter]:
  """Returns the fields of a dataclass that are its own."""
  lines, found = _parse(module)[1], {}
  for field in node.body:
    if not isinstance(field, ast.AnnAssign):
      continue
    name, kind = ast.unparse(field.target), ast.unparse(field.annotation)
    if 'ClassVar' in kind or 'KW_ONLY' in kind:
      continue
    meaning = meanings.get(name) or _read_comment(lines, field)
    default = _format_default(module, _find_default(field.value))
    found[name] = Parameter(name, default, kind, meaning)
  return found


def _find_default(node):
  """Returns the `default` of dataclasses.field, else the node itself."""
  if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('field'):
    values = {x.arg: x.value for x in node.keywords}
    return values.get('default', node)
  return node


def _list_arguments(module: str, node, meanings: dict) -> dict[str, Parameter]:
  """Returns the arguments of a function, without self."""
  spec = node.args
  plain = [*spec.posonlyargs, *spec.args]
  missing = [None] * (len(plain) - len(spec.defaults))
  pairs = [
    *zip(plain, [*missing, *spec.defaults]),
    *zip(spec.kwonlyargs, spec.kw_defaults),
  ]
  return {
    arg.arg: Parameter(
      arg.arg,
      _format_default(module, default),
      ast.unparse(arg.annotation) if arg.annotation else '',
      meanings.get(arg.arg, ''),
    )
    for arg, default in pairs
    if arg.arg != 'self'
  }


def _format_default(module: str, node) -> str:
  """Returns a default as the source writes it, constants by their values."""
  if node is None:
    return ''
  if isinstance(node, ast.Name):
    for statement in _parse(module)[0].body:
      if isinstance(statement, ast.Assign):
        if ast.unparse(statement.targets[0]) == node.id:
          return ast.unparse(statement.value)
  return ast.unparse(node)


def _read_comment(lines: list[str], field) -> str:
  """Returns the comment behind a field, or in the lines above it."""
  behind = lines[field.end_lineno - 1].encode()[field.end_col_offset :].decode()
  if behind.strip().startswith('#'):
    return behind.strip('# ')
  found, number = [], field.lineno - 2  # from 0
  while lines[number].strip().startswith('#'):
    found.insert(0, lines[number].strip('# '))
    number -= 1
  return ' '.join(found)


def _read_meanings(docstring: str) -> dict[str, str]:
  """Returns name -> meaning of the sections Args and Attributes."""
  found: dict[str, str] = {}
  for section in docstring.split('\n\n'):
    head, _, body = section.partition('\n')
    if head in ('Args:', 'Attributes:'):
      # Lines that go on are indented deeper than an entry's first.
      for text in re.split(r'\n(?=\S)', textwrap.dedent(body)):
        if entry := _ENTRY.fullmatch(' '.join(text.split())):
          found |= dict.fromkeys(entry[1].split(', '), entry[2])
  return found


def _resolve(module: str, name: str) -> str | None:
  """Returns the 'module:name' of a base class; None where it is not ours."""
  first, _, rest = name.partition('.')
  for node in _parse(module)[0].body:
    if getattr(node, 'name', None) == name:
      return f'{module}:{name}'
    if isinstance(node, ast.ImportFrom):
      for alias in node.names:
        if (alias.asname or alias.name) == first:
          if rest:  # a class of a module
            return f'{node.module}.{alias.name}:{rest}'
          return f'{node.module}:{name}'
  return None
