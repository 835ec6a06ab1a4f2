"""`atm lm_eval`: runs tasks of lm-evaluation-harness; imports it late."""

from __future__ import annotations

import difflib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence

from atm.inference import api
from atm.parallel import distributed, mesh
from atm.parallel.sharding import Rules

# Resamplings behind the standard errors of medians, F1 and BLEU. The harness's
# 100,000 take its pool of forked processes, and a fork beside JAX's threads may
# hang.
RESAMPLINGS = 1000


def evaluate(
  model_dir: str,
  tasks: Sequence[str],
  output: str | None = None,
  mode: str = 'clm',
  newline: str = '<br>',
  num_fewshot: int | None = None,
  limit: float | None = None,
  batch_size: int = 32,
  include_path: str | None = None,
  log_samples: bool = False,
  at_step: int | None = None,
  weights: str | None = None,
  make_mesh: Callable = mesh.mesh,
  rules: Rules = Rules(),
  say: Callable[[str], None] = print,
) -> str:
  """Runs tasks, prints the harness's table and writes its results as JSON.

  Args:
    model_dir: the trained model's, or a Hugging Face folder.
    tasks: names of tasks and groups, or YAML files.
    output: default: MODEL_DIR/lm_eval/TIME.json.
    mode, newline: see `lm_eval.AtmLM`.
    num_fewshot: examples in front of each question; None: as tasks say.
    limit: of examples a task; below 1 a share of them; None: all.
    batch_size: requests at a time.
    include_path: a folder of YAML files, more tasks.
    log_samples: write every request and answer, too.
    at_step: which checkpoint; None takes the newest.
    weights: 'bfloat16' halves the parameters' memory; None: as they are.
    make_mesh: called without arguments.
    rules: logical to mesh axes.
    say: prints a text.

  Returns:
    The path written.

  Raises:
    FileNotFoundError: there is no model.
    ValueError: the harness is not installed, or has no such task.
  """
  adapter = _adapter()
  from lm_eval import simple_evaluate
  from lm_eval.utils import make_table

  tasks = [tasks] if isinstance(tasks, str) else list(tasks)
  manager = _find(tasks, include_path)
  model = api.load(model_dir, at_step, make_mesh(), rules, weights=weights)
  os.environ['DISABLE_MULTIPROC'] = '1'
  results = simple_evaluate(
    adapter.AtmLM(model, mode, newline, batch_size),
    model_args={'model_dir': model_dir},  # for the record
    tasks=tasks,
    num_fewshot=num_fewshot,
    batch_size=batch_size,
    limit=limit,
    bootstrap_iters=RESAMPLINGS,
    log_samples=log_samples,
    task_manager=manager,
  )
  stamp = time.strftime('%Y-%m-%dT%H-%M-%S')
  output = output or os.path.join(model_dir, 'lm_eval', f'{stamp}.json')
  if distributed.is_first():
    _write(results, output)
    say(make_table(results))
    if results.get('groups'):
      say(make_table(results, 'groups'))
    say(f'wrote {output}')
  return output


def _adapter():
  """atm.lm_eval, and with it the harness.

  Raises:
    ValueError: the harness is not installed.
  """
  # With this folder on the path, as `python atm/t5x.py` puts it there,
  # lm_eval.py would be the harness, and and evals/ in place of what it imports.
  here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  sys.path[:] = [p for p in sys.path if os.path.abspath(p) != here]
  try:
    from atm import lm_eval
  except ModuleNotFoundError as e:
    raise ValueError(
      f'no module {e.name!r}: lm-evaluation-harness comes with '
      "pip install 'atm[eval]'"
    ) from e
  return lm_eval


def _find(names: Sequence[str], include_path: str | None):
  """The harness's index of tasks, which has these.

  Raises:
    ValueError: no names, or one that it has not; says the nearest.
  """
  from lm_eval.tasks import TaskManager

  manager = TaskManager(include_path=include_path)
  if not names:
    raise ValueError('TASKS is empty: expected names of tasks')
  for name in names:
    if name not in manager.all_tasks and not os.path.isfile(name):
      close = difflib.get_close_matches(name, manager.all_tasks, n=1)
      hint = f' Did you mean {close[0]!r}?' if close else ''
      raise ValueError(
        f'TASKS: {name!r} is no task or group of the harness or of '
        f'INCLUDE_PATH, and no YAML file.{hint}'
      )
  return manager


def _write(results: dict, path: str) -> None:
  from lm_eval.utils import handle_non_serializable

  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(path + '.tmp', 'w', encoding='utf-8') as f:
    json.dump(
      results, f, indent=1, ensure_ascii=False, default=handle_non_serializable
    )
  os.replace(path + '.tmp', path)
