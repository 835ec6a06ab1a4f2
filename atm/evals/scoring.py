"""Scores of a task's answers, as results.json has them."""

from collections.abc import Sequence

import numpy as np

from atm.evals import bootstrap, metrics
from atm.evals.predict import hash_json, request_of
from atm.evals.task import MissingData, Question, Task


def compute_statistics(
  name: str, task: Task, questions: Sequence[Question], answers, vocabulary
) -> np.ndarray:
  """Computes the rows [G, M] of a metric, see `metrics.Metric`."""
  truths = [question.truth for question in questions]
  groups = [question.group for question in questions]
  rows = metrics.get_metric(name).rows
  return rows(answers, truths, groups, task.language, vocabulary)


def score_task(
  task: Task, questions: Sequence[Question], rows: Sequence[dict], of: int,
  vocabulary, seed: int,
) -> dict:  # fmt: skip
  """Builds the entry of a task in results.json.

  Args:
    task: what was asked.
    questions: those that were answered.
    rows: what `predict.predict` gave for each.
    of: how many questions the task has.
    vocabulary: the model's, which `spbleu_own` counts pieces of.
    seed: of the bootstraps.
  """
  answers = [row['answer'] for row in rows]
  scores, statistics = {}, {}
  names, notes = resolve_metrics(task)
  for name in names:
    counts = compute_statistics(name, task, questions, answers, vocabulary)
    total = metrics.get_metric(name).total
    figures = bootstrap.bootstrap_interval(counts, total, seed)
    scores[name] = {  # JSON has no nan
      key: None if np.isnan(figure) else figure
      for key, figure in zip(('value', 'low', 'high'), figures)
    }
    statistics[name] = counts.tolist()
  hashes = [hash_json(request_of(q)) for q in questions]
  return dict(
    name=task.name, set=task.set, language=task.language,
    source_language=task.source_language,
    kind='score' if questions[0].prompt is None else 'generate',
    mode=task.mode, shots=task.shots, normalize=task.normalize,
    source=task.source, prompt_hash=hash_json(hashes),
    questions=len(questions), of=of, cut=sum(row['cut'] for row in rows),
    chance=task.chance, notes=notes, scores=scores, statistics=statistics,
    predictions=[
      {'id': q.id, 'prompt_hash': whole[:16], 'answer': answer,
       'truth': q.truth, 'group': q.group}
      for q, whole, answer in zip(questions, hashes, answers)
    ],
  )  # fmt: skip


def resolve_metrics(task: Task) -> tuple[list[str], list[str]]:
  """Checks a task's metrics, and replaces spBLEU where its model is missing.

  Returns:
    (metrics that can be computed, notes on those that cannot).

  Raises:
    ValueError: a library is missing; names the extra to install.
  """
  names, notes = [], []
  for name in task.metrics:
    try:
      metrics.check_metrics([name], task.language)
      names.append(name)
    except MissingData as e:
      notes.append(str(e))
      names += ['spbleu_own'] * (name == 'spbleu')
    except ModuleNotFoundError as e:
      raise ValueError(str(e)) from e
  return names, notes
