"""Looks up tasks and mixtures, and what rows of theirs depend on.

They are seqio's where seqio is imported, and `task_table`'s, the same, else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator

from atm import messages
from atm.data import objectives, task_table

# Tasks that are registered only where a setting names their files.
SETTINGS_OF_TASKS = {
  'text': 'TEXT_DIR',
  'text_ul2': 'TEXT_DIR',
  'pairs': 'PAIRS, or CACHE_DIR of rows of them,',
}


def find_task(name: str):
  """Returns a task or mixture by name; a ValueError names the nearest."""
  registries = task_table.get_registries()
  for registry in registries:
    if name in registry:
      return registry[name]
  hint = messages.did_you_mean(name, [*itertools.chain(*registries)])
  if name in SETTINGS_OF_TASKS:
    hint = f' Set {SETTINGS_OF_TASKS[name]} to register it.'
  raise ValueError(
    f'MIXTURE_OR_TASK_NAME = {name!r}: no such seqio task or mixture.{hint}'
  )


def list_tasks(name: str, split: str) -> list:
  """Returns the tasks of a task or mixture that have the split."""
  tasks = task_table.list_subtasks(find_task(name))
  return [task for task in tasks if split in task.splits]


def get_apply(task):
  """Returns the `ApplyObjective` preprocessor of a task, or None."""
  applies = (step for step in task.preprocessors if hasattr(step, 'objective'))
  return next(applies, None)


def get_labels(task):
  """Returns the preprocessor that has a task's language, or None.

  An `ApplyObjective`, or what frames pairs: both have `language`, `source`,
  `form` and `measured`.
  """
  steps = (step for step in task.preprocessors if hasattr(step, 'language'))
  return next(steps, None)


def frames_pairs(task) -> bool:
  """Tells whether all that a task does is to frame pairs of texts."""
  return [hasattr(step, 'pair') for step in task.preprocessors] == [True]


def needs_markers(name: str) -> bool:
  """Tells whether a task or mixture has denoising or CLM: they need markers."""
  return any(map(get_apply, task_table.list_subtasks(find_task(name))))


def get_objective(task):
  """Returns a task's objective; `Pairs` if it has inputs and targets."""
  apply = get_apply(task)
  return apply.objective if apply else objectives.Pairs()


def check_held_out(name: str) -> None:
  """Raises ValueError where a task or mixture has no text to hold out."""
  # Text that lies in a folder or a file; a split stored apart is there.
  sources = {id(t.source): t.source for t in list_tasks(name, 'validation')}
  holds = (getattr(s, 'holds_out', lambda: True) for s in sources.values())
  if sources and not any(hold() for hold in holds):
    raise ValueError(describe_too_few(name))


def describe_too_few(name: str) -> str:
  """Returns why a task or mixture has no `validation` split, and a remedy."""
  if name == 'pairs':
    return (
      "'pairs' has nothing to hold out: expected at least 2 different inputs, "
      'or a folder with train.jsonl and validation.jsonl'
    )
  return (
    f'{name!r} has no document to hold out, to measure the loss on: expected '
    'at least 2 different documents of a language, such as lines of LANG.txt, '
    'and HELD_OUT above 0'
  )


def read_texts(name: str, split: str = 'train') -> Iterator[tuple[str, str]]:
  """Yields (language, text) of a task or of all tasks of a mixture.

  Raises ValueError where text is bad, or a task has none to train on.
  """
  tasks = {}
  # The forms and objectives of one text share its source, which is read once.
  for task in list_tasks(name, split):
    tasks.setdefault(id(task.source), task)
  for task in tasks.values():
    apply = get_apply(task)
    language, empty = apply.language if apply else 'all', True
    with shorten_tf_errors(task.name):
      for text in read_source(task.source, split):
        empty = False
        yield language, text
    if empty and split == 'train':
      raise ValueError(f'no text in {language!r}, of task {task.name!r}')


def read_source(source, split: str) -> Iterator[str]:
  """Yields the texts of a seqio source, without tf.data where it can."""
  if hasattr(source, 'texts'):
    for shard in range(len(source.list_shards(split))):
      yield from source.texts(split, shard)
    return
  dataset = source.get_dataset(split, shuffle=False)
  if 'text' not in (names := sorted(dataset.element_spec)):
    raise ValueError(f'expected examples with `text`; got {names}')
  for example in dataset.as_numpy_iterator():
    yield example['text'].decode('utf-8')


@contextlib.contextmanager
def shorten_tf_errors(task: str):
  """Turns an error raised inside tf.data into a ValueError of its last line."""
  try:
    yield
  except Exception as e:
    if 'tensorflow' not in (type(e).__module__ or ''):
      raise
    lines = re.findall(r'^\w*Error: (.*)$', str(e), re.M)
    message = lines[-1] if lines else str(e)
    raise ValueError(f'reading task {task!r}: {message}') from e


def check_lengths(name: str, lengths, optional=False) -> dict[str, int] | None:
  """Returns {'inputs': S, 'targets': T}, whole numbers of at least 8."""
  if optional and lengths is None:
    return None
  sides = 'inputs', 'targets'
  if not isinstance(lengths, dict) or {*lengths} != {*sides}:
    raise ValueError(
      f'{name} = {messages.quote(lengths)}: expected '
      "{'inputs': n, 'targets': m}, whole numbers of at least 8"
    )
  return {
    side: messages.check_number(
      f'{name}[{side!r}]', lengths[side], 8, messages.MOST_INT32
    )
    for side in sides
  }


def check_task_lengths(lengths) -> dict[str, int] | None:
  """Returns what a task's examples are cut to; one side may be left out."""
  if lengths is None:
    return None
  if not isinstance(lengths, dict):
    raise ValueError(
      f'TASK_FEATURE_LENGTHS = {messages.quote(lengths)}: expected '
      "{'inputs': n, 'targets': m}, or None"
    )
  for side in lengths:
    messages.check_choice(
      'a side of TASK_FEATURE_LENGTHS', side, ('inputs', 'targets')
    )
  return {
    side: messages.check_count(f'TASK_FEATURE_LENGTHS[{side!r}]', length)
    for side, length in lengths.items()
  }


@dataclasses.dataclass(frozen=True)
class Lengths:
  """TASK_FEATURE_LENGTHS: encoder length S, decoder length T, in tokens."""

  inputs: int
  targets: int

  @classmethod
  def of(cls, lengths: dict[str, int]) -> Lengths:
    """Raises ValueError unless `inputs` and `targets`, of at least 8 tokens."""
    return cls(**check_lengths('TASK_FEATURE_LENGTHS', lengths))

  @classmethod
  def of_model(cls, model_config) -> Lengths:
    """Returns the longest that a model reads and writes, its positions.

    Half of them each where one stack has both.
    """
    longest = model_config.positions // (1 if model_config.has_encoder else 2)
    return cls(longest, longest)

  def as_setting(self) -> dict[str, int]:
    """Returns TASK_FEATURE_LENGTHS, as `of` takes it."""
    return dataclasses.asdict(self)

  @property
  def both(self) -> tuple[int, int]:
    return self.inputs, self.targets


def get_rows_folder(directory: str, task: str, split: str) -> str:
  """Returns the folder of a task's rows."""
  return f'{directory.rstrip("/")}/{task}-{split}'


def get_provenance(
  task, split: str, vocabulary_sha256: str, lengths: Lengths, passes: int | None
) -> dict:
  """Returns what a task's rows depend on besides its text."""
  # A manifest keeps these facts, and rows of others are refused: neither their
  # names nor the objectives' repr() may change.
  facts = {
    'task': task.name,
    'split': split,
    'objective': repr(get_objective(task)),
    'lengths': list(lengths.both),
    'vocabulary': vocabulary_sha256,
  }
  if passes is not None:  # else any will do
    facts['passes'] = passes
  for part in (task.source, *task.preprocessors):
    facts |= getattr(part, 'made_from', {})
  return facts
