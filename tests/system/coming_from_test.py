"""Pages for users of other libraries name settings that exist here."""

import dataclasses
import importlib
import inspect
import os
import re

import pytest

import atm
from atm.cli import commands, gin_names
from atm.inference import api, sampling

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))
# docs/from-mbart.md is a recipe, and names no other library's settings.
PAGES = [
  f'from-{name}.md' for name in ('fairseq', 'huggingface', 't5x', 'vllm')
]


def settings() -> set[str]:
  """Returns the names of all runs' settings."""
  found = set()
  for folder in ('runs', 'data'):
    for name in os.listdir(f'{ROOT}/gin/{folder}'):
      with open(f'{ROOT}/gin/{folder}/{name}', encoding='utf-8') as f:
        found |= set(re.findall(r'^([A-Z]\w+) =', f.read(), flags=re.M))
  return found


def has_parameter(path: str) -> bool:
  """Tells whether gin may bind configurable.parameter."""
  name, _, parameter = path.rpartition('.')
  found = gin_names.find_name(name, gin_names.TARGETS)
  if found is None:
    return False
  module, _, attribute = gin_names.TARGETS[found].partition(':')
  function = getattr(importlib.import_module(module), attribute)
  return parameter in inspect.signature(function).parameters


def has_method(path: str, arguments: list[str]) -> bool:
  """Tells whether `atm` or a model has a method with these arguments."""
  owner, name = path.split('.')
  method = getattr(api.Model if owner == 'model' else atm, name, None)
  if owner == 'atm' and name == 'load':
    method = api.load
  if method is None:
    return False
  known = set(inspect.signature(method).parameters)
  if name == 'generate':
    known |= set(inspect.signature(api.Model.complete).parameters)
    known |= {f.name for f in dataclasses.fields(sampling.Config)}
  return set(arguments) <= known


def is_served(span: str) -> bool:
  """Tells whether a span is a path, a field or a metric of the server."""
  found = ''
  for name in ('access', 'app', 'model_paths', 'metrics', 'request_schema'):
    with open(f'{ROOT}/atm/serve/{name}.py', encoding='utf-8') as f:
      found += f.read()
  if span.startswith('/'):
    return f"'{span}'" in found
  if span.startswith('atm:'):
    name = span.removeprefix('atm:').removesuffix('_total')
    return f"'{name}'" in found
  return bool(re.search(rf'^  {span}: ', found, flags=re.M))


def exists(span: str) -> bool:
  """Tells whether a code span names what atm has."""
  if re.fullmatch(r'/[\w/.]*|atm:\w+|[a-z]\w*', span):
    return is_served(span)
  macro = re.fullmatch(r'([A-Z][A-Z0-9_]+)( = .*|=.*)?', span)
  parameter = re.fullmatch(r'((?:\w+\.){1,2}\w+)(?: = .*)?', span)
  method = re.fullmatch(r'((?:atm|model)\.\w+)(\(.*\))?', span)
  if macro:
    return macro[1] in settings()
  if method:
    return has_method(method[1], re.findall(r'(\w+)=', method[2] or ''))
  if span.startswith('atm '):
    names = re.findall(r'--gin\.([A-Z_]+)', span)
    return span.split()[1] in commands.RUNS and set(names) <= settings()
  if span.endswith('.gin') or '/' in span:
    tops = '', 'gin/'
    return any(os.path.exists(f'{ROOT}/{top}{span}') for top in tops)
  if parameter:
    return has_parameter(parameter[1])
  return span in ('--import', '--gin_file', '--gin.NAME=VALUE')


@pytest.mark.parametrize('page', PAGES)
def test_what_the_second_column_names_exists(page):
  with open(f'{ROOT}/docs/{page}', encoding='utf-8') as f:
    rows = re.findall(r'^\| (.*) \|$', f.read(), flags=re.M)
  cells = [row.split(' | ')[1] for row in rows]
  spans = [s for cell in cells for s in re.findall(r'`([^`]+)`', cell)]
  assert len(spans) > 50
  assert not [span for span in spans if not exists(span)]
