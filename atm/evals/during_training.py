"""Runs a suite of questions during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from atm.data.vocabulary import Vocabulary
from atm.evals import metrics, predict, scoring
from atm.evals.predict import sample_questions
from atm.evals.task import MissingData, Task
from atm.inference import api
from atm.model.config import Config
from atm.parallel.sharding import Rules

# --- While a model trains


class FewShotEvaluator:
  """Asks samples of tasks of a model that trains."""

  def __init__(
    self,
    config: Config,
    vocabulary: Vocabulary,
    mesh,
    rules: Rules,
    say: Callable[[str], None],
    make_tasks: Callable[[], Sequence[Task]],
    limit: int = 32,
    seed: int = 0,
    batch_size: int = 32,
  ):
    """Reads what will be asked: the same in every step.

    Args:
      config, vocabulary, mesh, rules: of the model.
      say: prints a line.
      make_tasks, limit, seed, batch_size: see `evaluate`.

    Raises:
      ValueError: none of the tasks' data is there, or see `usable`.
    """
    self.model = api.Model(config, {}, vocabulary, mesh, rules, 0)
    self.batch_size, self.asked = batch_size, []
    for task in make_tasks():
      (main, *_), _ = scoring.resolve_metrics(task)
      try:
        asked = sample_questions(task.ask(vocabulary), limit, seed)
      except MissingData as e:
        say(f'{task.name} is not asked: {e}')
        continue
      self.asked.append((task, asked, main))
    if not self.asked:
      raise ValueError('none of TASKS has its data')

  def __call__(self, params: dict, step: int) -> dict[str, float]:
    """`few_shot/SET` is the mean over tasks of their main metric, and
    `few_shot/SET/TASK` that of each."""
    model = dataclasses.replace(self.model, params=params, step=step)
    row: dict[str, float] = {}
    sets: dict[str, list[float]] = {}
    for task, asked, name in self.asked:
      numbers = range(len(asked))
      found, _ = predict.predict(model, task, asked, numbers, self.batch_size)
      answers = [found[i]['answer'] for i in range(len(asked))]
      made = scoring.compute_statistics(
        name, task, asked, answers, model.vocabulary
      )
      value = float(metrics.get_metric(name).total(made.sum(0)))
      row[f'few_shot/{task.set}/{task.name}'] = value
      sets.setdefault(task.set, []).append(value)
    means = {f'few_shot/{k}': float(np.mean(v)) for k, v in sets.items()}
    return means | row
