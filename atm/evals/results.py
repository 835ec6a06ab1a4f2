"""Reads and writes results.json, all that an evaluation found."""

import json
import os
from collections.abc import Mapping
from typing import Any

from atm import fileio, storage
from atm.evals import metrics
from atm.fileio import Finite
from atm.messages import quote
from atm.parallel import distributed

RESULTS_FILE, PREDICTIONS = 'results.json', 'predictions'

# Forms of what is read, see `fileio.check_json`.
_TEXTS = ('name', 'set', 'language', 'kind', 'mode', 'normalize', 'source')
_SCORE = dict.fromkeys(('value', 'low', 'high'), (Finite, None))
_ANSWER = {'id': str, 'prompt_hash': str, 'group': str}
TASK = {
  **dict.fromkeys((*_TEXTS, 'prompt_hash'), str),
  **dict.fromkeys(('shots', 'questions', 'of', 'cut?'), int),
  'source_language': (str, None),
  'chance': (Finite, None),
  'asked?': str,
  'notes?': [str],
  'scores': {str: _SCORE},
  'statistics': {str: [[Finite]]},
  'predictions': [{**_ANSWER, 'answer': object, 'truth': object}],
}
RESULTS = {
  **dict.fromkeys(('suite', 'model_dir', 'config'), str),
  **dict.fromkeys(('step', 'parameters'), int),
  'seconds': Finite,
  'versions': {str: str},
  'settings': dict,
  'tasks': [TASK],
  'missing': [{'name': str, 'why': str, 'where': str}],
}
_LINE = {**_ANSWER, 'shown?': (dict, None)}
CHOSEN = {
  **_LINE,
  'truth': (int, {'candidates': [str], 'answers': [str]}),
  'answer': int,
  'pairs': [[str]],
  'log_probabilities': [float],
  'tokens': [int],
}
GENERATED = {
  **_LINE,
  'truth': (str, [str]),
  'answer': str,
  'prompt': (str, None),
  'output': (str, None),
  'pairs': [[str]],
}


def read_results(folder: str) -> dict[str, Any]:
  """Reads results.json of a folder; raises FileNotFoundError without it."""
  path = os.path.join(folder, RESULTS_FILE)
  if not storage.exists(path):
    raise FileNotFoundError(
      f'folder = {folder!r}: expected a folder with {RESULTS_FILE}, which '
      '`atm eval` writes'
    )
  results = fileio.read_json(path)
  fileio.check_json(results, RESULTS, path)
  # Those of before there were seals have none.
  results = fileio.unseal_json(results, path, unsealed=results)
  for i, task in enumerate(results['tasks']):
    _check_task(task, f'{path}: tasks[{i}]')
  return results


def _check_task(task: dict[str, Any], where: str) -> None:
  """Raises ValueError where a task's entries contradict each other."""
  if not task['scores']:
    raise ValueError(f'{where} has no scores')
  if os.path.basename(task['name']) != task['name']:
    raise ValueError(f'{where}: name = {quote(task["name"])}: expected no path')
  groups = metrics.group_indices([p['group'] for p in task['predictions']])
  count = max(groups, default=-1) + 1
  for name in {**task['scores'], **task['statistics']}:
    try:
      metrics.get_metric(name)
    except ValueError as e:
      raise ValueError(f'{where}: {e}') from e
    rows = task['statistics'].get(name, [])
    if len(rows) != count or len({len(row) for row in rows}) != 1:
      raise ValueError(
        f'{where}: statistics.{quote(name)} has {len(rows):,} rows: expected '
        f'{count:,} of one length'
      )


def read_predictions(folder: str, task: Mapping[str, Any]) -> list[dict]:
  """Returns the lines of predictions/TASK.jsonl, [] where there is no file.

  Args:
    folder: as in `read_results`.
    task: an entry of its tasks.

  Raises:
    ValueError: a line is not as `atm eval` writes it, or there are others than
      the task has.
  """
  path = os.path.join(folder, PREDICTIONS, f'{task["name"]}.jsonl')
  if not storage.exists(path):
    return []
  form = CHOSEN if task['kind'] == 'score' else GENERATED
  lines = list(fileio.read_own_lines(path, form))
  if len(lines) != len(task['predictions']):
    raise ValueError(
      f'{path} has {len(lines):,} lines: expected '
      f'{len(task["predictions"]):,}, as {RESULTS_FILE} has'
    )
  for number, line in enumerate(lines, 1):
    if problem := _find_problem(line, task['kind']):
      raise ValueError(f'{path}, line {number}: {problem}')
  return lines


def _find_problem(line: Mapping[str, Any], kind: str) -> str | None:
  """Tells how the entries of an answer contradict each other, or None."""
  if kind != 'score':
    return 'expected no pairs' if line['pairs'] else None
  if any(len(pair) != 2 for pair in line['pairs']):
    return 'expected pairs of two texts'
  counts = {len(line[key]) for key in ('pairs', 'log_probabilities', 'tokens')}
  if len(counts) > 1 or 0 in counts:
    return 'expected as many log_probabilities and tokens as pairs'
  return None


def write_results(folder: str, results: dict[str, Any]) -> None:
  """Writes results.json; on process 0 only."""
  if distributed.is_main_process():
    storage.make_folder(folder)
    text = json.dumps(fileio.seal_json(results), ensure_ascii=False)
    fileio.write_atomically(os.path.join(folder, RESULTS_FILE), text)
