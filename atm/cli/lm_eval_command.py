"""`atm lm_eval`: runs tasks of lm-evaluation-harness, imported late."""

import dataclasses
import difflib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from atm import fileio, storage
from atm.inference import api, prompts
from atm.messages import (
  check_choice,
  check_count,
  check_index,
  check_number,
  check_path,
  check_texts,
  missing_extra,
)
from atm.parallel import distributed

# Resamplings behind the standard errors of medians, F1 and BLEU. The harness's
# 100,000 take its pool of forked processes, and a fork beside JAX's threads may
# hang.
RESAMPLINGS = 1000


@dataclasses.dataclass
class LmEvalCommand(api.ModelSource):
  """Runs tasks, prints the harness's table and writes its results as JSON.

  Attributes:
    tasks: names of tasks and groups, or YAML files.
    output: default: MODEL_DIR/lm_eval/TIME.json, or in ADAPTER.
    mode, newline: see `lm_eval.AtmLM`.
    num_fewshot: examples in front of each question; None: as tasks say.
    limit: of examples a task; below 1 a share of them; None: all.
    batch_size: requests at a time.
    include_path: a folder of YAML files, more tasks.
    log_samples: write every request and answer, too.
    overwrite: replace an output that is there.
    say: prints a text.
  """

  tasks: Sequence[str] = ()
  output: str | None = None
  mode: str | None = None
  newline: str = '<br>'
  num_fewshot: int | None = None
  limit: float | None = None
  batch_size: int = 32
  include_path: str | None = None
  log_samples: bool = False
  overwrite: bool = False
  say: Callable[[str], None] = print

  checks = api.ModelSource.checks | {
    'tasks': partial(check_texts, 'TASKS', empty=False, single=True),
    'output': partial(check_path, 'OUTPUT', optional=True),
    'mode': partial(check_choice, 'MODE', known=prompts.MODES, optional=True),
    'num_fewshot': partial(check_index, 'NUM_FEWSHOT', optional=True),
    'limit': partial(
      check_number, 'LIMIT', above=0, whole=False, optional=True
    ),
    'batch_size': partial(check_count, 'BATCH_SIZE'),
    'include_path': partial(check_path, 'INCLUDE_PATH', optional=True),
  }

  def run(self) -> str:
    """Returns the path of the results.

    Raises:
      FileNotFoundError: there is no model.
      ValueError: the harness is not installed, or has no such task.
    """
    adapter = _import_adapter()
    from lm_eval import simple_evaluate
    from lm_eval.utils import handle_non_serializable, make_table

    tasks = list(self.tasks)
    manager = _find_tasks(tasks, self.include_path)
    if self.output is not None and distributed.is_main_process():
      storage.make_folder(os.path.dirname(self.output) or os.curdir)
      is_ours = lambda line: line.startswith(b'{')
      fileio.check_output(
        'OUTPUT', self.output, is_ours=is_ours, overwrite=self.overwrite
      )
    model = self.load()
    os.environ['DISABLE_MULTIPROC'] = '1'  # of BLEU's resamplings, see above
    results = simple_evaluate(
      adapter.AtmLM(model, self.mode, self.newline, self.batch_size),
      model_args={'model_dir': self.title},  # for the record
      tasks=tasks,
      num_fewshot=self.num_fewshot,
      batch_size=self.batch_size,
      limit=self.limit,
      bootstrap_iters=RESAMPLINGS,
      log_samples=self.log_samples,
      task_manager=manager,
    )
    stamp = time.strftime('%Y-%m-%dT%H-%M-%S')
    owner = self.adapter or self.model_dir
    path = self.output or f'{owner}/lm_eval/{stamp}.json'
    if distributed.is_main_process():
      storage.make_folder(os.path.dirname(storage.absolute(path)))
      with fileio.replacing(path) as f:
        json.dump(results, f, indent=1, ensure_ascii=False,
                  default=handle_non_serializable)  # fmt: skip
      self.say(make_table(results))
      if results.get('groups'):
        self.say(make_table(results, 'groups'))
      self.say(f'wrote {path}')
    return path


def _import_adapter():
  """Imports atm.lm_eval and the harness; raises ValueError without it."""
  # With this folder on the path, as `python atm/t5x.py` puts it there,
  # lm_eval.py would be the harness, and evals/ in place of what it imports.
  here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  sys.path[:] = [p for p in sys.path if os.path.abspath(p) != here]
  try:
    from atm import lm_eval
  except ModuleNotFoundError as e:
    raise ValueError(
      missing_extra(
        f'no module {e.name!r}: lm_eval needs lm-evaluation-harness', 'eval'
      )
    ) from e
  return lm_eval


def _find_tasks(names: Sequence[str], include_path: str | None):
  """Returns the harness's index of tasks, with all of `names` in it."""
  from lm_eval.tasks import TaskManager

  # The harness opens its files by path.
  folder = None if include_path is None else storage.fetch(include_path)
  manager = TaskManager(include_path=folder)
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
