"""The command as tests call it: a process of its own, or checks alone."""

import os
import subprocess
import sys

from atm.cli import gin_config, gin_reader, main

DIR = '--gin.MODEL_DIR="x"'
TINY = '--gin_file=models/tiny.gin'


def atm(*arguments, cwd=None):
  """Runs the command in a process of its own, as a user does."""
  return subprocess.run(
    [sys.executable, '-m', 'atm.cli.main', *arguments],
    capture_output=True,
    text=True,
    cwd=cwd,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )


def parse(run, *rest, files=()):
  """Checks a configuration as the command does, without handing on to gin."""
  run, found, bindings, modules = main.parse_arguments([run, *rest])
  files = [*found, *map(str, files)]
  made = gin_reader.read_configuration(files, bindings)
  gin_config.check_configuration(made, modules)
  return made
