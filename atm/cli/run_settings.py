"""Tells which settings a run uses, by the text of gin files.

A run uses the parameters of the configurables that its gin file binds or
refers to, of those that these refer to, and the macros in their values. Nothing
is imported.
"""

import functools
import os
import re

from atm.cli import gin_files, gin_names, gin_reader
from atm.cli.gin_reader import Configuration
from atm.cli.gin_text import Binding, find_references
from atm.cli.source_text import Parameter, list_parameters

# Every run prepares JAX by it.
START = 'atm.sharding.start'
# What `atm plan` calls by PROGRAM, beside what tells PROGRAM.
PLANNERS = {
  'train': {'atm.planner.run', 'atm.plan.plan'},
  'decode': {'atm.plan_decode.plan_rows'},
  'encode': {'atm.plan_decode.plan_rows'},
  'serve': {'atm.plan_serve.plan_engine'},
}
# Parameters that a run sets by itself, but where its own file binds them.
GIVEN = {
  'atm.cache.build': {'prepare'},
  'atm.data.vocab': {'mixture', 'directory', 'size', 'make_model'},
  'atm.plan.plan': {'start', 'tried', 'instead'},
  'atm.plan_decode.plan_rows': {'start'},
  'atm.plan_serve.plan_engine': {'start'},
  'atm.planner.run': {'run_plan', 'of_pod'},
  'atm.sharding.mesh': {'devices'},
  'atm.suite.Asker': {'config', 'vocabulary', 'mesh', 'rules', 'say'},
  'atm.suite.evaluate': {'config_text'},
  'atm.trainer.train': {'config_text'},
  'atm.vocabulary.train': {'texts', 'directory', 'size'},
  'atm_tasks.configure': {'vocabulary'},
  'atm_tasks.spoken': {'text'},
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
    value, seen = macros['PROGRAM'].value, set()
    while (names := list_macros(value)) and names[0] not in seen:
      seen.add(names[0])
      value = macros[names[0]].value if names[0] in macros else None
    called = PLANNERS.get(value, PLANNERS['decode'])
    roots -= set().union(*PLANNERS.values()) - called
  return roots


def list_reached(run: str) -> set[str]:
  """Returns all configurables that a run may call, whatever its settings."""
  found = Usage(run, read_run(run)).configurables
  if run == 'plan':
    for program in ('decode', 'serve'):
      given = [gin_files.run_file(run)], [f'PROGRAM = {program!r}']
      other = gin_reader.read_configuration(*given)
      found |= Usage(run, other).configurables
  return found


def is_given(run: str, target: str, parameter: str) -> bool:
  """Tells whether a run sets a parameter itself, whatever is bound."""
  given = GIVEN.get(target, ())
  if run == 'plan' and target == 'atm.choosing.Config':
    given = ('max_tokens',)  # as TASK_FEATURE_LENGTHS says
  if run == 'plan' and target == 'atm.serving.EngineSizes':
    given = 'slots', 'queue'  # as SLOTS says; no request is there to wait
  return parameter in given and (target, parameter) not in list_bound(run)


@functools.cache
def list_bound(run: str) -> set[tuple[str, str]]:
  """Returns (full name, parameter) of what a run's own file binds."""
  return {(get_target(b), b.parameter) for b in read_run(run).bindings}


def list_open(run: str) -> dict[str, list[Parameter]]:
  """Returns full name -> parameters that may be bound beside a run's macros.

  Only those that a value on the command line can set.
  """
  found = {}
  # What only moves the run to other devices comes last.
  order = lambda name: (name.startswith('atm.sharding.'), name)
  for name in sorted(list_reached(run), key=order):
    parameters = [
      p
      for p in list_parameters(gin_names.TARGETS[name]).values()
      if (name, p.name) not in list_bound(run)
      and not is_given(run, name, p.name)
      and not re.search('Callable|Console', p.annotation)
    ]
    if parameters:
      found[name] = parameters
  return found


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
    has = lambda other: target in list_reached(other)
  return [other for other in run_names() if other != run and has(other)]
