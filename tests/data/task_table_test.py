"""Tasks without seqio are those that seqio has."""

import sys

import pytest

import atm_tasks
from atm.data import task_registry, task_table
from atm_tasks.pretraining import tasks


def test_tasks_are_the_same_with_seqio_and_without(words, monkeypatch):
  import seqio

  atm_tasks.configure(vocabulary=words.path)
  theirs = seqio.get_mixture_or_task('udhr')
  assert task_registry.find_task('udhr') is theirs
  monkeypatch.setitem(sys.modules, 'seqio', None)
  ours = task_registry.find_task('udhr')
  assert isinstance(ours, task_table.TextMixture)
  for a, b in zip(ours.tasks, theirs.tasks, strict=True):
    assert a.name == b.name and a.source is b.source
    assert ours.get_rate(a) == theirs.get_rate(b) > 0
    facts = 'train', words.sha256, task_registry.Lengths(64, 64), 1
    provenance = task_registry.get_provenance(a, *facts)
    assert provenance == task_registry.get_provenance(b, *facts)
    steps = [*map(task_table.is_placeholder, a.preprocessors)]
    assert steps == [False, False, True, False]
  one = ours.tasks[0]
  assert task_table.get_task(one.name) is one
  assert task_table.list_subtasks(one) == [one] and task_table.is_task(one)
  assert not task_table.is_task(ours)
  assert task_registry.list_tasks('udhr', 'validation') == ours.tasks
  assert task_registry.list_tasks('udhr', 'test') == []


def test_a_name_is_free_again_in_both(monkeypatch):
  import seqio

  source = tasks.DeclarationSource('en')
  tasks.register_task('mine', source, [])
  tasks.add_mixture('ours', {'mine': lambda task: 1})
  assert seqio.get_mixture_or_task('ours').tasks[0].source is source
  for name in ('mine', 'ours'):
    tasks.unregister(name)
  for hidden in (False, True):
    if hidden:
      monkeypatch.setitem(sys.modules, 'seqio', None)
    for name in ('mine', 'ours'):
      with pytest.raises(ValueError, match='no such'):
        task_registry.find_task(name)
