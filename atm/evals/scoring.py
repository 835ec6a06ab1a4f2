"""Scores of a task's answers, as results.json has them."""

from collections.abc import Sequence

import numpy as np

from atm.evals import bootstrap, metrics
from atm.evals.predict import request_of
from atm.evals.task import MissingData, Question, Task
from atm.fileio import hash_json


def compute_statistics(
  name: str, task: Task, questions: Sequence[Question], rows, vocabulary
) -> np.ndarray:
  """Computes the rows [G, M] of a metric, see `metrics.Metric`."""
  answers = [row['answer'] for row in rows]
  truths = [question.truth for question in questions]
  groups = [question.group for question in questions]
  count = metrics.get_metric(name).rows
  return count(answers, truths, groups, task.language, vocabulary)


def score_task(
  task: Task, questions: Sequence[Question], rows: Sequence[dict], of: int,
  vocabulary, seed: int,
) -> dict:  # fmt: skip
  """Builds the entry of a task in results.json from rows of `predict.predict`.

  The questions are those that were answered, of `of` that the task has.
  """
  scores, statistics = {}, {}
  names, notes = resolve_metrics(task)
  for name in names:
    counts = compute_statistics(name, task, questions, rows, vocabulary)
    total = metrics.get_metric(name).total
    figures = bootstrap.bootstrap_interval(counts, total, seed)
    scores[name] = {  # JSON has no nan
      key: None if np.isnan(figure) else figure
      for key, figure in zip(('value', 'low', 'high'), figures)
    }
    statistics[name] = counts.tolist()
  hashes = [hash_json(request_of(q), ensure_ascii=False) for q in questions]
  return dict(
    name=task.name, set=task.set, language=task.language,
    source_language=task.source_language,
    kind='score' if questions[0].prompt is None else 'generate',
    mode=task.mode, shots=task.shots, normalize=task.normalize,
    source=task.source, prompt_hash=hash_json(hashes),
    questions=len(questions), of=of, cut=sum(row['cut'] for row in rows),
    chance=task.chance, notes=notes, scores=scores, statistics=statistics,
    predictions=[
      {'id': q.id, 'prompt_hash': whole[:16], 'answer': row['answer'],
       'truth': q.truth, 'group': q.group}
      for q, whole, row in zip(questions, hashes, rows)
    ],
  )  # fmt: skip


def resolve_metrics(task: Task) -> tuple[list[str], list[str]]:
  """Returns a task's metrics that can be computed, notes on those that cannot.

  Raises ValueError, with the extra to install, where a library is missing.
  """
  names, notes = [], []
  for name in task.metrics:
    try:
      metrics.check_metrics([name], task.language)
      names.append(name)
    except MissingData as e:
      notes.append(str(e))
      # The stand-in for spBLEU where its model is missing.
      names += ['spbleu_own'] * (name == 'spbleu')
    except ModuleNotFoundError as e:
      raise ValueError(str(e)) from e
  return names, notes
