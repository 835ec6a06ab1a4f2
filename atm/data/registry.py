"""Looks up seqio tasks and mixtures and what data building needs of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from atm import messages
from atm.data import objectives

SETTINGS_OF_TASKS = {
  'text': 'TEXT_DIR',
  'pairs': 'PAIRS, or CACHE_DIR of rows of them,',
}


def find_task(name: str):
  """The seqio task or mixture of that name.

  Raises:
    ValueError: there is none; suggests the nearest.
  """
  import seqio  # takes seconds: TensorFlow

  known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
  if name not in known:
    raise ValueError(
      f'MIXTURE_OR_TASK_NAME = {name!r}: no such seqio task or mixture.'
      + (
        f' Set {SETTINGS_OF_TASKS[name]} to register it.'
        if name in SETTINGS_OF_TASKS
        else messages.did_you_mean(name, known)
      )
    )
  return seqio.get_mixture_or_task(name)


def get_apply(task):
  """The `Apply` preprocessor of a seqio task, or None."""
  for preprocessor in task.preprocessors:
    if hasattr(preprocessor, 'objective'):
      return preprocessor
  return None


def get_objective(task):
  """A task's objective; `Pairs` where it has inputs and targets of its own."""
  apply = get_apply(task)
  return apply.objective if apply else objectives.Pairs()


def read_texts(name: str, split: str = 'train') -> Iterator[tuple[str, str]]:
  """Pairs (language, text) of a task or of all tasks of a mixture.

  Tasks that share a source (the forms and objectives of one text) are read
  once.
  """
  sources = {}
  for task in list_tasks(name, split):
    sources.setdefault(id(task.source), task)
  for task in sources.values():
    apply = get_apply(task)
    language, empty = apply.language if apply else 'all', True
    with shorten_tf_errors(task.name):
      for text in read_source(task.source, split):
        empty = False
        yield language, text
    if empty and split == 'train':
      raise ValueError(f'no text in {language!r}, of task {task.name!r}')


def read_source(source, split: str) -> Iterator[str]:
  """The texts of a seqio source, without tf.data where it can."""
  if hasattr(source, 'texts'):
    for shard in range(len(source.list_shards(split))):
      yield from source.texts(split, shard)
    return
  dataset = source.get_dataset(split, shuffle=False)
  if 'text' not in dataset.element_spec:
    raise ValueError(
      f'expected examples with `text`; got {sorted(dataset.element_spec)}'
    )
  for example in dataset.as_numpy_iterator():
    yield example['text'].decode('utf-8')


class shorten_tf_errors:
  """Turns an error raised inside tf.data into its last line."""

  def __init__(self, task: str):
    self.task = task

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if error is not None and 'tensorflow' in (kind.__module__ or ''):
      found = re.findall(r'^\w*Error: (.*)$', str(error), re.M)
      message = found[-1] if found else str(error)
      raise ValueError(f'reading task {self.task!r}: {message}') from error


@dataclasses.dataclass(frozen=True)
class Lengths:
  """TASK_FEATURE_LENGTHS: encoder length S, decoder length T, in tokens."""

  inputs: int
  targets: int

  @classmethod
  def of(cls, lengths: dict[str, int]) -> Lengths:
    """Raises ValueError unless exactly `inputs` and `targets`, positive."""
    named = isinstance(lengths, dict) and set(lengths) == {'inputs', 'targets'}
    if not named or any(
      not isinstance(n, int) or n < 8 for n in lengths.values()
    ):
      raise ValueError(
        f'TASK_FEATURE_LENGTHS = {lengths!r}: expected '
        "{'inputs': n, 'targets': m}, whole numbers of at least 8"
      )
    return cls(**lengths)

  @property
  def both(self) -> tuple[int, int]:
    return self.inputs, self.targets


def list_tasks(name: str, split: str) -> list:
  """The tasks of a task or mixture that have the split."""
  import seqio

  return [t for t in seqio.get_subtasks(find_task(name)) if split in t.splits]


def get_rows_folder(directory: str, task: str, split: str) -> str:
  return f'{directory.rstrip("/")}/{task}-{split}'


def get_provenance(task, split: str, vocabulary, lengths: Lengths, passes: int):
  """What a task's rows depend on, besides its text."""
  objective = get_objective(task)
  facts = {
    'task': task.name,
    'split': split,
    'objective': repr(objective),
    'lengths': list(lengths.both),
    'vocabulary': vocabulary.sha256,
  }
  if passes is not None:
    facts['passes'] = passes
  for part in (task.source, *task.preprocessors):
    facts |= getattr(part, 'made_from', {})
  return facts
