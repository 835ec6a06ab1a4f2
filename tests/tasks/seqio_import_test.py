"""seqio has the tasks, whenever it is imported."""

import subprocess
import sys

import pytest

from atm_tasks.pretraining import seqio_import


@pytest.mark.processes
def test_seqio_gets_the_tasks_when_it_is_imported():
  code = (
    'import sys, atm_tasks; from atm.data import task_registry; '
    'ours = [t.name for t in task_registry.list_tasks("udhr", "train")]; '
    'assert not {"tensorflow", "seqio", "jax"} & sys.modules.keys(); '
    'import seqio; '
    'theirs = [t.name for t in seqio.get_mixture_or_task("udhr").tasks]; '
    'assert ours == theirs and len(ours) == 24'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True)
  assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_where_seqio_is_imported_its_tasks_are():
  import seqio  # noqa: F401

  from atm_tasks.pretraining import seqio_tasks

  seqio_import.watch_for_seqio()
  assert seqio_import.get_seqio_tasks() is seqio_tasks
  assert not [f for f in sys.meta_path if type(f).__name__ == '_SeqioFinder']
