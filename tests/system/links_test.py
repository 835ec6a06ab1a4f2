"""Links of documents lead somewhere, paths exist, sentences are short."""

import functools
import os
import re

import pytest

import atm
from atm.cli import commands

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))


def files(*endings: str) -> list[str]:
  """Returns the paths of the project's files, from the root."""
  tops = 'atm', 'benchmarks', 'docs', 'gin', 'tasks', 'tests'
  found = [n for n in os.listdir(ROOT) if n.endswith(endings)]
  for top in tops:
    for folder, _, names in os.walk(f'{ROOT}/{top}'):
      found += [
        os.path.relpath(f'{folder}/{n}', ROOT)
        for n in names
        if n.endswith(endings)
      ]
  return sorted(found)


@functools.cache
def read(path: str) -> str:
  """Returns the text of a file."""
  with open(f'{ROOT}/{path}', encoding='utf-8') as f:
    return f.read()


def prose(path: str) -> str:
  """Returns a document without its blocks of code."""
  return re.sub(r'^```.*?^```$', '', read(path), flags=re.M | re.S)


def anchors(path: str) -> set[str]:
  """Returns the anchors of a document's headings, as GitHub makes them."""
  heads = re.findall(r'^#+ (.*)$', prose(path), flags=re.M)
  return {
    re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads
  }


DOCUMENTS = [
  path
  for path in files('.md')
  if path.startswith(('README', 'CONTRIBUTING', 'docs/'))
]


@pytest.mark.parametrize('path', files('.md'))
def test_links_lead_somewhere(path):
  """A dead link was met where pages were split."""
  dead = []
  for link in re.findall(r'\]\(([^)\s]+)\)', prose(path)):
    if '://' in link or link.startswith('mailto:'):
      continue
    name, _, anchor = link.partition('#')
    target = os.path.normpath(os.path.join(os.path.dirname(path), name))
    target = target if name else path
    if not os.path.exists(f'{ROOT}/{target}'):
      dead.append(link)
    elif anchor and anchor not in anchors(target):
      dead.append(link)
  assert not dead, dead


# What a path looks like in a sentence: `atm/plan/hardware.py`, `gin/suites/`.
PATH = re.compile(
  r'(?<![\w/.:-])((?:atm|benchmarks|docs|gin|requirements|tasks|tests|models|'
  r'pods|suites|runs)/[\w./-]*?(?:\w\.(?:py|md|gin|svg|png|txt|css|json)\b|'
  r'\w/(?=[\s`,;:.)]|$)))',
  re.M,
)
# What a run makes in a working directory, and names in capitals, to be filled.
MADE = re.compile(r'runs/[\w/-]+/$|runs/mine|runs/tiny|.*[A-Z]{4,}\.\w+$')


@pytest.mark.parametrize('path', files('.md', '.py', '.gin', '.toml'))
def test_paths_that_are_named_exist(path):
  """Comments named a module by the path that it had before a move."""
  text = read(path)
  if re.match('(tests/|setup).*py$', path):  # strings name files of the tests
    text = '\n'.join(re.findall(r'#.*$|""".*?"""', text, flags=re.M))
  lost = [
    name
    for name in PATH.findall(text)
    if not MADE.match(name)
    and not any(os.path.exists(f'{ROOT}/{top}{name}') for top in ('', 'gin/'))
  ]
  assert not lost, lost


MOST_WORDS = 30  # of a sentence; the aim is 25


def sentences(path: str) -> list[str]:
  """Returns the sentences of a document's text, without tables and samples."""
  found = []
  for text in re.split(r'\n\s*\n|\n(?= *(?:- |\d+\. ))', prose(path)):
    if re.match(r'\s*([|#!]|- (input|output|truth): )', text):
      continue
    text = re.sub(r'\]\([^)]*\)', ']', ' '.join(text.split()))
    text = re.sub(r'`[^`]*`', 'CODE', text)
    found += re.split(r'[.:;!?]\S* (?=[\w*\[(-])', text)
  return found


@pytest.mark.parametrize('path', DOCUMENTS)
def test_a_sentence_is_read_once(path):
  long = [x for x in sentences(path) if len(x.split()) > MOST_WORDS]
  assert not long, long


def test_the_readme_lists_every_run():
  """Fault seen: `atm runs`, which it did not name."""
  listed = re.findall(r'^\| `(\w+)` \|', read('README.md'), re.M)
  assert sorted(listed) == sorted(commands.RUNS)
