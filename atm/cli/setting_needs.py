"""Settings that do nothing unless another one has some value.

Such a setting on the command line is a mistake: TEXT_DIR names a text, and the
run would train on another one.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping

from atm import storage
from atm.cli import gin_names
from atm.cli.gin_reader import Configuration
from atm.cli.gin_text import Binding, UserError, find_references
from atm.cli.run_settings import get_target, list_own_macros, read_run
from atm.messages import quote

# Mixtures and tasks that come with atm, by what they read.
READS = {
  'udhr': 'the shipped text', 'udhr_ul2': 'the shipped text',
  'udhr_language': 'the shipped text',
  'in_context': 'generated episodes', 'in_context_ul2': 'generated episodes',
  'text': 'TEXT_DIR', 'text_ul2': 'TEXT_DIR',
  'paper': 'WIKIPEDIA and MC4', 'paper_ul2': 'WIKIPEDIA and MC4',
  'pairs': 'PAIRS',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Need:
  """What settings need of another one to count.

  Attributes:
    settings: macros, or parameters.
    other: the setting whose value decides.
    fits: tells whether they count at a value of it.
    hint: what the error says to do.
    runs: where this holds; (): in those that have them as macros.
    own: whether the model of MODEL_DIR may have a value where there is None.
  """

  settings: tuple[str, ...]
  other: str
  fits: Callable[[object], bool]
  hint: str
  runs: tuple[str, ...] = ()
  own: bool = False

  def holds(self, run: str, name: str) -> bool:
    """Tells whether a setting of a run needs the other one."""
    own = list_own_macros(run)
    return run in self.runs or {name, self.other} <= own


def _read_by(name: str) -> Callable[[object], bool]:
  """Returns what tells whether a mixture may read a setting; ours are known."""
  return lambda mixture: name in READS.get(str(mixture), name)


def _is_set(value) -> bool:
  """Tells whether a setting has a value, not None."""
  return value is not None


def _is_none(value) -> bool:
  """Tells whether a setting has no value."""
  return value is None


# Files with settings that a model was published with.
OWN_SETTINGS = ('generation_config.json', 'config.json')
MIXTURE = 'MIXTURE_OR_TASK_NAME'
NEEDS = (
  *(
    Need((name,), MIXTURE, _read_by(name), f'set {MIXTURE} = {mixture!r}')
    for name, mixture in (
      ('TEXT_DIR', 'text'), ('PAIRS', 'pairs'), ('WIKIPEDIA', 'paper'),
      ('MC4', 'paper'),
    )
  ),
  Need(('NEW_LANGUAGES',), 'INIT_FROM', _is_set, 'name INIT_FROM'),
  Need(
    (
      'LORA_ALPHA', 'LORA_DROPOUT', 'LORA_TARGETS', 'LORA_RSLORA',
      'LORA_BASE_DTYPE',
    ),
    'LORA_RANK', _is_set, 'set LORA_RANK',
  ),
  Need(
    ('PAIRS_COLUMNS', 'PAIRS_MODE', 'SOURCE_LANGUAGE', 'TARGET_LANGUAGE'),
    'PAIRS', _is_set, 'name PAIRS',
  ),
  Need(
    ('PAIRS_TEMPERATURE', 'PAIRS_WEIGHTS'), MIXTURE, _read_by('PAIRS'),
    f"set {MIXTURE} = 'pairs'",
  ),
  Need(('TASKS', 'DATA_DIR', 'LIMIT'), 'ASK_EVERY', _is_set, 'set ASK_EVERY'),
  Need(('PATIENCE',), 'KEEP_BEST', _is_set, 'set KEEP_BEST'),
  Need(('MIN_DELTA',), 'PATIENCE', _is_set, 'set PATIENCE'),
  Need(
    ('BEAM_OPTIONS',), 'RUNNER', lambda runner: runner == 'beam',
    "set RUNNER = 'beam'",
  ),
  Need(('SHARD_GIB',), 'WEIGHTS', _is_none, 'leave out WEIGHTS'),
  Need(('SHARD_GIB', 'WEIGHTS'), 'FORMAT', _is_none, 'leave out FORMAT'),
  Need(('BEAMS',), 'BEAM_GROUPS', bool, 'set BEAM_GROUPS above 0'),
  Need(('SPLIT', 'TASK_FEATURE_LENGTHS'), 'TASK', _is_set, 'name a TASK'),
  Need(
    tuple(f'choosing.Config.{k}' for k in ('top_k', 'top_p', 'min_p')),
    'choosing.Config.temperature', bool,
    'set a TEMPERATURE above 0', ('infer',), own=True,
  ),
  Need(
    ('choosing.Config.length_penalty', 'choosing.Config.early_stopping'),
    'choosing.Config.beams',
    lambda beams: isinstance(beams, int) and beams > 1,
    'set choosing.Config.beams above 1', ('infer', 'eval'), own=True,
  ),
)  # fmt: skip


def _has_own_settings(model_dir) -> bool:
  """Tells whether a folder may hold a model's own settings of generation."""
  return isinstance(model_dir, str) and any(
    storage.exists(os.path.join(model_dir, name)) for name in OWN_SETTINGS
  )


def check_needs(run: str, configuration: Configuration) -> None:
  """Raises UserError for an argument that does nothing for want of another."""
  last = {_get_key(b): b for b in configuration.bindings}
  default = {_get_key(b): b.value for b in read_run(run).bindings}
  for need in NEEDS:
    value = find_value(need.other, last)
    if need.own and value is None:
      if _has_own_settings(find_value('MODEL_DIR', last)):
        continue
    for name in need.settings:
      binding = last.get(name)
      given = binding is not None and binding.file is None
      if not given or not need.holds(run, name) or need.fits(value):
        continue
      if binding.value == default.get(name) or find_references(binding.value):
        continue
      raise UserError(
        f'{binding.name} = {quote(binding.value)}, but {need.other} = '
        f'{quote(value)}: leave out {binding.name}, or {need.hint}'
      )


def _get_key(binding: Binding) -> str:
  """Returns a macro's name, or 'choosing.Config.beams'."""
  if not binding.parameter:
    return binding.name
  return f'{gin_names.shorten(get_target(binding))}.{binding.parameter}'


def find_value(name: str, bindings: Mapping[str, Binding]):
  """Returns the value of a setting; None where others are part of it."""
  seen = set()
  while name in bindings and name not in seen:
    seen.add(name)
    value = bindings[name].value
    references = find_references(value)
    if not references:
      return value
    name = references[0].name if references == [value] else ''
  return None
