"""Reads a gin configuration once, and checks all that needs no import.

Bounds are on the number of files, on includes within each other, and on what
macros come to when they are written out. See `gin_text` for those of a text.
"""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence

from atm.cli import gin_files
from atm.cli.gin_text import (
  MOST_NESTED,
  Binding,
  Budget,
  Reference,
  UserError,
  count_items,
  find_references,
  nesting,
  parse_text,
)
from atm.messages import did_you_mean, one_line, quote
from gin import config_parser

MOST_FILES = 64
MOST_INCLUDES = 16  # within each other
# Values of all settings together, with macros written out.
MOST_VALUES = 50_000


class Configuration:
  """Holds the statements of gin files and bindings, in order, parsed once.

  Attributes:
    bindings: of macros and parameters, in order; later ones win.
    imports: (gin's statement, where).
  """

  def __init__(self):
    self.bindings: list[Binding] = []
    self.imports: list[tuple[config_parser.ImportStatement, str]] = []
    self._budget = Budget()
    self._files = 0
    self._open: list[str] = []  # being read, each included by the one before

  @property
  def macros(self) -> dict[str, Binding]:
    """Returns name -> the last binding of a macro."""
    return {b.name: b for b in self.bindings if not b.parameter}

  def list_selectors(self) -> Iterator[str]:
    """Yields the selectors that are bound or referred to."""
    for binding in self.bindings:
      if binding.parameter:
        yield binding.selector
      for reference in find_references(binding.value):
        if not reference.is_macro:
          yield reference.selector

  def add_file(self, path: str) -> None:
    """Reads a gin file, and those that it includes."""
    path = os.fspath(path)
    self._files += 1
    if self._files > MOST_FILES:
      raise UserError(f'{path}: over {MOST_FILES} gin files')
    if len(self._open) > MOST_INCLUDES:
      raise UserError(f'{path}: includes nested over {MOST_INCLUDES} deep')
    if (real := os.path.realpath(path)) in self._open:
      raise UserError(f'{path} includes itself')
    self._open.append(real)
    text = gin_files.read_file(path)
    trusted = gin_files.is_shipped(path)
    for statement, where in parse_text(text, path, self._budget, trusted):
      if isinstance(statement, config_parser.IncludeStatement):
        self._include(statement.filename, path, where)
      else:
        self._add(statement, where)
    self._open.pop()

  def add_argument(self, text: str) -> None:
    """Reads the NAME=VALUE of an argument --gin.NAME=VALUE."""
    where = f'--gin.{one_line(text, 60)}'
    statements = parse_text(text, where, self._budget)
    if len(statements) != 1 or not isinstance(statements[0][0], Binding):
      raise UserError(f'{where}: expected one NAME=VALUE')
    self._add(*statements[0])

  def _include(self, name: str, path: str, where: str) -> None:
    """Reads a file that `path` includes."""
    # gin's own search for it would look for Python packages of that name.
    try:
      found = gin_files.find_include(name, path)
    except UserError as e:
      raise UserError(f'{where}: {e}') from None
    self.add_file(found)

  def _add(self, statement, where: str) -> None:
    """Takes a binding or an import."""
    if isinstance(statement, Binding):
      self.bindings.append(statement)
    elif isinstance(statement, config_parser.ImportStatement):
      self.imports.append((statement, where))
    else:
      raise AssertionError(f'{where}: {statement}')


def read_configuration(
  files: Sequence[str], bindings: Sequence[str]
) -> Configuration:
  """Reads gin files, then NAME=VALUE texts; checks nothing but their form."""
  configuration = Configuration()
  for path in files:
    configuration.add_file(path)
  for binding in bindings:
    configuration.add_argument(binding)
  return configuration


@functools.cache
def shipped_bindings() -> list[Binding]:
  """Lists what the files of all runs bind."""
  found = []
  for name in gin_files.shipped_files():
    if name.startswith('runs/'):
      run = os.path.splitext(os.path.basename(name))[0]
      found += read_configuration([gin_files.run_file(run)], []).bindings
  return found


# --- Checks that need no import


def check_imports(configuration: Configuration, trusted: set[str]) -> None:
  """Raises UserError for a module that a gin file may not import."""
  for statement, where in configuration.imports:
    module = statement.module
    root = module.split('.')[0]
    if root == '__gin__':
      raise UserError(
        f'{where}: dynamic registration is refused: it lets a gin file run '
        'any code'
      )
    if root not in ('atm', 'atm_tasks') and module not in trusted:
      raise UserError(
        f'{where}: import of {quote(module)} is refused: a gin file may import '
        'atm and atm_tasks only. If you trust it, add '
        f'--import={one_line(module, 60)}'
      )


def check_macros(configuration: Configuration) -> None:
  """Raises UserError for macros that are unknown, missing or without end."""
  macros = configuration.macros
  used = [r for b in configuration.bindings for r in find_references(b.value)]
  # A models/ file may set what another run knows.
  known = {b.name for b in shipped_bindings() if not b.parameter}
  usable = known | {r.name for r in used if r.is_macro and not r.is_required}
  for name, binding in macros.items():
    if name not in usable:
      raise UserError(
        f'{binding.where}: no setting is called {quote(name)}.'
        + did_you_mean(name, usable)
      )
  last = {b.name: b for b in configuration.bindings}
  needed = {
    r.name
    for b in last.values()
    for r in find_references(b.value)
    if r.is_macro and not r.is_required
  }
  for name in sorted(needed | macros.keys()):
    bound = macros.get(name)
    if bound is None or _is_required(bound.value):
      raise UserError(
        f'{name} is required: add --gin.{name}=VALUE (strings in quotes: '
        f'--gin.{name}="\'text\'")'
      )
  check_places(configuration)
  check_scopes(configuration, used)
  check_expansion(last)


def _is_required(value) -> bool:
  """Tells whether a value is `%gin.REQUIRED`."""
  return isinstance(value, Reference) and value.is_required


def check_places(configuration: Configuration) -> None:
  """Raises UserError for `@name` or `%gin.REQUIRED` inside of a value.

  A `@name` is the whole value of a parameter, so that all calls are seen.
  """
  for binding in configuration.bindings:
    whole = isinstance(binding.value, Reference)
    for reference in find_references(binding.value):
      if reference.is_required and not whole:
        raise UserError(f'{binding.where}: %gin.REQUIRED is no part of a value')
      if not reference.is_macro and not (whole and binding.parameter):
        raise UserError(
          f'{binding.where}: {quote(reference)}: a reference may only be '
          'the whole value of a parameter'
        )


def check_scopes(
  configuration: Configuration, used: Sequence[Reference]
) -> None:
  """Raises UserError for a binding in a scope that no reference opens."""
  scopes = {f'{r.scope}/' for r in used if not r.is_macro}
  for binding in configuration.bindings:
    inside = any(s.startswith(f'{binding.scope}/') for s in scopes)
    if binding.parameter and binding.scope and not inside:
      raise UserError(
        f'{binding.where}: no reference opens the scope {quote(binding.scope)}'
      )


def check_expansion(bindings: Mapping[str, Binding]) -> None:
  """Raises UserError where macros, written out, have no end or are too large.

  Args:
    bindings: name -> binding; macros under their own names.
  """
  sizes: dict[str, tuple[int, int]] = {}  # values, nesting

  def measure(name: str, path: tuple[str, ...]) -> tuple[int, int]:
    where = bindings[name].where
    if name in path:
      inner = ', '.join(path[path.index(name) + 1 :])
      through = f' through {inner}' if inner else ''
      raise UserError(f'{where}: {name} refers to itself{through}')
    if name not in sizes:
      if len(path) > MOST_NESTED:
        raise UserError(f'{where}: macros nested over {MOST_NESTED} deep')
      value = bindings[name].value
      inner = [
        measure(r.name, (*path, name))
        for r in find_references(value)
        if r.is_macro and not r.is_required
      ]
      items = count_items(value) + sum(n for n, _ in inner)
      deep = 1 + nesting(value) + max((d for _, d in inner), default=0)
      if items > MOST_VALUES or deep > 2 * MOST_NESTED:
        raise UserError(
          f'{where}: {name} has too many values, or nested too deep, with '
          'its macros written out'
        )
      sizes[name] = items, deep
    return sizes[name]

  total = sum(measure(name, ())[0] for name in bindings)
  if total > MOST_VALUES:
    raise UserError(
      f'the configuration has {total:,} values with all macros written out: '
      f'expected at most {MOST_VALUES:,}'
    )
