"""Reads, checks and applies gin files; no other module knows gin.

A gin file is data and cannot run code. Dynamic registration is refused, and so
is an import of a module that is not atm's, atm_tasks' or named by --import.
`configurables` lists all that gin files may bind.
"""

import contextlib
import copy
import importlib
import inspect
import io
import os
import re
import sys
import tokenize
from collections.abc import Callable

from absl import logging

import gin
from atm.messages import did_you_mean
from gin import config_parser


class UserError(Exception):
  """A mistake in what the user gave; printed without a traceback."""


def configurables() -> dict[str, Callable]:
  """Returns gin name -> what gin may bind, besides atm_tasks' GIN list."""
  # The names are those of the first version, so that no gin file breaks.
  from atm.checkpoint import convert
  from atm.cli import chat as chat_lib
  from atm.cli import lm_eval_command
  from atm.data import cache as cache_lib
  from atm.data import mixture_stats, vocabulary_training
  from atm.evals import during_training, runner
  from atm.inference import file_jobs, sampling
  from atm.model import config as config_lib
  from atm.pages import compare_page, inspect_data, train_page
  from atm.parallel import distributed, mesh, sharding
  from atm.plan import command, decode_plan, train_plan
  from atm.train import config as train_config
  from atm.train import optimizer

  return {
    'atm.cache.build': cache_lib.build,
    'atm.chat.chat': chat_lib.ChatCommand,
    'atm.compare.compare': compare_page.compare_evaluations,
    'atm.convert.export_weights': convert.export_weights,
    'atm.convert.import_weights': convert.import_weights,
    'atm.data.vocab': vocabulary_training.train_vocabulary,
    'atm.choosing.Config': sampling.Config,
    'atm.files.infer_file': file_jobs.InferJob,
    'atm.files.score_file': file_jobs.ScoreJob,
    'atm.harness.evaluate': lm_eval_command.LmEvalCommand,
    'atm.look.inspect': inspect_data.inspect,
    'atm.mixture.show': mixture_stats.show_mixture,
    'atm.model.Config': config_lib.ModelConfig,
    'atm.optimizer.Config': optimizer.OptimizerConfig,
    'atm.plan.plan': train_plan.plan,
    'atm.plan_decode.plan_rows': decode_plan.plan_rows,
    'atm.plan_decode.program': decode_plan.program,
    'atm.planner.run': command.run,
    'atm.run_page.write': train_page.write_train_page,
    'atm.sharding.Rules': sharding.Rules,
    'atm.sharding.mesh': mesh.make_mesh,
    'atm.sharding.start': distributed.start_jax,
    'atm.suite.Asker': during_training.FewShotEvaluator,
    'atm.suite.evaluate': runner.SuiteEvaluation,
    'atm.trainer.train': train_config.TrainConfig,
    'atm.vocabulary.train': vocabulary_training.train_sentencepiece,
  }


# From a name, what gin binds under it, with its parameters bound.
get_configurable = gin.get_configurable
# From a configurable, its bound parameters -> their values.
get_bindings = gin.get_bindings


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
  place = r'^(sharding\.)?start\.(coordinator|processes|process) = .*\n'
  return re.sub(place, '', gin.config_str(), flags=re.M)


def prepare_process(files, bindings, modules) -> Callable:
  """Configures another process of this run; returns what configures tasks."""
  logging.set_verbosity(logging.ERROR)
  apply_config(files, bindings, modules)
  return get_configurable('atm_tasks.configure')


# --- Where gin files are


def gin_folders() -> list[str]:
  """Lists where gin files are looked up: here, checkout, installed copy."""
  package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  shipped = (
    os.path.join(os.path.dirname(package), 'gin'),
    os.path.join(package, 'configs'),
  )
  return ['.', *(d for d in shipped if os.path.isdir(os.path.join(d, 'runs')))]


def find_file(name: str) -> str:
  """Returns the path of a gin file; raises UserError with the nearest name."""
  for folder in gin_folders():
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return path
  raise UserError(
    f'no gin file {name!r} in {", ".join(gin_folders())}.'
    + did_you_mean(name, shipped_files())
  )


def shipped_files() -> list[str]:
  """Lists the gin files that come with atm: models/tiny.gin, ..."""
  root = gin_folders()[1]
  return sorted(
    os.path.relpath(os.path.join(folder, name), root)
    for folder, _, names in os.walk(root)
    for name in names
    if name.endswith('.gin')
  )


# --- Reading and checking a configuration before gin sees it


class _Names(config_parser.ParserDelegate):
  """Stands for references while a configuration is only looked at."""

  def __init__(self):
    self.macros: set[str] = set()

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return f'@{scoped_configurable_name}'

  def macro(self, macro_name):
    self.macros.add(macro_name)
    return f'%{macro_name}'


def parse_statements(
  text: str, where: str, delegate: config_parser.ParserDelegate
):
  """Yields each statement of a gin text and the line after it, from 1."""
  try:
    parser = config_parser.ConfigParser(io.StringIO(text), delegate)
    for statement in parser:
      yield statement, parser.current_token.start[0]
  except (SyntaxError, tokenize.TokenError) as e:
    what = getattr(e, 'msg', None) or e.args[0]
    line = f', line {e.lineno}' if getattr(e, 'lineno', None) else ''
    if where.startswith('--gin.'):
      line, what = '', f'{what}. A string needs quotes: --gin.NAME="\'text\'"'
    raise UserError(f'{where}{line}: not gin: {what}') from e


class Scan:
  """What a configuration binds, imports and refers to."""

  # A text is cut at its includes, and the parts of the files included lie
  # between its own parts. gin is to get these parts, each by itself as it was
  # read here: so it can read nothing in them that was not checked.

  def __init__(self):
    self.parts: list[str] = []  # texts that were read, without includes
    # Name -> (last value, where it was bound).
    self.macros: dict[str, tuple] = {}
    # (selector, parameter, where).
    self.bindings: list[tuple[str, str, str]] = []
    self.modules: list[tuple[str, str]] = []  # (import, where)
    self.delegate = _Names()  # has the macros referred to
    self._open: list[str] = []  # being read, each included by the one before

  def file(self, path: str) -> None:
    """Reads a gin file, and those that it includes."""
    if (real := os.path.realpath(path)) in self._open:
      raise UserError(f'{path} includes itself')
    self._open.append(real)
    with open(path) as f:
      self.text(f.read(), path)
    self._open.pop()

  def text(self, text: str, where: str) -> None:
    """Reads a text, and the files that it includes; see `file`."""
    lines, begin = io.StringIO(text).readlines(), 0
    # gin's own search for them would look for Python packages of that name.
    for statement, after in parse_statements(text, where, _Names()):
      if isinstance(statement, config_parser.IncludeStatement):
        self._part(lines, begin, statement.location.line_num - 1, where)
        self.file(find_file(statement.filename))
        begin = after - 1
    self._part(lines, begin, len(lines), where)

  def _part(self, lines: list[str], begin: int, end: int, where: str) -> None:
    """Reads the lines from `begin` to before `end`, counted from 0."""
    part = '\n' * begin + ''.join(lines[begin:end])  # its lines keep numbers
    for statement, _ in parse_statements(part, where, self.delegate):
      self._statement(statement, where)
    self.parts.append(part)

  def _statement(self, statement, where: str) -> None:
    if isinstance(statement, config_parser.ImportStatement):
      self.modules.append((statement.module, where))
    elif isinstance(statement, config_parser.IncludeStatement):
      line = statement.location.line_num
      raise UserError(f'{where}, line {line}: this include is not on its own')
    elif isinstance(statement, config_parser.BindingStatement):
      scope, selector, parameter, value, _ = statement
      if parameter:
        self.bindings.append((selector, parameter, where))
      else:
        self.macros['/'.join(filter(None, (scope, selector)))] = (value, where)


def import_modules(modules, named: set[str]) -> None:
  """Imports what a configuration asks for, and registers their GIN lists."""
  for module, where in modules:
    root = module.split('.')[0]
    if root == '__gin__':
      raise UserError(
        f'{where}: dynamic registration is refused: it lets a gin file run '
        'any code'
      )
    if root not in ('atm', 'atm_tasks') and module not in named:
      raise UserError(
        f'{where}: import of {module!r} is refused: a gin file may import '
        f'atm and atm_tasks only. If you trust it, add --import={module}'
      )
  for module in (*named, *(m for m, _ in modules)):
    try:
      with silence_stderr():
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as e:
      raise UserError(f'no module {e.name!r} to import') from e
    for function in getattr(loaded, 'GIN', ()):
      register_configurable(function, f'{module}.{function.__name__}')


@contextlib.contextmanager
def silence_stderr():
  """Drops what C++ code prints meanwhile."""
  # Importing TensorFlow, which no setting of its own can silence, greets with
  # eight lines.
  sys.stderr.flush()
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)


_registered: dict[str, Callable] = {}


def register_configurable(function: Callable, name: str) -> None:
  """Lets gin bind a function under a name, 'atm.model.Config' say."""
  if name not in _registered:
    module, _, short = name.rpartition('.')
    gin.external_configurable(function, name=short, module=module)
    _registered[name] = function


def check_bindings(scan: Scan) -> None:
  """Raises UserError for an unknown configurable, parameter or macro."""
  short = {'.'.join(name.split('.')[-2:]) for name in _registered}
  for selector, parameter, where in scan.bindings:
    end = f'.{selector}'
    found = [f for name, f in _registered.items() if f'.{name}'.endswith(end)]
    if len(found) != 1:
      what = 'is ambiguous' if found else 'is nothing gin may bind'
      raise UserError(
        f'{where}: {selector!r} {what}.' + did_you_mean(selector, short)
      )
    known = inspect.signature(found[0]).parameters
    if parameter not in known:
      raise UserError(
        f'{where}: {selector} has no parameter {parameter!r}.'
        + did_you_mean(parameter, known)
      )
  usable = shipped_macros() | scan.delegate.macros
  for name, (_, where) in scan.macros.items():
    if name not in usable:
      raise UserError(
        f'{where}: no setting is called {name!r}.' + did_you_mean(name, usable)
      )
  for name in sorted(scan.delegate.macros - {'gin.REQUIRED'}):
    value, _ = scan.macros.get(name, ('%gin.REQUIRED', None))
    if value == '%gin.REQUIRED':
      raise UserError(
        f'{name} is required: add --gin.{name}=VALUE (strings in quotes: '
        f'--gin.{name}="\'text\'")'
      )


def shipped_macros() -> set[str]:
  """Lists macros that any run knows: a models/ file may set another run's."""
  scan = Scan()
  for name in shipped_files():
    if name.startswith('runs/'):
      scan.file(find_file(name))
  return set(scan.macros)


_arguments: list = []


def arguments() -> list:
  """Returns what `apply_config` was given, for other processes of this run."""
  return _arguments


def apply_config(
  files: list[str], bindings: list[str], modules: set[str]
) -> None:
  """Checks a configuration whole, then hands it to gin.

  Args:
    files: paths of gin files; later ones win.
    bindings: NAME=VALUE lines, which win over files.
    modules: those named by --import.

  Raises:
    UserError: names the file and line, and what was expected.
  """
  _arguments[:] = files, bindings, modules
  scan = Scan()
  for path in files:
    scan.file(path)
  for binding in bindings:
    scan.text(binding, f'--gin.{binding}')
  import_modules(scan.modules, modules)
  for name, function in configurables().items():
    register_configurable(function, name)
  check_bindings(scan)
  for part in scan.parts:
    gin.parse_config(part)
  gin.finalize()


def replace_config(files, bindings, modules) -> None:
  """Replaces the whole configuration; see `apply_config`."""
  with gin.unlock_config():
    gin.clear_config()
    apply_config(files, bindings, modules)
