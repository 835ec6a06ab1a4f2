"""The arrows between files, and what a start may cost."""

import ast
import os
import subprocess
import sys

import pytest

import atm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))

# A file imports only from files to its left.
ORDER = (
  'hosts places sharding metrics vocabulary stopping prompts questions '
  'overlap scores noise objectives rows data stream units cache mixture '
  'samples page scales reading results_page compare look products loss '
  'attention layers model optimizer step xla integrity checkpoint intact '
  'layouts torch_file hf trained warm_start choosing decode beams buckets '
  'scoring evaluate checks goodput run_page progress interrupts lock failure '
  'loop trainer infer files asking suite chat convert report lm_eval harness '
  't5x chips hlo kernels wire estimate memory plan_text plan candidates quick '
  'changes search_page search planner token_step serving placed decode_text '
  'plan_decode main'
).split()
HEAVY = {
  'tensorflow', 'seqio', 'clu', 'matplotlib', 'torch', 'tensorboard',
  'sacrebleu', 'rouge_score', 'lm_eval', 'datasets', 'evaluate',
}  # fmt: skip


def imports(path):
  """(module, is at top level) of every import of a file."""
  with open(path) as f:
    tree = ast.parse(f.read())
  top = set(tree.body)
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, node in top
    elif isinstance(node, ast.ImportFrom):
      if node.module == 'atm':
        for alias in node.names:
          yield f'atm.{alias.name}', node in top
      else:
        yield node.module, node in top


def test_every_file_stands_in_the_order():
  files = {f[:-3] for f in os.listdir(f'{ROOT}/atm') if f.endswith('.py')}
  assert files - {'__init__'} == set(ORDER)


@pytest.mark.parametrize('name', ORDER)
def test_arrows_point_one_way(name):
  for module, at_top in imports(f'{ROOT}/atm/{name}.py'):
    root, *rest = module.split('.')
    assert root != 'atm_tasks', 'atm never imports tasks'
    assert root != 'gin' or name == 'main', 'only main.py knows gin'
    # To import atm.lm_eval is to register a model with lm_eval.
    heavy = root in HEAVY - {name} or module == 'atm.lm_eval'
    assert not (at_top and heavy), f'{module} is heavy: import it late'
    if root == 'atm' and rest:
      assert ORDER.index(rest[0]) < ORDER.index(name), f'{name} -> {rest[0]}'


def test_tasks_import_little_of_atm():
  allowed = (
    'atm.vocabulary atm.noise atm.objectives atm.prompts atm.questions '
    'atm.sharding'  # its check_choice
  ).split()
  for file in os.listdir(f'{ROOT}/tasks'):
    if file.endswith('.py'):
      for module, _ in imports(f'{ROOT}/tasks/{file}'):
        if module.split('.')[0] == 'atm':
          assert module in allowed
        assert module.split('.')[0] != 'gin'


def test_infer_starts_without_tensorflow():
  code = (
    'import sys; from atm import infer, main; main.configurables(); '
    f'print([m for m in {sorted(HEAVY)} if m in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'
