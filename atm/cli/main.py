"""The command line: `atm RUN [--gin_file=FILE]... [--gin.NAME=VALUE]...`.

`atm RUN --help` tells the settings of a run, and `atm check` takes its folder
without a name. RUN is the stem of a file in
gin/runs/; its bindings come first, then each --gin_file, then each
--gin.NAME=VALUE; later ones win.
"""

import contextlib
import gc
import os
import sys
import traceback

from absl import logging

import atm
from atm.cli import (
  commands,
  error_report,
  gin_config,
  help_text,
  interrupts,
  log_output,
)
from atm.cli.gin_files import find_file, run_file
from atm.cli.gin_text import UserError
from atm.messages import did_you_mean, one_line, quote

HELP_FLAGS = ('-h', '--help', 'help')
VERSION_FLAGS = ('-V', '--version')
CLOSED_OUTPUT = 141  # as a shell tells of SIGPIPE
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h, as of a run that hangs


def check_run_name(run: str) -> None:
  """Raises UserError with the nearest name unless there is such a run."""
  if run not in commands.RUNS:
    raise UserError(
      f'no run called {quote(run)}.' + did_you_mean(run, commands.RUNS)
    )


def answer_question(arguments: list[str]) -> str | None:
  """Returns what `atm`, --version or --help prints; None for another command.

  Raises UserError where help is asked on no run.
  """
  if not arguments:
    return commands.list_runs()
  if arguments[0] in VERSION_FLAGS:
    return f'atm {atm.__version__}'
  asked = [a for a in arguments if a not in HELP_FLAGS]
  if len(asked) == len(arguments):
    return None
  if not asked:
    return commands.list_runs()
  check_run_name(asked[0])
  return help_text.format_help(asked[0])


def parse_arguments(arguments: list[str]) -> tuple:
  """Returns (run, gin files, gin bindings, modules) of a command line."""
  run, *rest = arguments
  check_run_name(run)
  files, bindings, modules = [run_file(run)], [], set()
  for argument in rest:
    name, equals, value = argument.partition('=')
    if name == '--gin_file' and value:
      files.append(find_file(value))
    elif name.startswith('--gin.') and equals:
      bindings.append(argument.removeprefix('--gin.'))
    elif name == '--import' and value:
      modules.add(value)
    elif run in commands.UNNAMED and argument[:1] not in ('', '-'):
      bindings.append(f'{commands.UNNAMED[run]} = {argument!r}')
    else:
      known = (
        '--gin_file=FILE', '--gin.NAME=VALUE', '--import=MODULE', '--help'
      )  # fmt: skip
      raise UserError(
        f'unknown argument {argument!r}.' + did_you_mean(argument, known)
      )
  return run, files, bindings, modules


def main(arguments: list[str] | None = None) -> int:
  """Runs a command; returns its exit status: 2 for a mistake, 75 to try again.

  A process of several that fails ends in `distributed.exit_process` instead.
  """
  own = arguments is None
  if own:
    # What is imported stays: to look for garbage in it is a tenth of a start.
    gc.disable()
  arguments = sys.argv[1:] if own else arguments
  log_output.open_standard_streams()
  try:
    status = run_command(arguments)
    if sys.stdout is not None:
      sys.stdout.flush()  # here, where an error of it can be caught
  except SystemExit:
    raise
  except interrupts.Terminated as e:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it
      print(interrupts.format_end(e.number, e.note), file=sys.stderr)
    status = 128 + e.number
  except KeyboardInterrupt:
    status = 130
  except BaseException as e:  # a library in Rust has panics of its own
    status = report_error(e, arguments)
  if own:
    gc.freeze()  # the process ends: nothing needs to be collected
  # Where it was not imported, no process was joined.
  if status and (distributed := sys.modules.get('atm.parallel.distributed')):
    distributed.exit_process(status)
  return status


def report_error(error: BaseException, arguments: list[str]) -> int:
  """Prints the error that ended a command; returns the exit status.

  Of several processes the first to fail says why; all end with its status.
  """
  distributed = sys.modules.get('atm.parallel.distributed')
  several = distributed is not None and distributed.has_met()
  if several and (status := _follow_others(error)) is not None:
    return status
  status = _choose_status(error, several)
  if several:
    from atm.parallel import failures

    failures.show_failure(status)
  if isinstance(error, BrokenPipeError) and error_report.is_output_closed():
    error_report.drop_output()
    return CLOSED_OUTPUT
  if os.environ.get('ATM_TRACEBACK'):
    traceback.print_exception(error)
  text = error_report.format_error(error, arguments)
  print(f'atm: error: {text}', file=sys.stderr)
  return status


def _choose_status(error: BaseException, several: bool) -> int:
  """Returns the exit status of an error of this process."""
  if error_report.may_pass(error):
    return TRY_AGAIN
  # Where a process was killed, Orbax and XLA fail in all others.
  if several and error_report.is_of_runtime(error):
    return 1
  return 2 if error_report.is_mistake(error) else 1


def _follow_others(error: BaseException) -> int | None:
  """Returns the exit status of another process that failed first, or None."""
  from atm.parallel import distributed, failures

  if isinstance(error, distributed.OtherProcessError):
    found = failures.wait_for_failure()
    return found[1] if found else failures.UNKNOWN  # the other says it all
  if found := failures.find_failure():
    text = f'{failures.format_failure(found)}. Here: {type(error).__name__}: '
    print(f'atm: error: {text}{one_line(error, 200)}', file=sys.stderr)
    return found[1]
  return None


def run_command(arguments: list[str]) -> int:
  """Runs a command, and leaves no other process; returns the exit status."""
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
  if (answer := answer_question(arguments)) is not None:
    print(answer)
    return 0
  run, files, bindings, modules = parse_arguments(arguments)
  tell = lambda note: print(f'atm: {note}', file=sys.stderr)
  gin_config.apply_config(files, bindings, modules, run, tell)
  if not gc.isenabled():
    gc.freeze()
    gc.enable()
  from atm.parallel import xla_options

  xla_options.set_flags()
  xla_options.set_compilation_cache()
  if run not in commands.WITHOUT_DEVICES:
    gin_config.get_configurable('sharding.start')()
    log_output.silence_orbax()
    if sys.modules['atm.parallel.distributed'].uses_gloo():
      log_output.silence_gloo()
    from atm.parallel import failures

    failures.watch_others()
  # In a chat Ctrl-C ends an answer.
  with (
    interrupts.catch_signals(at_once=run != 'chat'),
    log_output.keep_going(commands.writes_files(run)),
  ):
    return commands.execute(run)


if __name__ == '__main__':
  sys.exit(main())
