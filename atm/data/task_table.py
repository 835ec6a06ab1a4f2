"""Tasks and mixtures by name, as rows are made of them: without seqio.

A task is what a seqio task is to `atm.data`: a source of text, and the steps
that make ids of it. Who registers tasks here registers them with seqio, too, as
soon as that is imported, see `atm_tasks.pretraining.seqio_import`.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence


class CachePlaceholder:
  """Step between what is done once and what is done for each example."""


@dataclasses.dataclass(eq=False)
class TextTask:
  """Source of text and the steps that make ids of it."""

  name: str
  source: object
  preprocessors: list

  @property
  def splits(self) -> Sequence[str]:
    return self.source.splits


@dataclasses.dataclass(eq=False)
class TextMixture:
  """Tasks with functions of their rates."""

  name: str
  rates: dict[str, Callable[[TextTask], float]]

  @property
  def tasks(self) -> list[TextTask]:
    """The tasks by name, in the order that seqio gives them."""
    return [TASKS[name] for name in sorted(self.rates)]

  def get_rate(self, task: TextTask) -> float:
    return float(self.rates[task.name](task))


TASKS: dict[str, TextTask] = {}
MIXTURES: dict[str, TextMixture] = {}


def get_registries() -> tuple[dict, dict]:
  """Returns (mixtures, tasks) by name: seqio's where that is imported."""
  # A task of no one else can be there without it: others import it.
  seqio = sys.modules.get('seqio')
  if not hasattr(seqio, 'TaskRegistry'):
    return MIXTURES, TASKS
  return tuple(
    {name: registry.get(name) for name in registry.names()}
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry)
  )


def get_task(name: str):
  """Returns a task by its name; KeyError without one."""
  return get_registries()[1][name]


def is_task(provider) -> bool:
  """Tells a task from a mixture."""
  return hasattr(provider, 'preprocessors')


def list_subtasks(provider) -> list:
  """Returns the tasks of a mixture, or the task itself."""
  return [provider] if is_task(provider) else provider.tasks


def is_placeholder(step) -> bool:
  """Tells whether a preprocessor is the place of a cache, ours or seqio's."""
  seqio = sys.modules.get('seqio')
  known = getattr(seqio, 'CacheDatasetPlaceholder', CachePlaceholder)
  return isinstance(step, CachePlaceholder | known)
