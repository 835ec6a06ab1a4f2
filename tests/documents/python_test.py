"""docs/python.md is made of signatures and docstrings."""

import importlib.util
import inspect
import os

import atm
from atm.inference import api

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))


def load_script():
  spec = importlib.util.spec_from_file_location(
    'python_api', f'{ROOT}/docs/python_api.py'
  )
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  return script


def test_the_document_has_every_public_signature():
  script = load_script()
  with open(f'{ROOT}/docs/python.md', encoding='utf-8') as f:
    text = f.read()
  same = text == script.format_document()
  assert same, 'write it again: python docs/python_api.py > docs/python.md'
  for name, method in inspect.getmembers(api.Model, inspect.isfunction):
    if not name.startswith('_'):
      start = f'text\nmodel.{name}('
      (block,) = (x for x in text.split('```') if x.startswith(start))
      for parameter in [*inspect.signature(method).parameters][1:]:
        assert f'  {parameter}' in block or f'  **{parameter}' in block
  assert 'truncated: int = 0' in text and 'temperature: float = 0.0' in text
