"""Sets of pairs that are mixed: their names and paths, weights and rates."""

import re
from collections.abc import Mapping

from atm import storage
from atm.data import task_table
from atm.messages import (
  check_choice,
  check_number,
  check_path,
  quote,
)

PairPaths = str | tuple[str, str]  # a file or folder, or inputs and targets
_NAME = re.compile('[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?')  # of a set
Counts = dict[tuple[str, str] | None, int]  # direction -> pairs


def check_pair_paths(value) -> PairPaths | dict[str, PairPaths] | None:
  """Returns PAIRS; raises ValueError else.

  It is a path, two paths, sets of them by name, or None.
  """
  if not isinstance(value, dict):
    return None if value is None else _check_paths('PAIRS', value)
  _check_names('PAIRS', value, "{'NAME': PATH, ...}")
  found, seen = {}, {}
  for name, paths in value.items():
    if isinstance(paths, int | float):
      raise ValueError(
        f'PAIRS[{quote(name)}] = {quote(paths)}: expected a path; weights are '
        f'set by PAIRS_WEIGHTS = {{{quote(name)}: {quote(paths)}, ...}}'
      )
    found[name] = paths = _check_paths(f'PAIRS[{quote(name)}]', paths)
    if isinstance(paths, str):
      same = storage.absolute(paths).rstrip('/')
    else:
      same = tuple(map(storage.absolute, paths))
    if same in seen:
      raise ValueError(
        f'PAIRS: {quote(seen[same])} and {quote(name)} are both '
        f'{quote(paths)}: leave one out, and give the other the weight of both'
      )
    seen[same] = name
  return found


def check_pair_weights(value) -> dict[str, float] | None:
  """Returns PAIRS_WEIGHTS, of sets by name; raises ValueError else."""
  if value is None:
    return None
  if not isinstance(value, dict):
    raise ValueError(
      f"PAIRS_WEIGHTS = {quote(value)}: expected {{'NAME': weight, ...}} of "
      'the sets of PAIRS, or None'
    )
  _check_names('PAIRS_WEIGHTS', value, "{'NAME': weight, ...}")
  return {
    name: check_number(
      f'PAIRS_WEIGHTS[{quote(name)}]', weight, whole=False, above=0
    )
    for name, weight in value.items()
  }


def check_weighed_sets(weights: Mapping[str, float], sets: Mapping) -> None:
  """Raises ValueError where weights are of sets that are not there."""
  if '' in sets or not sets:
    raise ValueError(
      f'PAIRS_WEIGHTS = {quote(weights)}: expected sets by name, PAIRS = '
      "{'NAME': PATH, ...}, or CACHE_DIR of their rows"
    )
  for name in weights:
    check_choice('a set of PAIRS_WEIGHTS', name, sets)


def check_weighed_all(weights: Mapping[str, float], sets: Mapping) -> None:
  """Raises ValueError where a set has no weight."""
  if missing := [name for name in sets if name not in weights]:
    raise ValueError(
      f'PAIRS_WEIGHTS = {quote(weights)}: no weight of {quote(missing[0])}: '
      'expected one of each set of PAIRS'
    )


def _check_paths(name: str, value) -> PairPaths:
  """Returns a path, or two as a tuple; raises ValueError else."""
  if not isinstance(value, list | tuple):
    return check_path(name, value)
  if len(value) != 2:
    raise ValueError(
      f'{name} = {quote(value)}: expected a file or folder, or two files, of '
      'inputs and of targets'
    )
  return tuple(check_path(f'a path of {name}', path) for path in value)


def _check_names(setting: str, value: Mapping, expected: str) -> None:
  """Raises ValueError unless the keys of a setting can be names of sets."""
  if not value:
    raise ValueError(f'{setting} = {{}}: expected {expected}')
  seen = {}
  for name in value:
    # They become part of names of tasks, folders and metrics.
    fits = isinstance(name, str) and _NAME.fullmatch(name)
    if not fits or name.lower() == 'all':
      raise ValueError(
        f'{setting}: key {quote(name)}: expected {expected}, NAME of letters, '
        "digits and _, such as 'flores', and not 'all'"
      )
    if (other := seen.setdefault(name.lower(), name)) != name:
      raise ValueError(
        f'{setting}: {quote(other)} and {quote(name)} differ in capitals '
        'alone: expected different names'
      )


class PairRates:
  """Rates of tasks of pairs, of which each direction of a set is one.

  A task with n pairs has n ** (1 / T) of the pairs that are read. At
  temperature T = 1 these are its own; more brings rare directions nearer to the
  others (Arivazhagan et al. 2019, as mBART-50 and NLLB are trained). Where sets
  have weights, these are their shares, and T divides each set among its tasks.

  Args:
    temperature: T.
    weights: set -> its weight; None: sets have none.
  """

  def __init__(self, temperature: float, weights: dict[str, float] | None):
    self.temperature, self.weights = temperature, weights
    self._tasks: dict[str, tuple] = {}

  def add(self, name: str, source, frame, counts: Counts) -> None:
    """Adds a task; of `counts` are pairs whose rows were not counted yet."""
    self._tasks[name] = source, frame, counts

  def __call__(self, task: task_table.TextTask) -> float:
    _, frame, _ = self._tasks[task.name]
    if not (share := self._compute_share(task.name)):
      return 0.0
    if frame.measured is None:
      return share
    # A row holds several pairs, more where they are short.
    return share * (frame.measured['rows'] / frame.measured['examples'])

  def _compute_share(self, name: str) -> float:
    """Returns a task's part of the pairs that are read; 1 in all of weights."""
    if self.weights is None:
      return self._count(name) ** (1 / self.temperature)
    frame = self._tasks[name][1]
    data_set = frame.data_set
    own = [k for k, (_, f, _) in self._tasks.items() if f.data_set == data_set]
    weight = self.weights[data_set] / sum(self.weights.values())
    if len(own) == 1 and frame.measured is None:
      return weight  # without counting what is not counted yet
    parts = {k: self._count(k) ** (1 / self.temperature) for k in own}
    if not (total := sum(parts.values())):
      raise ValueError(
        f'PAIRS_WEIGHTS[{quote(data_set)}] = {self.weights[data_set]}: there '
        'are no pairs to train on'
      )
    return weight * (parts[name] / total)

  def _count(self, name: str) -> int:
    """Returns how many pairs a task trains on; reads them if it has to."""
    source, frame, counts = self._tasks[name]
    if frame.measured is not None:
      return frame.measured['examples']
    if frame.direction is None and None not in counts:
      shards = range(len(source.list_shards('train')))
      counts[None] = sum(
        1 for shard in shards for _ in source.texts('train', shard)
      )
    return counts.get(frame.direction, 0)
