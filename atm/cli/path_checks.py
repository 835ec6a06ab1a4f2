"""Refuses a run that is to read what is not there, before anything is imported.

Imports take seconds; a path that does not exist is found at once. What is there
is checked by those who read it.
"""

import os

from atm import storage
from atm.cli.gin_reader import Configuration
from atm.cli.gin_text import UserError
from atm.cli.machine_settings import is_run_folder
from atm.cli.setting_needs import find_value
from atm.messages import find_nearest, quote

_MODEL = 'a MODEL_DIR with a checkpoint, or a folder of Hugging Face weights'
_ADAPTER = 'the MODEL_DIR of a LoRA run, or a PEFT folder'
_ADAPTED = {'MODEL_DIR': _MODEL, 'ADAPTER': _ADAPTER}
_RUN = 'a folder with metrics.jsonl, which `atm pretrain` writes'
_COMPARED = 'a folder that `atm eval` or `atm pretrain` writes'
_TEXT = {
  'TEXT_DIR': 'a folder with LANG.txt, LANG.jsonl, ...',
  'PAIRS': 'JSONL or TSV of pairs, or a folder of them',
}
# run -> setting -> what has to be there.
PATHS = {
  **dict.fromkeys(('chat', 'eval', 'export', 'lm_eval', 'serve'), _ADAPTED),
  **dict.fromkeys(('infer', 'score'), {**_ADAPTED, 'INPUT': 'a file to read'}),
  **dict.fromkeys(('cache', 'inspect', 'mixture', 'pretrain', 'vocab'), _TEXT),
  'finetune': {**_TEXT, 'INIT_FROM': _MODEL},
  'check': {'MODEL_DIR': 'a folder with config.json and weights'},
  'card': {'MODEL_DIR': _RUN},
  'report': {'MODEL_DIR': _RUN},
  'runs': {'FOLDER': 'a folder with the folders of runs'},
  'compare': {'RUNS': _COMPARED},
  'import': {'SOURCE': 'a folder with config.json and weights'},
}
# Parameters that make a process one of several: the first to miss a file would
# leave the others waiting.
JOINS = ('distributed', 'coordinator')


def check_inputs_exist(run: str, configuration: Configuration) -> None:
  """Raises UserError where a run is to read a path that does not exist."""
  if any(b.parameter in JOINS and b.value for b in configuration.bindings):
    return
  for name, expected in PATHS.get(run, {}).items():
    for label, path in _list_paths(
      name, find_value(name, configuration.macros)
    ):
      if not isinstance(path, str) or _is_there(label, path):
        continue
      if name == 'INIT_FROM' and _has_begun(configuration):
        continue  # a run that goes on reads its own
      raise UserError(
        f'{label} = {quote(path)}: not there: expected {expected}.'
        + _name_nearest(path)
      )


def _list_paths(name: str, value) -> list[tuple[str, object]]:
  """Returns (what to call it, path) of each path of a setting."""
  if name == 'RUNS' and isinstance(value, list | tuple):
    return [(name, path) for path in value]
  if name not in ('PAIRS', 'RUNS') or not isinstance(value, dict):
    return [(name, value)]
  return [
    (f'{name}[{quote(key)}]', path)
    for key, paths in value.items()
    for path in (paths if isinstance(paths, list | tuple) else [paths])
  ]


def _is_there(name: str, path: str) -> bool:
  """Tells whether a path may be read: it exists, or is no plain path."""
  if path in ('', '-') or '\0' in path:
    return True  # refused or read elsewhere
  if not storage.is_remote(path):
    return os.path.lexists(os.path.expanduser(path))
  try:
    storage.get_scheme(path)
  except ValueError as e:
    raise UserError(f'{name} = {e}') from None
  return storage.exists(path)


def _has_begun(configuration: Configuration) -> bool:
  """Tells whether MODEL_DIR has checkpoints."""
  own = find_value('MODEL_DIR', configuration.macros)
  return isinstance(own, str) and is_run_folder(os.path.expanduser(own))


def _name_nearest(path: str) -> str:
  """Returns ' Did you mean X?' for the nearest name in a path's folder."""
  folder, name = os.path.split(path.rstrip('/'))
  bucket = '/'.join(path.split('/')[:3])
  try:
    if storage.is_remote(path) and not storage.list_names(bucket):
      return f' There is no bucket {quote(bucket)}, or it is empty.'
    known = storage.list_names(os.path.expanduser(folder) or os.curdir)
  except OSError:
    return ''
  near = find_nearest(name, known)
  return f' Did you mean {quote(os.path.join(folder, near))}?' if near else ''
