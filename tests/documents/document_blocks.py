"""Reads the fenced blocks of README.md and docs/*.md, for tests of documents.

A block's info string names what is in it: `sh` and `python` are executed as a
reader would, `output` is compared with what the block above printed, and the
others (`text`, `json`, `gin`) are no commands. `title="FILE"` behind it writes
the block to a file first.
"""

import dataclasses
import glob
import os
import re
import shlex
import textwrap

import atm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))
EXECUTED = 'sh', 'python'
LANGUAGES = *EXECUTED, 'output', 'text', 'json', 'gin'
# A reader sees it, in a block or in the line above it.
MARK = re.compile(r'not run here(:|,? because) (?P<reason>\w.+)', re.I)
# Ends before it has read all: what writes to it may fail, or not.
EARLY = re.compile(r'\|\s*(head|grep -\w*[qm]|sed -n \S*q)\b')
COMMANDS = 'atm', 'git', 'jupyter', 'make', 'pip', 'pytest', 'python', 'srun'
# What a reader would have to replace, or to add.
PLACEHOLDER = re.compile(
  r'(?<!--gin\.)\b(FOLDER|FILE|SOURCE|TARGET|RUN|NAME|LANG)\b|\.\.\.'
)


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block, and the line of text above it."""

  line: int
  language: str
  code: str
  above: str
  title: str | None = None

  def reason(self) -> str | None:
    """Returns why the block is not executed, or None where it is."""
    found = MARK.search(f'{self.above}\n{self.code}')
    return found and found['reason']

  def is_executed(self) -> bool:
    """Tells whether the block is a command or example that is run."""
    return self.language in EXECUTED and self.reason() is None

  def commands(self) -> list[list[str]]:
    """Returns the arguments of each `atm` that takes nothing from the shell."""
    code = self.code.replace('\\\n', ' ')
    lines = re.findall(r'^ *(?:\S*/)?atm +(\w[^$|;&>\n]*)$', code, re.M)
    return [shlex.split(line, comments=True) for line in lines]

  def faults(self) -> list[str]:
    """Lists what keeps the block from being executed or understood."""
    faults = []
    if self.language not in LANGUAGES:
      faults.append(f'its language, {self.language!r}, is none of {LANGUAGES}')
    if self.language in EXECUTED:
      if not self.reason() and (found := PLACEHOLDER.search(self.code)):
        faults.append(f'{found[0]} is for a reader to replace')
      if not self.reason() and (found := EARLY.search(self.code)):
        faults.append(f'{found[0]!r} may end what writes to it: put it first')
    else:
      faults += [
        f'{word} looks like a command, but {self.language!r} is not executed'
        for word in re.findall(r'^\$? *(\w+) ', self.code, re.M)
        if word in COMMANDS
      ]
    return faults


def documents() -> list[str]:
  """Returns the paths of the documents, from the root."""
  found = glob.glob(f'{ROOT}/docs/*.md')
  return [
    'README.md',
    'CONTRIBUTING.md',
    *sorted(os.path.relpath(f, ROOT) for f in found),
  ]


def read_blocks(path: str) -> list[Block]:
  """Returns the blocks of a document, whose path begins at the root."""
  with open(os.path.join(ROOT, path), encoding='utf-8') as f:
    lines = f.read().split('\n')
  blocks, opened, above = [], None, ''
  for number, line in enumerate(lines, 1):
    fence = line.strip()
    if opened is None and fence.startswith('```'):
      opened, code = number, []
      language, _, rest = fence.strip('`').partition(' ')
      title = re.fullmatch(r'title="(.+)"', rest)
    elif opened is not None and fence == '```':
      code = textwrap.dedent('\n'.join(code))
      blocks.append(Block(opened, language, code, above, title and title[1]))
      opened, above = None, ''
    elif opened is not None:
      code.append(line)
    elif fence:
      above = fence
  if opened is not None:
    raise ValueError(f'{path}:{opened}: the block has no end')
  return blocks
