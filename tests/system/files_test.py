"""Files of users are read and written by path through atm.storage alone.

So a path may be gs:// or s3:// wherever a setting takes one. Modules that call
the operating system themselves are named below, with the reason.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
STORES = 'atm/storage/', 'atm/fileio.py'
OS = {
  'listdir', 'makedirs', 'mkdir', 'remove', 'rename', 'replace', 'rmdir',
  'scandir', 'stat', 'unlink', 'walk',
}  # fmt: skip
OS_PATH = {'exists', 'getsize', 'isdir', 'isfile', 'islink', 'lexists'}
MODULES = {'glob', 'shutil', 'tempfile'}
# Of MODULES: no files of users.
HARMLESS = {
  'glob.escape', 'shutil.get_terminal_size', 'shutil.which',
  'tempfile.gettempdir',
}  # fmt: skip

MACHINE = 'files of this machine: caches, temporary folders, a crash report'
SYSTEM = 'files and streams of the operating system'
PACKAGE = 'files that atm is installed with'
COPY = 'a folder of an object store was fetched, or is sent when it is whole'
LOCAL = 'the half for local paths; beside it is one for object stores'
REASONS = {
  MACHINE: {
    'atm/checkpoint/staged_steps.py', 'atm/checkpoint/warm_start.py',
    'atm/cli/chat.py', 'atm/cli/error_report.py', 'atm/evals/folder_check.py',
    'atm/evals/peer_process.py', 'atm/model/compiler_check.py',
    'atm/model/kernels.py', 'atm/plan/compilation.py', 'atm/plan/kernels.py',
    'atm/plan/workers.py', 'atm/train/hang_watchdog.py',
  },
  SYSTEM: {
    'atm/parallel/machine.py',
    'atm/cli/interrupts.py', 'atm/cli/log_output.py',
    'atm/parallel/device_memory.py', 'atm/plan/memory.py',
    'atm/train/first_step.py',
  },
  PACKAGE: {
    'atm/cli/commands.py', 'atm/cli/gin_config.py', 'atm/cli/gin_files.py',
    'atm/cli/source_text.py', 'atm/serve/page.py',
  },
  COPY: {
    'atm/checkpoint/convert.py', 'atm/checkpoint/hf_folder.py',
    'atm/checkpoint/parameter_writer.py', 'atm/checkpoint/reader.py',
    'atm/checkpoint/staging.py',
    'atm/checkpoint/torch_reader.py', 'atm/data/token_store.py',
    'atm/evals/folder_facts.py', 'atm/evals/text_metrics.py',
    'tasks/evaluation/dataset_files.py', 'tasks/evaluation/readers.py',
  },
  LOCAL: {
    'atm/cli/lm_eval_command.py', 'atm/cli/machine_settings.py',
    'atm/cli/path_checks.py',
    'atm/cli/serve_command.py', 'atm/data/cache.py',
    'atm/inference/partial_results.py', 'atm/train/inputs.py',
    'atm/train/metric_writer.py', 'atm/train/run_folder.py',
    'tasks/pretraining/text_folders.py',
  },
}  # fmt: skip


def name_function(node) -> str:
  """Returns 'a.b' of such a reference, '' of others."""
  parts = []
  while isinstance(node, ast.Attribute):
    parts, node = [node.attr, *parts], node.value
  return '.'.join([node.id, *parts]) if isinstance(node, ast.Name) else ''


def opens_files(name: str) -> bool:
  """Tells whether a function of this name may read or write a path."""
  module, _, function = name.rpartition('.')
  if name == 'open' or name in ('pathlib.Path', 'Path'):
    return True
  if module in ('os', 'os.path'):
    return function in (OS if module == 'os' else OS_PATH)
  return module in MODULES and name not in HARMLESS


def list_modules() -> set[str]:
  """Returns the modules that call, or hand on, such functions."""
  found = set()
  for path in [*ROOT.glob('atm/**/*.py'), *ROOT.glob('tasks/**/*.py')]:
    name = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text(encoding='utf-8'))
    nodes = (
      x for x in ast.walk(tree) if isinstance(x, ast.Name | ast.Attribute)
    )
    nodes = (x for x in nodes if isinstance(x.ctx, ast.Load))
    if any(opens_files(name_function(node)) for node in nodes):
      found.add(name)
  return {x for x in found if not x.startswith(STORES)}


def test_only_named_modules_open_files():
  known = set().union(*REASONS.values())
  assert list_modules() == known


@pytest.mark.parametrize('name', ['open', 'os.walk', 'os.path.isfile'])
def test_what_opens_files_is_seen(name):
  """Fault that it is to see: a module that would refuse a bucket."""
  assert opens_files(name) and not opens_files('shutil.which')
