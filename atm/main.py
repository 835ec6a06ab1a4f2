"""The command line: `atm RUN [--gin_file=FILE]... [--gin.NAME=VALUE]...`.

The only file that knows gin. RUN is the stem of a file in gin/runs/; its
bindings come first, then each --gin_file, then each --gin.NAME=VALUE; later
ones win. `configurables` is the whole list of what they may bind.

A gin file is data: it cannot run code. Dynamic registration is refused, and so
is an import of a module that is not atm's, atm_tasks' or named by --import.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import io
import os
import re
import sys
import tokenize
import traceback
from collections.abc import Callable

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from absl import logging  # noqa: E402

import gin  # noqa: E402
from gin import config_parser  # noqa: E402

USAGE = (
  'usage: atm RUN [--gin_file=FILE]... [--gin.NAME=VALUE]... '
  '[--import=MODULE]...'
)


class UserError(Exception):
  """A mistake in what the user gave; printed without a traceback."""


def configurables() -> tuple[Callable, ...]:
  """Everything gin may bind, besides what atm_tasks lists in its GIN."""
  from atm import (
    cache,
    chat,
    choosing,
    compare,
    convert,
    data,
    files,
    harness,
    look,
    mixture,
    model,
    optimizer,
    plan,
    plan_decode,
    planner,
    run_page,
    sharding,
    suite,
    trainer,
    vocabulary,
  )

  return (
    cache.build,
    chat.chat,
    compare.compare,
    convert.export_weights,
    convert.import_weights,
    data.vocab,
    choosing.Config,
    files.infer_file,
    files.score_file,
    harness.evaluate,
    look.inspect,
    mixture.show,
    model.Config,
    optimizer.Config,
    plan.plan,
    plan_decode.plan_rows,
    plan_decode.program,
    planner.run,
    run_page.write,
    sharding.Rules,
    sharding.mesh,
    sharding.start,
    suite.Asker,
    suite.evaluate,
    trainer.train,
    vocabulary.train,
  )


def pretrain() -> None:
  from atm import failure, hosts, report

  failure.hush()
  take_model()
  check_pairs()
  run = gin.get_configurable('trainer.train')(config_text=config_text())
  if not hosts.is_first():
    return
  report.closing(run)
  print(next_steps(run.model_dir, run.step))


def next_steps(model_dir: str, steps: int) -> str:
  """Commands for what one may want after a training run."""
  atm = sys.argv[0] if sys.argv[0].endswith('atm') else 'atm'
  atm = min(atm, os.path.relpath(atm), key=len) if '/' in atm else atm
  text = lambda name, value: f'--gin.{name}="\'{value}\'"'
  mode = setting('PAIRS_MODE')  # what `infer` frames prompts in
  tuned = setting('INIT_FROM') is not None
  lines = [
    ('prompt it', 'echo "All human beings are born" > prompts.txt'),
    ('', f'{atm} infer {text("MODEL_DIR", model_dir)} '
     f'{text("INPUT", "prompts.txt")}'
     + (f' {text("MODE", mode)}' if tuned and mode != 'clm' else '')),
  ]  # fmt: skip
  if not tuned:  # that one's learning rate has come to 0
    config = f'--gin_file={model_dir}/config.gin'
    train_on = f'{atm} pretrain {config} --gin.TRAIN_STEPS={steps * 2}'
    lines = [('train on', train_on), *lines]
    lines += [
      ('your own pairs', f'{atm} finetune {text("INIT_FROM", model_dir)} '
       f'{text("MODEL_DIR", "runs/tuned")} \\'),
      ('', f'  {text("PAIRS", "pairs.jsonl")}   # `input` and `target` a line'),
      ('your own text', f'{atm} pretrain --gin_file=models/tiny.gin '
       f'{text("MODEL_DIR", "runs/mine")} \\'),
      ('', f'  {text("MIXTURE_OR_TASK_NAME", "text")} '
       f'{text("TEXT_DIR", "FOLDER")}   # holds en.txt, hi.txt, ...'),
    ]  # fmt: skip
  return '\n'.join(['next:', *(f'  {k:<16}{line}' for k, line in lines)])


def setting(name: str):
  """The value of a macro, through those that it refers to."""
  return copy.deepcopy(gin.query_parameter(f'%{name}'))  # resolves references


def check_pairs() -> None:
  """Raises UserError where PAIRS are named, but not what is trained on."""
  from atm import data

  path, mixture = setting('PAIRS'), setting('MIXTURE_OR_TASK_NAME')
  if path is None:
    return
  gin.get_configurable('atm_tasks.configure')()
  if 'pairs' not in [task.name for task in data.tasks_of(mixture, 'train')]:
    raise UserError(
      f'PAIRS = {path!r}, but MIXTURE_OR_TASK_NAME = {mixture!r}: leave out '
      "PAIRS, or set MIXTURE_OR_TASK_NAME = 'pairs'"
    )


def take_model() -> None:
  """Binds what the model that a run starts from says of itself.

  Only what is not bound yet: its fields of `model.Config`, and its positions as
  lengths. So config.gin tells all of the run's model, and starts it alone.
  """
  from atm import checkpoint, model, trained

  source, own = map(setting, ('INIT_FROM', 'MODEL_DIR'))
  if source is None:
    return
  for name, value in (('INIT_FROM', source), ('MODEL_DIR', own)):
    if not isinstance(value, str):
      raise UserError(f'{name} = {value!r}: expected a folder, in quotes')
  if checkpoint.latest_step(own) is not None:
    config = trained.config_of(own)  # INIT_FROM need not be there any more
  else:
    try:
      config = trained.find(source).config
    except FileNotFoundError as e:
      parent = os.path.dirname(os.path.dirname(source.rstrip('/')))
      known = [parent] if os.path.isdir(f'{parent}/checkpoints') else []
      raise UserError(
        f'INIT_FROM = {source!r}: expected a MODEL_DIR with a checkpoint, or a '
        'Hugging Face folder' + ''.join(f'. Did you mean {p!r}?' for p in known)
      ) from e
  bound = gin.get_bindings(model.Config)
  with gin.unlock_config():
    for name, value in dataclasses.asdict(config).items():
      if name not in bound:
        gin.bind_parameter(f'model.Config.{name}', value)
    if setting('TASK_FEATURE_LENGTHS') is None:
      lengths = dict.fromkeys(('inputs', 'targets'), config.positions)
      gin.bind_parameter('TASK_FEATURE_LENGTHS/gin.macro.value', lengths)


def config_text() -> str:
  """All that is bound, but for where a process of this launch stands.

  So that the text starts the same run on other hosts, and all processes of a
  run have the same.
  """
  place = r'^(sharding\.)?start\.(coordinator|processes|process) = .*\n'
  return re.sub(place, '', gin.config_str(), flags=re.M)


def plan() -> None:
  start = gin.get_configurable('sharding.start')
  if (program := gin.get_configurable('plan_decode.program')()) != 'train':
    for name in ('SEARCH', 'PODS'):
      if gin.query_parameter(f'%{name}'):
        raise UserError(f"{name} is for PROGRAM = 'train', not {program!r}")
    gin.get_configurable('plan_decode.plan_rows')(start=start)
    return
  gin.get_configurable('planner.run')(
    functools.partial(gin.get_configurable('plan.plan'), start=start), of_pod
  )


def of_pod(name: str) -> dict:
  """Settings of `plan.plan` with a pods file in place of the one given.

  Args:
    name: 'v5p_4x4x8'.

  Raises:
    UserError: no such file.
  """
  from atm import sharding

  known = [
    os.path.basename(f)[:-4] for f in shipped_files() if f[:5] == 'pods/'
  ]
  try:
    path = find_file(f'pods/{name}.gin')
  except UserError:
    near = sharding.did_you_mean(name, known)
    raise UserError(f'PODS: no pods file {name!r}.' + near) from None
  files, bindings, modules = _given
  own = [f for f in files if os.path.basename(os.path.dirname(f)) != 'pods']
  with gin.unlock_config():
    gin.clear_config()
    configure([*own, path], bindings, modules)
    given = gin.get_configurable('plan.plan')(instead=dict)
  # Bound now: the next pods file brings another mesh.
  bound = gin.get_bindings(sharding.mesh)
  return {**given, 'make_mesh': functools.partial(sharding.mesh, **bound)}


def vocab() -> None:
  gin.get_configurable('data.vocab')()


def cache() -> None:
  gin.get_configurable('cache.build')(
    prepare=functools.partial(prepare_process, *_given)
  )


def prepare_process(files, bindings, modules) -> Callable:
  """Configures another process of this run as this one is."""
  logging.set_verbosity(logging.ERROR)
  configure(files, bindings, modules)
  return gin.get_configurable('atm_tasks.configure')


def mixture() -> None:
  gin.get_configurable('mixture.show')()


def inspect_() -> None:
  gin.get_configurable('look.inspect')()


def infer() -> None:
  gin.get_configurable('files.infer_file')()


def score() -> None:
  gin.get_configurable('files.score_file')()


def chat() -> None:
  gin.get_configurable('chat.chat')()


def eval_() -> None:
  gin.get_configurable('suite.evaluate')(config_text=config_text())


def compare() -> None:
  print(gin.get_configurable('compare.compare')())


def lm_eval() -> None:
  gin.get_configurable('harness.evaluate')()


def report() -> None:
  print(gin.get_configurable('run_page.write')())


def import_() -> None:
  gin.get_configurable('convert.import_weights')()


def export() -> None:
  gin.get_configurable('convert.export_weights')()


# They need not be where the devices are, and start JAX themselves if at all.
ELSEWHERE = ('plan',)
RUNS = {
  'pretrain': pretrain,
  'finetune': pretrain,  # with INIT_FROM and other defaults
  'plan': plan,
  'vocab': vocab,
  'cache': cache,
  'mixture': mixture,
  'inspect': inspect_,
  'report': report,
  'infer': infer,
  'score': score,
  'chat': chat,
  'eval': eval_,
  'compare': compare,
  'lm_eval': lm_eval,
  'import': import_,
  'export': export,
}


# --- Where gin files are


def gin_folders() -> list[str]:
  """Where gin files are looked up: here, the checkout, the installed copy."""
  package = os.path.dirname(os.path.abspath(__file__))
  shipped = (
    os.path.join(os.path.dirname(package), 'gin'),
    os.path.join(package, 'configs'),
  )
  return ['.', *(d for d in shipped if os.path.isdir(os.path.join(d, 'runs')))]


def find_file(name: str) -> str:
  """The path of a gin file; raises UserError with the nearest name."""
  from atm.sharding import did_you_mean

  for folder in gin_folders():
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return path
  raise UserError(
    f'no gin file {name!r} in {", ".join(gin_folders())}.'
    + did_you_mean(name, shipped_files())
  )


def shipped_files() -> list[str]:
  """models/tiny.gin, ...: the gin files that come with atm."""
  root = gin_folders()[1]
  return sorted(
    os.path.relpath(os.path.join(folder, name), root)
    for folder, _, names in os.walk(root)
    for name in names
    if name.endswith('.gin')
  )


def list_runs() -> str:
  """Every run with the first comment line of its file."""
  lines = [USAGE, '', 'runs:']
  for name in RUNS:
    with open(find_file(f'runs/{name}.gin')) as f:
      lines.append(f'  {name:<10}{f.readline().lstrip("# ").rstrip()}')
  lines += ['', 'gin files:', '  ' + '\n  '.join(shipped_files())]
  return '\n'.join(lines)


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


def statements(text: str, where: str, delegate: config_parser.ParserDelegate):
  """Yields each statement that gin reads in a text, and the line after it.

  Lines count from 1.

  Raises:
    UserError: it is not gin.
  """
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
  """What a configuration binds, imports and refers to.

  A text is cut at its includes, and the parts of the files included lie between
  its own parts. gin is to get these parts, each by itself as it was read here:
  so it can read nothing in them that was not checked.

  Attributes:
    parts: the texts that were read, without includes, in order.
    macros: name -> (last value, where it was bound).
    bindings: (selector, parameter, where).
    names: macros referred to.
    modules: imports, in order.
  """

  def __init__(self):
    self.parts: list[str] = []
    self.macros: dict[str, tuple] = {}
    self.bindings: list[tuple[str, str, str]] = []
    self.modules: list[tuple[str, str]] = []
    self.delegate = _Names()
    self._open: list[str] = []  # being read, each included by the one before

  def file(self, path: str) -> None:
    """Reads a gin file, and those that it includes.

    Raises:
      UserError: it is not gin, includes itself, or a file that is not there.
    """
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
    for statement, after in statements(text, where, _Names()):
      if isinstance(statement, config_parser.IncludeStatement):
        self._part(lines, begin, statement.location.line_num - 1, where)
        self.file(find_file(statement.filename))
        begin = after - 1
    self._part(lines, begin, len(lines), where)

  def _part(self, lines: list[str], begin: int, end: int, where: str) -> None:
    """Reads the lines from `begin` to before `end`, counted from 0."""
    part = '\n' * begin + ''.join(lines[begin:end])  # its lines keep numbers
    for statement, _ in statements(part, where, self.delegate):
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
      with quiet_stderr():
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as e:
      raise UserError(f'no module {e.name!r} to import') from e
    for function in getattr(loaded, 'GIN', ()):
      register(function, module)


@contextlib.contextmanager
def quiet_stderr():
  """Drops what C++ code prints meanwhile: importing TensorFlow, which no
  setting of its own can silence, greets with eight lines."""
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


def register(function: Callable, module: str) -> None:
  name = f'{module}.{function.__name__}'
  if name not in _registered:
    gin.external_configurable(function, module=module)
    _registered[name] = function


def check_bindings(scan: Scan) -> None:
  """Raises UserError for an unknown configurable, parameter or macro."""
  from atm.sharding import did_you_mean

  short = {'.'.join(name.split('.')[-2:]) for name in _registered}
  for selector, parameter, where in scan.bindings:
    found = [
      f
      for name, f in _registered.items()
      if f'.{name}'.endswith(f'.{selector}')
    ]
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
  """Macros that any run knows: a models/ file may set those of another run."""
  scan = Scan()
  for name in RUNS:
    scan.file(find_file(f'runs/{name}.gin'))
  return set(scan.macros)


# What `configure` was given, for other processes of the same run.
_given: list = []


def configure(files: list[str], bindings: list[str], modules: set[str]) -> None:
  """Checks a configuration whole, then hands it to gin."""
  _given[:] = files, bindings, modules
  scan = Scan()
  for path in files:
    scan.file(path)
  for binding in bindings:
    scan.text(binding, f'--gin.{binding}')
  import_modules(scan.modules, modules)
  for function in configurables():
    register(function, function.__module__)
  check_bindings(scan)
  for part in scan.parts:
    gin.parse_config(part)
  gin.finalize()


# --- The command


def parse_arguments(arguments: list[str]) -> tuple:
  """(run, gin files, gin bindings, modules) of a command line."""
  from atm.sharding import did_you_mean

  run, *rest = arguments
  if run not in RUNS:
    raise UserError(f'no run called {run!r}.' + did_you_mean(run, RUNS))
  files, bindings, modules = [find_file(f'runs/{run}.gin')], [], set()
  for argument in rest:
    name, equals, value = argument.partition('=')
    if name == '--gin_file' and value:
      files.append(find_file(value))
    elif name.startswith('--gin.') and equals:
      bindings.append(argument.removeprefix('--gin.'))
    elif name == '--import' and value:
      modules.add(value)
    else:
      known = ('--gin_file=FILE', '--gin.NAME=VALUE', '--import=MODULE')
      raise UserError(
        f'unknown argument {argument!r}.' + did_you_mean(argument, known)
      )
  return run, files, bindings, modules


def main(arguments: list[str] | None = None) -> int:
  """Runs a command; returns its exit status: 2 for a user's mistake.

  A process of several that fails ends here instead, see `hosts.leave`.
  """
  try:
    status = run_command(arguments)
  except BaseException:
    from atm import hosts

    if not hosts.joined():
      raise
    traceback.print_exc()
    status = 1
  if status:
    from atm import hosts

    hosts.leave(status)
  return status


def run_command(arguments: list[str] | None) -> int:
  """What `main` does."""
  arguments = sys.argv[1:] if arguments is None else arguments
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
  if not arguments or arguments[0] in ('-h', '--help', 'help'):
    print(list_runs())
    return 0
  try:
    run, files, bindings, modules = parse_arguments(arguments)
    configure(files, bindings, modules)
    from atm import xla

    xla.set_compilation_cache()
    if run not in ELSEWHERE:
      gin.get_configurable('sharding.start')()
    RUNS[run]()
  except KeyboardInterrupt:
    return 130
  except Exception as e:
    from atm import failure, hosts

    if isinstance(e, hosts.OtherFailed):
      return 2  # it says so itself
    mistake = isinstance(
      e, UserError | ValueError | FloatingPointError | OSError
    )
    known = mistake or failure.is_noted(e)
    if os.environ.get('ATM_TRACEBACK') or not known:
      raise
    print(f'atm: error: {failure.shown(e)}', file=sys.stderr)
    return 2 if mistake else 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
