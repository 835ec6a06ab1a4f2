"""Refuses settings that a run would ignore, and names the nearest of its own.

All of it is text: nothing is imported that computes.
"""

import os
from collections.abc import Iterable

from atm.cli import gin_files, gin_names
from atm.cli.gin_reader import Configuration
from atm.cli.gin_text import Binding, UserError, find_references
from atm.cli.run_settings import (
  Usage,
  get_target,
  is_given,
  list_macros,
  list_open,
  list_other_runs,
  list_own_macros,
  read_run,
  run_names,
)
from atm.cli.source_text import list_parameters
from atm.messages import did_you_mean, find_nearest, one_line, quote

CONFIG = 'config.gin'  # what a run wrote


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
    A line for each other gin file that sets what the run ignores, and for each
    of which the run uses nothing.

  Raises:
    UserError: a setting that the run, or no run, has.
  """
  usage = Usage(run, configuration)
  referred = {m for b in configuration.bindings for m in list_macros(b.value)}
  ignored: dict[str, list[Binding]] = {}
  for binding in configuration.bindings:
    if not trusted:
      _check_names(binding)
    file = binding.file
    if file is None or not gin_files.is_shipped(file):
      _check_parameter(binding)
    if usage.has(binding):
      if file is None:
        _check_given(run, binding)
      continue
    if file is None:
      raise UserError(_explain(run, binding, usage, configuration))
    known = binding.name in referred or list_other_runs(run, binding)
    if not binding.parameter and not known:
      if binding.name not in list_own_macros(run):
        raise UserError(_explain_unknown(run, binding, usage))
    if not gin_files.is_shipped(file) and os.path.basename(file) != CONFIG:
      ignored.setdefault(file, []).append(binding)
  files = dict.fromkeys(b.file for b in configuration.bindings if b.file)
  used = {b.file for b in configuration.bindings if usage.has(b)}
  return [_format_ignored(run, *item) for item in ignored.items()] + [
    f'{file}: {run} uses nothing of this file'
    for file in files
    if file not in used and file not in ignored
  ]


def _check_names(binding: Binding) -> None:
  """Raises UserError where a binding names a configurable that is none."""
  names = [r.selector for r in find_references(binding.value) if not r.is_macro]
  for name in [binding.selector] * bool(binding.parameter) + names:
    gin_names.check_name(name, binding.where, gin_names.TARGETS)


def _check_parameter(binding: Binding) -> None:
  """Raises UserError where a known configurable has no such parameter."""
  target = gin_names.TARGETS.get(get_target(binding))
  known = list_parameters(target) if binding.parameter and target else None
  if known is not None and binding.parameter not in known:
    raise UserError(
      f'{binding.where}: {binding.selector} has no parameter '
      f'{quote(binding.parameter)}.' + did_you_mean(binding.parameter, known)
    )


def _check_given(run: str, binding: Binding) -> None:
  """Raises UserError for a parameter that the run sets whatever is bound."""
  if is_given(run, get_target(binding), binding.parameter):
    raise UserError(
      f'{binding.name} does nothing here: {run} sets it by itself. '
      f'See `atm {run} --help`.'
    )


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
  hint = f' See `atm {run} --help`.'
  if binding.parameter:
    return hint
  near = find_nearest(binding.name, usage.macros)
  if near and near.lower() == binding.name.lower():
    return f' Did you mean {quote(near)}?'
  for target, parameters in list_open(run).items():
    if binding.name.lower() in [p.name for p in parameters]:
      name = f'{gin_names.shorten(target)}.{binding.name.lower()}'
      return f' Did you mean {quote(name)}?'
  if near:
    return f' Did you mean {quote(near)}?'
  upper = binding.name.upper()
  others = [other for other in run_names() if upper in list_own_macros(other)]
  if upper != binding.name and others:
    have = 'has' if len(others) == 1 else 'have'
    return f' {_join(others)} {have} {upper}; {run} has not.'
  return hint


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
