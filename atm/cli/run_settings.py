"""Tells which settings a run uses, and refuses those that it would ignore.

A run uses the parameters of the configurables that its gin file binds or
refers to, of those that these refer to, and the macros in their values. All of
it is found in the text of gin files: nothing is imported.
"""

import functools
import os
from collections.abc import Iterable

from atm.cli import gin_files, gin_names, gin_reader
from atm.cli.gin_reader import Configuration
from atm.cli.gin_text import Binding, UserError, find_references
from atm.messages import find_nearest, one_line, quote

CONFIG = 'config.gin'  # what a run wrote
# Every run prepares JAX by it.
START = 'atm.sharding.start'
# What `atm plan` calls, by whether PROGRAM is 'train'.
PROGRAM_ROOTS = {
  True: ('atm.planner.run', 'atm.plan.plan'),
  False: ('atm.plan_decode.plan_rows',),
}


@functools.cache
def run_names() -> tuple[str, ...]:
  """Lists the runs that have a gin file."""
  return tuple(
    os.path.basename(name).removesuffix('.gin')
    for name in gin_files.shipped_files()
    if os.path.dirname(name) == 'runs'
  )


@functools.cache
def read_run(run: str) -> Configuration:
  """Reads the gin file of a run, and what that includes."""
  return gin_reader.read_configuration([gin_files.run_file(run)], [])


def list_targets(value) -> list[str]:
  """Lists the configurables that a value refers to, by full name if known."""
  return [
    gin_names.find_name(r.selector, gin_names.TARGETS) or r.selector
    for r in find_references(value)
    if not r.is_macro
  ]


def list_macros(value) -> list[str]:
  """Lists the macros that a value refers to."""
  return [
    r.name for r in find_references(value) if r.is_macro and not r.is_required
  ]


def get_target(binding: Binding) -> str:
  """Returns the full name of the configurable of a binding, if known."""
  known = gin_names.find_name(binding.selector, gin_names.TARGETS)
  return known or binding.selector


class Usage:
  """What a run uses of a configuration.

  Attributes:
    configurables: full names of those that the run may call.
    macros: names of those that their parameters refer to.
  """

  def __init__(self, run: str, configuration: Configuration):
    macros = configuration.macros
    last = {
      (b.scope, get_target(b), b.parameter): b
      for b in configuration.bindings
      if b.parameter
    }
    # What is known to a module of the user's alone may be called from anywhere.
    strangers = {owner for _, owner, _ in last} - gin_names.TARGETS.keys()
    self.configurables = _list_roots(run, macros) | strangers
    self.macros: set[str] = set()
    left = [*self.configurables]
    while left:
      name = left.pop()
      for (_, owner, _), binding in last.items():
        if owner == name:
          new = {*list_targets(binding.value)} - self.configurables
          self.configurables |= new
          left += new
          self._use_macros(binding.value, macros)

  def _use_macros(self, value, macros: dict[str, Binding]) -> None:
    """Adds the macros of a value, and those that they refer to."""
    for name in list_macros(value):
      if name not in self.macros:
        self.macros.add(name)
        if name in macros:
          self._use_macros(macros[name].value, macros)

  def has(self, binding: Binding) -> bool:
    """Tells whether the run uses what a binding sets."""
    if not binding.parameter:
      return binding.name in self.macros
    return get_target(binding) in self.configurables


def _list_roots(run: str, macros: dict[str, Binding]) -> set[str]:
  """Returns the configurables of a run's file that nothing in it refers to."""
  bindings = [b for b in read_run(run).bindings if b.parameter]
  inner = {name for b in bindings for name in list_targets(b.value)}
  roots = {START, *map(get_target, bindings)} - inner
  if run == 'plan':
    program, seen = 'PROGRAM', set()
    while program in macros and program not in seen:
      seen.add(program)
      value = macros[program].value
      (program,) = list_macros(value) or (None,)
    roots -= {*PROGRAM_ROOTS[value != 'train']}
  return roots


def list_own_macros(run: str) -> set[str]:
  """Returns the macros of a run's file and of what that includes."""
  return {*read_run(run).macros}


def list_other_runs(run: str, binding: Binding) -> list[str]:
  """Lists the other runs that have what a binding sets."""
  name = binding.name
  if not binding.parameter:
    has = lambda other: name in list_own_macros(other)
  else:
    target = get_target(binding)
    has = lambda other: target in Usage(other, read_run(other)).configurables
  return [other for other in run_names() if other != run and has(other)]


# --- Checks


def check_run(
  run: str, configuration: Configuration, trusted: set[str]
) -> list[str]:
  """Raises UserError for a setting on the command line that a run ignores.

  Gin files are shared by runs: those that come with atm, and the config.gin of
  a run, may set what other runs use.

  Args:
    run: which run.
    configuration: all that was read.
    trusted: modules that --import names; what they add is not known by text.

  Returns:
    A line for each other gin file that sets what the run ignores.

  Raises:
    UserError: a setting that the run, or no run, has.
  """
  usage = Usage(run, configuration)
  referred = {m for b in configuration.bindings for m in list_macros(b.value)}
  ignored: dict[str, list[Binding]] = {}
  for binding in configuration.bindings:
    if not trusted:
      _check_names(binding)
    if usage.has(binding):
      continue
    file = binding.file
    if file is None:
      raise UserError(_explain(run, binding, usage, configuration))
    known = binding.name in referred or list_other_runs(run, binding)
    if not binding.parameter and not known:
      if binding.name not in list_own_macros(run):
        raise UserError(_explain_unknown(run, binding, usage))
    if not gin_files.is_shipped(file) and os.path.basename(file) != CONFIG:
      ignored.setdefault(file, []).append(binding)
  return [_format_ignored(run, *item) for item in ignored.items()]


def _check_names(binding: Binding) -> None:
  """Raises UserError where a binding names a configurable that is none."""
  names = [r.selector for r in find_references(binding.value) if not r.is_macro]
  for name in [binding.selector] * bool(binding.parameter) + names:
    gin_names.check_name(name, binding.where, gin_names.TARGETS)


def _explain(
  run: str, binding: Binding, usage: Usage, configuration: Configuration
) -> str:
  """Returns the error for a setting on the command line that does nothing."""
  name, others = binding.name, list_other_runs(run, binding)
  if not binding.parameter and name in list_own_macros(run):
    return f'{name} does nothing here: ' + _tell_unused(
      run, name, usage, configuration
    )
  if not others:
    return _explain_unknown(run, binding, usage)
  have = 'has' if len(others) == 1 else 'have'
  text = f'{name} is not a setting of {run}; {_join(others)} {have} it.'
  if get_target(binding) == 'atm.model.Config':
    if 'MODEL_DIR' in usage.macros:
      text += f' {run} reads the model from MODEL_DIR.'
  return text + _suggest(run, binding, usage)


def _tell_unused(
  run: str, name: str, usage: Usage, configuration: Configuration
) -> str:
  """Tells why a run does not use a macro of its own."""
  users = [
    b
    for b in read_run(run).bindings
    if name in list_macros(b.value) and b.parameter
  ]
  for user in users:
    for b in reversed(configuration.bindings):
      same = get_target(b) == get_target(user) and b.parameter == user.parameter
      if same and get_target(b) in usage.configurables:
        return f'{b.where} binds {user.name} to another value'
  if run == 'plan':
    return f'it is for another PROGRAM.{_name_near(name, usage.macros)}'
  return 'nothing refers to it'


def _explain_unknown(run: str, binding: Binding, usage: Usage) -> str:
  """Returns the error for a setting that no run has."""
  return (
    f'{binding.where}: no setting is called {quote(binding.name)}.'
    + _suggest(run, binding, usage)
  )


def _suggest(run: str, binding: Binding, usage: Usage) -> str:
  """Returns the nearest name of a run's own, or how to list them."""
  near = ''
  if not binding.parameter:
    near = _name_near(binding.name, usage.macros)
  if near or binding.parameter:
    return near or f' See `atm {run} --help`.'
  upper = binding.name.upper()
  others = [o for o in run_names() if upper in list_own_macros(o)]
  if upper != binding.name and others:
    have = 'has' if len(others) == 1 else 'have'
    return f' {_join(others)} {have} {upper}; {run} has not.'
  return f' See `atm {run} --help`.'


def _name_near(name: str, known: Iterable[str]) -> str:
  """Returns ' Did you mean X?' for the nearest of some names, or ''."""
  near = find_nearest(name, known)
  return f' Did you mean {quote(near)}?' if near else ''


def _join(names: list[str]) -> str:
  """Joins names as a sentence does: 'a, b and c'."""
  *first, last = names
  return f'{", ".join(first)} and {last}' if first else last


def _format_ignored(run: str, file: str, bindings: list[Binding]) -> str:
  """Returns the line that tells what a run ignores of a file."""
  name, line = bindings[0].name, bindings[0].line
  if len(bindings) == 1:
    return f'{file}:{line}: {name} is not a setting of {run}: not used'
  names = dict.fromkeys(f'{b.name} (line {b.line})' for b in bindings)
  return one_line(
    f'{file}: {len(names)} lines set what {run} does not use: '
    + ', '.join(names)
  )
