"""The command line: `atm RUN [--gin_file=FILE]... [--gin.NAME=VALUE]...`.

RUN is the stem of a file in gin/runs/; its bindings come first, then each
--gin_file, then each --gin.NAME=VALUE; later ones win.
"""

import os
import sys
import traceback

from absl import logging

from atm.cli import commands, gin_config
from atm.cli.gin_config import UserError, find_file
from atm.messages import did_you_mean

# TensorFlow, which some runs import, is silent from the first line on.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')


def parse_arguments(arguments: list[str]) -> tuple:
  """Returns (run, gin files, gin bindings, modules) of a command line."""
  run, *rest = arguments
  if run not in commands.RUNS:
    raise UserError(
      f'no run called {run!r}.' + did_you_mean(run, commands.RUNS)
    )
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

  A process of several that fails ends in `distributed.exit_process` instead.
  """
  try:
    status = run_command(arguments)
  except BaseException:
    from atm.parallel import distributed

    if not distributed.has_joined():
      raise
    traceback.print_exc()
    status = 1
  if status:
    from atm.parallel import distributed

    distributed.exit_process(status)
  return status


def run_command(arguments: list[str] | None) -> int:
  """Runs a command; returns its exit status, and leaves no other process."""
  arguments = sys.argv[1:] if arguments is None else arguments
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
  if not arguments or arguments[0] in ('-h', '--help', 'help'):
    print(commands.list_runs())
    return 0
  try:
    run, files, bindings, modules = parse_arguments(arguments)
    gin_config.apply_config(files, bindings, modules)
    from atm.parallel import xla_options

    xla_options.set_compilation_cache()
    if run not in commands.WITHOUT_DEVICES:
      gin_config.get_configurable('sharding.start')()
    commands.execute(run)
  except KeyboardInterrupt:
    return 130
  except Exception as e:
    from atm.parallel import distributed
    from atm.train import crash_report

    if isinstance(e, distributed.OtherProcessError):
      return 2  # it says so itself
    mistake = isinstance(
      e, UserError | ValueError | FloatingPointError | OSError
    )
    known = mistake or crash_report.has_note(e)
    if os.environ.get('ATM_TRACEBACK') or not known:
      raise
    print(f'atm: error: {crash_report.format_error(e)}', file=sys.stderr)
    return 2 if mistake else 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
