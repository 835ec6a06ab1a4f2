"""Few-shot scores of a model while it trains."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from atm.data.vocabulary import Vocabulary
from atm.evals import metrics, predict, scoring
from atm.evals.model_tasks import fit_tasks
from atm.evals.task import MissingData, Task
from atm.inference import api
from atm.messages import check_arguments, check_count, check_seed
from atm.model.config import ModelConfig
from atm.parallel.sharding import Rules


def check_tasks(tasks: Sequence[Task]) -> None:
  """Checks what asking tasks needs, before a run's rows are built.

  Raises:
    ValueError: none of the tasks' data is there, or a library is missing.
  """
  missing = []
  for task in tasks:
    scoring.resolve_metrics(task)
    try:
      task.make_questions(None)
    except MissingData as e:
      missing.append(str(e).partition('\n')[0])
  if len(missing) == len(tasks):
    raise ValueError(
      'none of TASKS has its data' + ''.join(f': {x}' for x in missing[:1])
    )


class FewShotEvaluator:
  """Answers the same sample of questions at every step it is called for."""

  @check_arguments(
    config=None,  # a trainer's, no setting
    rules=None,
    limit=partial(check_count, 'LIMIT', optional=True),
    seed=partial(check_seed, 'SEED'),
    batch_size=partial(check_count, 'suite.Asker.batch_size'),
  )
  def __init__(
    self,
    config: ModelConfig,
    vocabulary: Vocabulary,
    mesh,
    rules: Rules,
    say: Callable[[str], None],
    make_tasks: Callable[[], Sequence[Task]],
    limit: int = 32,
    seed: int = 0,
    batch_size: int = 32,
  ):
    """Reads the questions.

    Args:
      config, vocabulary, mesh, rules: of the model.
      say: prints a line.
      make_tasks, limit, seed, batch_size: see `runner.SuiteEvaluation`.

    Raises:
      ValueError: none of the tasks' data is there, or a library is missing.
    """
    self.model = api.Model(config, {}, vocabulary, mesh, rules, 0)
    self.batch_size, self.requests = batch_size, []
    form = vocabulary and vocabulary.input_format
    for task in fit_tasks(make_tasks(), form)[0]:
      (metric, *_), _ = scoring.resolve_metrics(task)
      try:
        questions = task.make_questions(vocabulary)
      except MissingData as e:
        say(f'{task.name} is not asked: {e}')
        continue
      questions = predict.sample_questions(questions, limit, seed)
      self.requests.append((task, questions, metric))
    if not self.requests:
      raise ValueError('none of TASKS has its data')

  def metric_names(self) -> set[str]:
    """Returns the names of what asking returns."""
    tasks = [task for task, _, _ in self.requests]
    names = {task.set for task in tasks}
    names |= {f'{task.set}/{task.name}' for task in tasks}
    return {f'few_shot/{name}' for name in names}

  def __call__(self, params: dict, step: int) -> dict[str, float]:
    """Returns each task's main metric, `few_shot/SET/TASK`, and sets' means."""
    model = dataclasses.replace(self.model, params=params, step=step)
    row: dict[str, float] = {}
    sets: dict[str, list[float]] = {}
    for task, questions, name in self.requests:
      rows, _ = predict.predict(model, task, questions, self.batch_size)
      counts = scoring.compute_statistics(
        name, task, questions, rows, model.vocabulary
      )
      value = float(metrics.get_metric(name).total(counts.sum(0)))
      row[f'few_shot/{task.set}/{task.name}'] = value
      sets.setdefault(task.set, []).append(value)
    means = {f'few_shot/{k}': float(np.mean(v)) for k, v in sets.items()}
    return means | row
