"""Writes docs/python.md from signatures and docstrings.

python docs/python_api.py > docs/python.md
"""

import dataclasses
import inspect
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEAD = """\
# The Python interface

`atm.load` reads a trained model, and its methods generate and score. This page
is made of the code's signatures and docstrings.

```python
import atm

model = atm.load('runs/tiny')
model.generate(['All human beings are born'], max_tokens=16)
long = 'All human beings are born free and equal in dignity and rights. ' * 9
model.generate([long], max_tokens=16, truncate='start')
```

An argument that a method does not have is a `TypeError`, an option of
`generate` a `ValueError`; the message names the nearest one, and all. A wrong
value is a `ValueError` that names the argument. Prompts that are too long:
[decoding.md](decoding.md#long-inputs).
"""
ENGINE = """\
`atm.serve.engine` serves many callers at once, without HTTP: see
[serving.md](serving.md#call).
"""
SECTION = re.compile(r'(Args|Attributes|Returns|Yields|Raises):\s*(.*)')


def format_signature(name: str, function) -> list[str]:
  """Returns a call with its parameters, defaults and types, one a line."""
  signature = inspect.signature(function, eval_str=True)
  parameters = []
  for parameter in signature.parameters.values():
    if parameter.name == 'self':
      continue
    text = str(parameter)
    default = parameter.default
    annotation = inspect.formatannotation(parameter.annotation)
    if dataclasses.is_dataclass(default) or ' object at 0x' in repr(default):
      text = f'{parameter.name}: {annotation} = {type(default).__name__}()'
    elif inspect.isbuiltin(default):
      text = f'{parameter.name}: {annotation} = {default.__name__}'
    parameters.append(f'  {text},')
  result = inspect.formatannotation(signature.return_annotation)
  end = ')' if isinstance(function, type) else f') -> {result}'
  lines = [f'{name}(', *parameters, end]
  # Names as a reader of the code has them.
  short = [re.sub(r'\b(?:[a-z_]+\.)+(?=[A-Z])', '', line) for line in lines]
  return ['```text', *short, '```', '']


def format_docstring(owner) -> list[str]:
  """Returns a docstring as Markdown: its sections are lists."""
  lines, section = [], False
  for line in inspect.cleandoc(owner.__doc__).splitlines():
    if match := SECTION.fullmatch(line):
      lines += [f'**{match[1]}** {match[2]}'.rstrip(), '']
      section = True
    elif section and line.startswith('    '):
      lines.append(line)
    elif section and line.startswith('  '):
      item = re.sub(r'^([\w, ]+):', r'`\1`:', line[2:])
      lines.append(f'- {item}')
    else:
      section = section and not line
      lines.append(line)
  return [*lines, '']


def public_methods(kind: type) -> dict:
  """Returns name -> function of a class's public methods, as they are written.

  Those that a user calls first come first.
  """
  return {
    name: method
    for base in kind.__mro__
    for name, method in vars(base).items()
    if inspect.isfunction(method) and not name.startswith('_')
  }


def format_document() -> str:
  """Returns the text of docs/python.md."""
  from atm.inference import api, outputs, sampling
  from atm.serve import engine, engine_sizes

  lines = [HEAD, '## atm.load', '']
  lines += format_signature('atm.load', api.load) + format_docstring(api.load)
  lines += ['## Model', '', *format_docstring(api.Model)]
  for name, method in public_methods(api.Model).items():
    lines += [f'### {name}', '', *format_signature(f'model.{name}', method)]
    lines += format_docstring(method)
  for name, kind in (
    ('sampling.Config', sampling.Config), ('Generation', outputs.Generation)
  ):  # fmt: skip
    lines += [f'## {name}', '']
    lines += format_signature(name, kind) + format_docstring(kind)
  lines += ['## Engine', '', ENGINE, '']
  lines += format_signature('Engine', engine.Engine.__init__)
  lines += format_docstring(engine.Engine)
  for name, method in public_methods(engine.Engine).items():
    lines += [f'### Engine.{name}', '']
    lines += format_signature(f'engine.{name}', method)
    lines += format_docstring(method)
  lines += ['## EngineSizes', '']
  lines += format_signature('EngineSizes', engine_sizes.EngineSizes)
  lines += format_docstring(engine_sizes.EngineSizes)
  text = '\n'.join(lines)
  return re.sub(r'\n{3,}', '\n\n', text).rstrip() + '\n'


if __name__ == '__main__':
  sys.path.insert(0, ROOT)
  print(format_document(), end='')
