"""Help on a run: its settings, from comments of gin files and docstrings.

`atm RUN --help` prints it, and docs/settings.md is written from the same.
"""

import dataclasses
import functools
import os
import re
import textwrap

from atm.cli import commands, gin_files, gin_names, run_settings, source_text

HELP_WIDTH = 80
MEANING_COLUMN = 35  # column
ASSIGNMENT = re.compile(r'(\w+) = (.*)')


@dataclasses.dataclass(frozen=True)
class Setting:
  """A macro of a run, or a parameter that may be bound beside.

  Attributes:
    name: as a user writes it, of a parameter its last part.
    default: as the file or the source writes it; '' where it is required.
    meaning: what it is for.
  """

  name: str
  default: str
  meaning: str


def read_header(path: str) -> list[str]:
  """Returns the lines of the comment that opens a gin file."""
  found = []
  for line in gin_files.read_file(path).splitlines():
    if not line.startswith('#'):
      break
    found += textwrap.wrap(line[1:].removeprefix(' '), HELP_WIDTH) or ['']
  return found


def read_notes(path: str) -> list[str]:
  """Returns the lines of the comments that end a gin file."""
  lines = gin_files.read_file(path).rstrip().splitlines()
  found = []
  while lines[-1].startswith('#'):
    found.insert(0, lines.pop()[1:].removeprefix(' ').rstrip())
  return found


@functools.cache
def _read_assignments(path: str) -> dict[str, tuple[str, str]]:
  """Returns macro -> (value, comment) of a gin file, as they are written."""
  found = {}
  for line in gin_files.read_file(path).splitlines():
    if match := ASSIGNMENT.fullmatch(line):
      # A `#` in a text has no space before it in any shipped file.
      value, _, comment = match[2].partition(' #')
      found[match[1]] = value.strip(), comment.strip()
  return found


def list_settings(run: str) -> dict[str, list[Setting]]:
  """Returns gin file -> settings, of a run's own file and those included."""
  last = {b.name: b for b in run_settings.read_run(run).bindings
          if not b.parameter}  # fmt: skip
  found: dict[str, list[Setting]] = {}
  own = gin_files.run_file(run)
  for name, binding in last.items():
    value, comment = _read_assignments(binding.file)[name]
    default = '' if 'REQUIRED' in value else value.removeprefix('%')
    meaning = comment or _find_meaning(run, name)
    file = os.path.relpath(binding.file, os.path.dirname(os.path.dirname(own)))
    setting = Setting(name, default, _trim(meaning))
    found.setdefault(file, []).append(setting)
  first = f'runs/{run}.gin'
  return {first: found.pop(first), **found}


def _find_meaning(run: str, name: str) -> str:
  """Returns what the parameter says that a macro without comment sets.

  `atm plan` has settings of `pretrain`, and leaves their meanings to that.
  """
  for binding in run_settings.read_run(run).bindings:
    if binding.parameter and name in run_settings.list_macros(binding.value):
      target = gin_names.TARGETS[run_settings.get_target(binding)]
      known = source_text.list_parameters(target)[binding.parameter]
      if not known.meaning.startswith('see '):
        return known.meaning
  if run == 'pretrain' or name not in run_settings.list_own_macros('pretrain'):
    return ''
  comments = _read_assignments(gin_files.run_file('pretrain'))
  return comments[name][1] or _find_meaning('pretrain', name)


def list_beside(run: str) -> dict[str, list[Setting]]:
  """Returns configurable -> parameters, see `run_settings.list_open`."""
  return {
    gin_names.shorten(name): [
      Setting(p.name, p.default, _trim(p.meaning)) for p in parameters
    ]
    for name, parameters in run_settings.list_open(run).items()
  }


def _trim(meaning: str) -> str:
  """Returns a meaning without the full stop of a single sentence."""
  return meaning if '. ' in meaning else meaning.removesuffix('.')


def summarize(name: str) -> str:
  """Returns the first sentence on 'choosing.Config'."""
  target = gin_names.find_name(name, gin_names.TARGETS)
  return source_text.read_summary(gin_names.TARGETS[target])


def format_setting(setting: Setting) -> str:
  """Formats the name, default and meaning of a setting, wrapped."""
  left = f'  {setting.name} = {setting.default or "required"}'
  if not setting.default:
    left = f'  {setting.name}  (required)'
  lines = textwrap.wrap(
    setting.meaning, HELP_WIDTH - MEANING_COLUMN, break_long_words=False,
    break_on_hyphens=False,
  ) or ['']  # fmt: skip
  indent = ' ' * MEANING_COLUMN
  if len(left) < MEANING_COLUMN:
    head = left.ljust(MEANING_COLUMN) + lines.pop(0)
    return '\n'.join([head.rstrip(), *(indent + line for line in lines)])
  left = textwrap.fill(
    left, HELP_WIDTH, subsequent_indent=' ' * 6, break_long_words=False,
    break_on_hyphens=False,
  )  # fmt: skip
  return '\n'.join([left, *(indent + line for line in lines if line)])


def format_help(run: str) -> str:
  """Returns what `atm RUN --help` prints."""
  path = gin_files.run_file(run)
  unnamed = '[FOLDER] ' if run in commands.UNNAMED else ''
  lines = [
    f'usage: atm {run} {unnamed}[--gin_file=FILE]... [--gin.NAME=VALUE]...', '',
    *read_header(path), '',
  ]  # fmt: skip
  for file, settings in list_settings(run).items():
    own = file == f'runs/{run}.gin'
    lines.append(
      f'settings of {file}, as --gin.NAME=VALUE (texts in quotes):'
      if own
      else f'and of {file}, which that includes:'
    )
    lines += [format_setting(setting) for setting in settings]
    lines.append('')
  beside = list_beside(run)
  if beside:
    name, (first, *_) = next(iter(beside.items()))
    example = f'--gin.{name}.{first.name}=VALUE'
    lines += ['parameters that may be bound, too, such as', f'  {example}', '']
  for name, settings in beside.items():
    title = f'{name}: {summarize(name)}'
    lines.append(textwrap.fill(title, HELP_WIDTH, subsequent_indent='  '))
    lines += [format_setting(setting) for setting in settings]
    lines.append('')
  lines += read_notes(path)
  return '\n'.join(lines).rstrip()


# --- The document


def format_document() -> str:
  """Returns docs/settings.md: all runs, then what may be bound beside."""
  lines = [
    '# Settings', '',
    'All settings of every run, written by `python docs/settings.py` from the '
    'comments of gin files and from docstrings. `atm RUN --help` prints the '
    'same. A setting is given as `--gin.NAME=VALUE`, texts in quotes: '
    '`--gin.MODEL_DIR="\'runs/mine\'"`, or in a [gin file](gin.md). A run '
    'refuses settings that it does not use.', '',
    *(f'- [{run}](#{run})' for run in commands.RUNS),
    '- [Parameters](#parameters)', '',
  ]  # fmt: skip
  users: dict[str, list[str]] = {}
  parameters: dict[str, dict[str, Setting]] = {}
  for run in commands.RUNS:
    lines += _format_run(run)
    for name, settings in list_beside(run).items():
      users.setdefault(name, []).append(run)
      known = parameters.setdefault(name, {})
      known |= {setting.name: setting for setting in settings}
  lines += [
    '## Parameters', '',
    'Parameters that no setting of a run stands for are bound by their full '
    'names: `--gin.choosing.Config.top_k=5`.', '',
  ]  # fmt: skip
  for name, settings in sorted(parameters.items()):
    lines += [
      f'### {name}', '', summarize(name), '',
      f'Runs: {", ".join(users[name])}.', '',
      *_format_table('parameter', settings.values()), '',
    ]  # fmt: skip
  return '\n'.join(lines).rstrip() + '\n'


def _format_run(run: str) -> list[str]:
  """Returns the section of a run."""
  lines = [f'## {run}', '']
  for line in read_header(gin_files.run_file(run)):
    lines.append(f'  {line}' if line.startswith('  ') else line)
  lines.append('')
  for file, settings in list_settings(run).items():
    lines += [f'Of `gin/{file}`:', '', *_format_table('setting', settings), '']
  if beside := list_beside(run):
    links = (f'[{n}](#{_anchor(n)})' for n in beside)
    lines += [f'Beside these, parameters of {", ".join(links)}.', '']
  return lines


def _anchor(title: str) -> str:
  """Returns the anchor that GitHub gives a heading."""
  return re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')


def _format_table(head: str, settings) -> list[str]:
  """Returns the lines of a table of settings."""
  cell = lambda text: text.replace('|', '\\|')
  lines = [f'| {head} | default | meaning |', '| --- | --- | --- |']
  for s in settings:
    default = f'`{cell(s.default)}`' if s.default else 'required'
    lines.append(f'| `{s.name}` | {default} | {cell(s.meaning)} |')
  return lines
