"""Registers the tasks with seqio once that is imported, before or after them.

seqio brings TensorFlow, which takes seconds to import, and which rows of tokens
never need.
"""

import importlib.abc
import importlib.util
import sys

SEQIO_TASKS = 'atm_tasks.pretraining.seqio_tasks'


class _SeqioFinder(importlib.abc.MetaPathFinder):
  """Imports `seqio_tasks`, which registers all tasks, behind seqio."""

  def find_spec(self, name, path=None, target=None):
    if name != 'seqio':
      return None
    sys.meta_path.remove(self)
    spec = importlib.util.find_spec(name)
    if spec is not None:
      execute = spec.loader.exec_module

      def exec_module(module):
        execute(module)
        importlib.import_module(SEQIO_TASKS)

      spec.loader.exec_module = exec_module
    return spec


def watch_for_seqio() -> None:
  """Registers all tasks with seqio: now, or when seqio is imported."""
  if 'seqio' in sys.modules:
    importlib.import_module(SEQIO_TASKS)
  elif not any(isinstance(f, _SeqioFinder) for f in sys.meta_path):
    sys.meta_path.insert(0, _SeqioFinder())


def get_seqio_tasks():
  """Returns the module `seqio_tasks`; None where seqio is not imported."""
  return sys.modules.get(SEQIO_TASKS)
