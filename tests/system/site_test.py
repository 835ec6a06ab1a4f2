"""Every document has a place on the site, under links that stay as they are."""

import os
import re

import pytest
import yaml

import atm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))


def read(name: str) -> str:
  """Returns the text of a file of the checkout."""
  path = os.path.join(ROOT, name)
  if not os.path.exists(path):
    pytest.skip('not a checkout')
  with open(path, encoding='utf-8') as f:
    return f.read()


def list_leaves(nav) -> list[str]:
  """Returns the pages of a tree of lists and of dicts by title."""
  if isinstance(nav, str):
    return [nav]
  inner = nav.values() if isinstance(nav, dict) else nav
  return [page for part in inner for page in list_leaves(part)]


def test_every_document_is_in_the_navigation():
  listed = list_leaves(yaml.safe_load(read('mkdocs.yml'))['nav'])
  made = re.findall(r"^  '.*': '(.*\.md)',$", read('docs/site.py'), re.M)
  written = [
    os.path.relpath(os.path.join(folder, name), f'{ROOT}/docs')
    for folder, _, names in os.walk(f'{ROOT}/docs')
    for name in names
    if name.endswith('.md')
  ]
  assert sorted(listed) == sorted([*made, *written])


def test_the_reference_names_what_there_is():
  """mkdocstrings reads the sources; a name that was moved fails here first."""
  for name in os.listdir(f'{ROOT}/docs/api'):
    for shown in re.findall(r'^::: (.*)$', read(f'docs/api/{name}'), re.M):
      module, _, inner = shown.rpartition('.')
      path = module.replace('.', '/')
      package = os.path.isdir(f'{ROOT}/{path}')
      source = read(f'{path}/__init__.py' if package else f'{path}.py')
      assert re.search(rf'^(class|def) {inner}\b', source, re.M), shown
