"""Condenses training runs, in arms, to what their comparison is drawn from.

A run is one line of JSON: its sizes, FLOPs, tokens and seconds, held-out losses
by step, and which questions of which evaluation it answered right.
"""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from atm import fileio, storage
from atm.evals import results
from atm.fileio import Finite
from atm.messages import quote
from atm.model.config import ModelConfig
from atm.pages import card_facts, train_page
from atm.pages.train_charts import EVAL, UNIGRAM
from atm.train import goodput

EVALUATION = {
  **dict.fromkeys(('task', 'set', 'mode', 'metric', 'asked', 'right'), str),
  **dict.fromkeys(('step', 'shots', 'questions'), int),
  'flops': Finite,
  'chance': (Finite, None),
  'oracle?': Finite,  # % that prompts allow to answer, where it is known
}
RUN = {
  **dict.fromkeys(('arm', 'run'), str),
  **dict.fromkeys(('seed', 'parameters', 'batch_size'), int),
  'lengths': {str: int},
  'last_step': (int, None),
  'config': dict,
  'seconds': {str: Finite},
  'steps': [int],
  'flops': [Finite],
  'tokens': [Finite],
  'losses': {str: [Finite]},
  'unigram': {str: Finite},
  'evaluations': [EVALUATION],
}


def read_arms(arms: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
  """Condenses the runs of all arms.

  Args:
    arms: name -> folders of training runs. Evaluations lie in a run's `eval`.

  Raises:
    FileNotFoundError: a folder has no run with a checkpoint.
    ValueError: a run has no held-out loss, or two equal evaluations.
  """
  return [
    _condense_run(name, folder)
    for name, folders in arms.items()
    for folder in folders
  ]


def _condense_run(arm: str, folder: str) -> dict[str, Any]:
  """Returns what is kept of a run, see RUN."""
  records = card_facts.read_run_records(folder)
  at = lambda step: dataclasses.replace(
    records, step=step, rows=[r for r in records.rows if r['step'] <= step]
  )
  by_step = {
    row['step']: row
    for row in records.rows
    if any(key.startswith(EVAL) for key in row)
  }
  if not by_step:
    raise ValueError(f'{folder} has no held-out loss: expected EVAL_EVERY > 0')
  steps = sorted(by_step)
  select = lambda prefix: {
    key.removeprefix(prefix): [_round(by_step[step][key]) for step in steps]
    for key in by_step[steps[0]]
    if key.startswith(prefix)
    and all(by_step[step].get(key) is not None for step in steps)
  }
  defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
  seconds = goodput.sum_by_kind(goodput.read_goodput(folder))
  return {
    'arm': arm,
    'run': os.path.basename(os.path.normpath(folder)),
    'seed': records.macros.get('SEED') or 0,
    'parameters': records.count_parameters(),
    'batch_size': records.batch_size,
    'lengths': dict(records.meta['lengths']),
    'last_step': train_page.find_last_step(train_page.read_config_text(folder)),
    'config': {
      key: value
      for key, value in dataclasses.asdict(records.config).items()
      if value != defaults[key]
    },
    'seconds': {kind: round(x, 1) for kind, x in seconds.items()},
    'steps': steps,
    'flops': [at(step).compute_flops() for step in steps],
    'tokens': [at(step).sum_tokens() for step in steps],
    'losses': select(EVAL),
    'unigram': {
      key.removeprefix(UNIGRAM): _round(value)
      for row in reversed(records.rows)  # of the first that has any
      for key, value in row.items()
      if key.startswith(UNIGRAM)
    },
    'evaluations': _condense_evaluations(folder, at),
  }


def _round(value: float) -> float:
  """Rounds to six digits, of which a file is small."""
  return float(f'{value:.6g}')


def _condense_evaluations(folder: str, at) -> list[dict[str, Any]]:
  """Returns the answers of all evaluations below a run's folder `eval`."""
  top, found = os.path.join(folder, 'eval'), {}
  for path, _, files in storage.walk(top) if storage.exists(top) else ():
    if results.RESULTS_FILE not in files:
      continue
    read = results.read_results(path)
    for task in read['tasks']:
      entry = _condense_task(task)
      if entry is None:
        continue
      entry |= {'step': read['step'], 'flops': at(read['step']).compute_flops()}
      other, _ = found.setdefault(_key(entry), (path, entry))
      if other != path:
        raise ValueError(
          f'{other} and {path} both have {task["name"]} with '
          f'{task["shots"]} shots at step {read["step"]}: expected one of them'
        )
  order = lambda pair: (pair[1]['step'], pair[1]['task'], pair[1]['shots'])
  return [entry for _, entry in sorted(found.values(), key=order)]


def _key(entry: Mapping[str, Any]) -> tuple:
  return tuple(entry[k] for k in ('task', 'mode', 'shots', 'step'))


def _condense_task(task: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns a task's answers, None where they are not right or wrong each."""
  metric = next(iter(task['scores']))
  rows = np.array(task['statistics'].get(metric, ()), np.float64)
  if rows.ndim != 2 or rows.shape[1] != 2 or not len(rows):
    return None
  if not np.isin(rows[:, 0], (0, 100)).all() or (rows[:, 1] != 1).any():
    return None
  asked = fileio.hash_json(
    [[line['group'], line['id'], line['truth']] for line in task['predictions']]
  )
  return {
    'task': task['name'],
    'set': task['set'],
    'mode': task['mode'],
    'shots': task['shots'],
    'metric': metric,
    'chance': task['chance'],
    'asked': asked[:16],
    'questions': len(rows),
    'right': np.packbits(rows[:, 0] > 0).tobytes().hex(),
  }


def unpack_right(entry: Mapping[str, Any]) -> np.ndarray:
  """Returns 100 for each question that was answered right, else 0."""
  packed = np.frombuffer(bytes.fromhex(entry['right']), np.uint8)
  return 100.0 * np.unpackbits(packed)[: entry['questions']]


# --- The file


def write_arm_file(path: str, runs: Iterable[Mapping[str, Any]]) -> None:
  """Writes a run a line."""
  text = ''.join(json.dumps(run, sort_keys=True) + '\n' for run in runs)
  fileio.write_atomically(path, text)


def read_arm_file(path: str) -> list[dict[str, Any]]:
  """Reads what `write_arm_file` wrote.

  Raises:
    FileNotFoundError: there is no file.
    ValueError: it is not as `atm compare` writes it.
  """
  if not storage.exists(path):
    raise FileNotFoundError(
      f'RUNS = {quote(path)}: not there: expected a file that `atm compare` '
      'wrote beside its page'
    )
  runs = list(fileio.read_own_lines(path, RUN))
  if not runs:
    raise ValueError(f'{path} has no runs: expected one a line')
  for number, run in enumerate(runs, 1):
    _check_run(run, f'{path}, line {number}')
  return runs


def _check_run(run: Mapping[str, Any], where: str) -> None:
  """Raises ValueError where entries of a run contradict each other."""
  columns = {'flops': run['flops'], 'tokens': run['tokens'], **run['losses']}
  for name, column in columns.items():
    if len(column) != len(run['steps']) or not column:
      raise ValueError(
        f'{where}: {quote(name)} has {len(column):,} values: expected one or '
        f'more, as many as steps, {len(run["steps"]):,}'
      )
  for name in ('steps', 'flops'):
    if any(a >= b for a, b in itertools.pairwise(run[name])):
      raise ValueError(f'{where}: {name}: expected ascending values')
  for flops in run['flops'] + [e['flops'] for e in run['evaluations']]:
    if flops < 0:
      raise ValueError(f'{where}: flops = {flops:g}: expected 0 or more')
  for entry in run['evaluations']:
    digits = 2 * math.ceil(entry['questions'] / 8)
    try:
      known = len(bytes.fromhex(entry['right'])) * 2 == digits > 0
    except ValueError:
      known = False
    if not known:
      raise ValueError(
        f'{where}: {quote(entry["task"])}: right = {quote(entry["right"])}: '
        f'expected {digits} hexadecimal digits'
      )
