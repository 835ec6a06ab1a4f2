"""Checks a configuration whole, then applies exactly what was checked.

A gin file is data and cannot run code. Its text is parsed once, see `gin_text`.
What is applied is a closed set of statements: bindings of macros and of
parameters of `configurables`, includes, and imports of atm, atm_tasks and
modules named by --import. References are those that the shipped files make.
"""

import copy
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping

from absl import logging

import gin
from atm import fileio
from atm.cli import (
  gin_names,
  gin_reader,
  machine_settings,
  path_checks,
  setting_needs,
  settings_check,
)
from atm.cli.gin_reader import Configuration
from atm.cli.gin_text import Binding, Reference, UserError, replace_references
from atm.messages import did_you_mean, list_checks, quote


def configurables() -> dict[str, Callable]:
  """Returns gin name -> what gin may bind, besides atm_tasks' GIN list."""
  return {name: import_target(name) for name in gin_names.CONFIGURABLES}


def import_target(name: str) -> Callable:
  """Imports what gin may bind under a full name of CONFIGURABLES."""
  module, _, attribute = gin_names.CONFIGURABLES[name].partition(':')
  return getattr(importlib.import_module(module), attribute)


def get_configurable(selector: str) -> Callable:
  """Returns what gin binds under a name, with its parameters bound."""
  register_named([selector])
  return gin.get_configurable(selector)


def get_bindings(configurable: str | Callable) -> dict:
  """Returns the bound parameters of a configurable, or of a name -> values."""
  if isinstance(configurable, str):
    register_named([configurable])
  return gin.get_bindings(configurable)


def get_setting(name: str):
  """Returns the value of a macro, through those that it refers to."""
  return copy.deepcopy(gin.query_parameter(f'%{name}'))  # resolves references


def bind(values: dict) -> None:
  """Binds parameters by gin name, 'model.Config.d_model', macros by theirs."""
  with gin.unlock_config():
    for name, value in values.items():
      macro = name if '.' in name else f'{name}/gin.macro.value'
      gin.bind_parameter(macro, value)


def config_text() -> str:
  """Returns all that is bound, but for a process's place in this launch."""
  # So the text starts the same run on other hosts, and all processes of a run
  # have the same.
  register_named(gin_names.CONFIGURABLES)  # gin shortens names among all
  place = r'^(sharding\.)?start\.(coordinator|processes|process) = .*\n'
  return re.sub(place, '', gin.config_str(), flags=re.M)


def prepare_process(
  configuration: Configuration, modules: set[str]
) -> Callable:
  """Configures another process of this run; returns what configures tasks."""
  logging.set_verbosity(logging.ERROR)
  bind_configuration(configuration, modules)
  return get_configurable('atm_tasks.configure')


# --- What gin may bind


def import_modules(configuration: Configuration, trusted: set[str]) -> None:
  """Imports what a configuration asks for, and registers their GIN lists."""
  # Behind all else, so that a file that lies here replaces no package.
  if trusted and '' not in sys.path:
    sys.path.append('')  # the working directory
  for module in (
    *sorted(trusted),
    *(s.module for s, _ in configuration.imports),
  ):
    if not re.fullmatch(r'\w+(\.\w+)*', module):
      raise UserError(
        f'--import={quote(module)}: expected the name of a module'
      )
    try:
      with fileio.silence_stderr():
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as e:
      raise UserError(f'no module {e.name!r} to import') from e
    for function in getattr(loaded, 'GIN', ()):
      register_configurable(function, f'{module}.{function.__name__}')


_registered: dict[str, Callable] = {}


def register_configurable(function: Callable, name: str) -> None:
  """Lets gin bind a function under a name, 'atm.model.Config' say."""
  if name not in _registered:
    module, _, short = name.rpartition('.')
    with gin.unlock_config():
      gin.external_configurable(function, name=short, module=module)
    _registered[name] = function


def register_named(selectors: Iterable[str]) -> None:
  """Imports and registers what selectors name, which a run needs, no more."""
  for name in filter(None, map(find_configurable, selectors)):
    if name not in _registered:
      register_configurable(import_target(name), name)


def known_names() -> Mapping[str, object]:
  """Returns all that gin may bind by full name, imported or not."""
  return gin_names.CONFIGURABLES | _registered


def find_configurable(selector: str) -> str | None:
  """Returns the full name of what gin finds under a selector, if it is ours."""
  return gin_names.find_name(selector, known_names())


# XLA runs the assembler of a folder that it is given, and writes where it is
# told.
_PATH_OPTION = re.compile(r'_(dir|to|from|file|filename|path|flags|options)$')


def _has_no_path(options) -> bool:
  """Tells whether no XLA option names a file, a folder or flags."""
  return not isinstance(options, dict) or not any(
    isinstance(value, str) and _PATH_OPTION.search(str(name))
    for name, value in options.items()
  )


def _has_no_file(tasks) -> bool:
  """Tells whether tasks of lm-evaluation-harness are named, not YAML files."""
  # They name Python functions to call.
  names = tasks if isinstance(tasks, list | tuple) else [tasks]
  return all(
    isinstance(name, str | int | float | None)
    and not re.search(r'[/\\]|\.ya?ml', str(name))
    and not os.path.exists(str(name))
    for name in names
  )


# Parameters whose values may make a library run code or write elsewhere, and
# whether a gin file may bind a value; the command line may bind any.
FILES_MAY_BIND = {
  ('atm.harness.evaluate', 'include_path'): lambda value: value is None,
  ('atm.harness.evaluate', 'tasks'): _has_no_file,
  ('atm.trainer.train', 'xla_options'): _has_no_path,
  ('atm.plan.plan', 'xla_options'): _has_no_path,
}


def check_parameters(
  configuration: Configuration, trusted: set[str]
) -> list[tuple[tuple[str, str, str], object]]:
  """Returns what is to be bound: ((scope, full name, parameter), value).

  Args:
    configuration: whose macros are checked.
    trusted: modules that --import names.

  Raises:
    UserError: there is no such configurable or parameter, or it may not have
      this value.
  """
  allowed, found, last = _shipped_references(), [], {}
  for binding in configuration.bindings:
    if not binding.parameter:
      found.append(((binding.name, 'gin.macro', 'value'), binding.value))
      continue
    name = gin_names.check_name(binding.selector, binding.where, known_names())
    known = inspect.signature(_registered[name]).parameters
    if binding.parameter not in known:
      raise UserError(
        f'{binding.where}: {binding.selector} has no parameter '
        f'{quote(binding.parameter)}.' + did_you_mean(binding.parameter, known)
      )
    _check_reference(binding, name, allowed, trusted)
    key = (binding.scope, name, binding.parameter)
    found.append((key, binding.value))
    last[key] = binding
  for (_, name, _), binding in last.items():
    if isinstance(binding.value, Reference) and binding.value.is_required:
      raise UserError(f'{binding.name} is required: add --gin.{binding.name}=')
    _check_trust(binding, name, configuration.macros)
  _check_calls(dict(found))
  return found


def _shipped_references() -> dict[tuple[str, str], set[tuple[str, bool]]]:
  """Returns (name, parameter) -> what it refers to in shipped files.

  That is (full name, whether it is called); of names that are known only.
  """
  found: dict = {}
  for binding in gin_reader.shipped_bindings():
    value = binding.value
    if not isinstance(value, Reference) or value.is_macro:
      continue
    name, target = map(find_configurable, (binding.selector, value.selector))
    if name and target:
      key = (name, binding.parameter)
      found.setdefault(key, set()).add((target, value.evaluate))
  return found


def _check_reference(
  binding: Binding, name: str, allowed: dict, trusted: set[str]
) -> None:
  """Raises UserError unless a parameter has a reference that it may have.

  Anything else could be called in its place: `@convert.export_weights` for
  `@sharding.mesh` would write files.
  """
  expected = allowed.get((name, binding.parameter), set())
  module_of = lambda name: name.rpartition('.')[0]
  value = binding.value
  parameter = inspect.signature(_registered[name]).parameters[binding.parameter]
  if isinstance(value, Reference) and not value.is_macro:
    target = gin_names.check_name(value.selector, binding.where, known_names())
    pure = {r for rs in allowed.values() for r in rs if r[1]}
    fits = (
      (target, value.evaluate) in expected
      or module_of(target) in trusted
      or module_of(name) in trusted
      and (target, value.evaluate) in pure
    )
  elif expected:
    fits = value is None and parameter.default is None
  else:
    fits = not re.search('Callable|Console', str(parameter.annotation))
  if fits or module_of(name) in trusted and not isinstance(value, Reference):
    return
  short = gin_names.shorten
  what = ' or '.join(f'@{short(n)}' + '()' * call for n, call in expected)
  raise UserError(
    f'{binding.where}: {binding.name} = {quote(value)}: '
    + (f'expected {what}' if what else 'it may not have this value')
  )


def _check_trust(binding: Binding, name: str, macros: dict) -> None:
  """Raises UserError where a gin file binds what only a user may."""
  rule = FILES_MAY_BIND.get((name, binding.parameter))
  if rule is None:
    return
  sources = [binding]

  def expand(reference):
    if reference.is_required:
      return None
    sources.append(macros[reference.name])
    return replace_references(macros[reference.name].value, expand)

  value = replace_references(binding.value, expand)
  for source in sources:
    if not source.is_trusted and not rule(value):
      raise UserError(
        f'{source.where}: {source.name} = {quote(source.value)} may run code '
        f'or write files: if you trust it, give it as --gin.{source.name}=...'
      )


def _check_calls(bound: dict) -> None:
  """Raises UserError where configurables would call each other without end."""
  calls: dict[str, list[str]] = {}
  for (_, name, _), value in bound.items():
    if isinstance(value, Reference) and value.evaluate:
      target = find_configurable(value.selector)
      calls.setdefault(name, []).append(target)
  counts: dict[str, int] = {}

  def count(name: str, path: tuple[str, ...]) -> int:
    if name in path:
      raise UserError(f'{name} refers to itself through {path[-1]}')
    if name not in counts:
      inner = (count(n, (*path, name)) for n in calls.get(name, ()))
      counts[name] = 1 + sum(inner)
      if counts[name] > gin_reader.MOST_VALUES:
        raise UserError(f'{name} would be set up {counts[name]:,} times')
    return counts[name]

  for name in calls:
    count(name, ())


# --- Applying


_applied: list = [[], [], set(), Configuration()]


def arguments() -> list:
  """Returns the gin files, bindings and modules that were applied last."""
  return _applied[:3]


def last_configuration() -> tuple[Configuration, set[str]]:
  """Returns what was bound last, for other processes of this run."""
  return _applied[3], _applied[2]


def get_origin(name: str) -> str | None:
  """Returns the gin file that binds a macro last; None: no file does."""
  macro = _applied[3].macros.get(name)
  return macro and macro.file


def check_configuration(
  configuration: Configuration, modules: set[str]
) -> list:
  """Returns what is to be bound, see `check_parameters`.

  Only modules are imported; see `apply_config`.
  """
  gin_reader.check_imports(configuration, modules)
  gin_reader.check_macros(configuration)
  import_modules(configuration, modules)
  register_named(configuration.list_selectors())
  return check_parameters(configuration, modules)


def bind_configuration(configuration: Configuration, modules: set[str]) -> None:
  """Checks a configuration that was read, then binds exactly that."""
  for key, value in check_configuration(configuration, modules):
    gin.bind_parameter(key, replace_references(value, _as_gin_reference))
  # config_str writes them into config.gin.
  gin.config._IMPORTS.update(
    statement for statement, _ in configuration.imports
  )
  gin.finalize()


def apply_config(
  files: list[str],
  bindings: list[str],
  modules: set[str],
  run: str | None = None,
  tell: Callable[[str], None] = print,
) -> None:
  """Reads and checks a configuration whole, then binds what was checked.

  Args:
    files: paths of gin files; later ones win.
    bindings: NAME=VALUE lines, which win over files.
    modules: those named by --import.
    run: whose settings they are, see `settings_check.check_run`; None: of any.
    tell: called with a line of settings that are not used.

  Raises:
    UserError: names the file and line, and what was expected.
  """
  configuration = gin_reader.read_configuration(files, bindings)
  if run not in (None, 'plan'):  # a plan is of the machine that a run was on
    machine_settings.leave_out(configuration)
  if run is not None:
    for note in settings_check.check_run(run, configuration, modules):
      tell(note)
    gin_reader.check_imports(configuration, modules)
    gin_reader.check_macros(configuration)
    setting_needs.check_needs(run, configuration)
    path_checks.check_inputs_exist(run, configuration)
  _applied[:] = files, bindings, modules, configuration
  bind_configuration(configuration, modules)


def _as_gin_reference(reference: Reference) -> gin.config.ConfigurableReference:
  """Returns gin's object for a reference that was checked."""
  name = reference.name
  if reference.is_required:
    name = 'gin.REQUIRED/gin.constant'
  elif reference.is_macro:
    name += '/gin.macro'
  evaluate = reference.is_macro or reference.evaluate
  return gin.config.ConfigurableReference(name, evaluate)


def check_settings() -> None:
  """Raises ValueError for a bound value that its parameter may not have.

  At once: a run may call what it is bound to only after hours.
  """
  for name, function in _registered.items():
    checks = list_checks(function)
    bound = gin.get_bindings(name, resolve_references=False)
    for parameter, value in bound.items():
      if isinstance(value, gin.config.ConfigurableReference):
        if value.selector != 'gin.macro':
          continue
        value = copy.deepcopy(value)  # resolves a macro
      if parameter in checks and value is not None:
        checks[parameter](value)


def replace_config(files, bindings, modules) -> None:
  """Replaces the whole configuration; see `apply_config`."""
  with gin.unlock_config():
    gin.clear_config()
    apply_config(files, bindings, modules)
