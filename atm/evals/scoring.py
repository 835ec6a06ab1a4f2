"""Turns answers into metrics."""

from __future__ import annotations

import numpy as np

from atm.evals import bootstrap, metrics
from atm.evals.predict import hash_json, request_of
from atm.evals.task import MissingData, Task

# --- Figures


def compute_statistics(
  name: str, task: Task, asked, answers, vocabulary
) -> np.ndarray:
  """The rows of a metric of a task's answers, see `metrics.Metric`."""
  truths, groups = ([getattr(q, x) for q in asked] for x in ('truth', 'group'))
  metric = metrics.get_metric(name)
  return metric.rows(answers, truths, groups, task.language, vocabulary)


def score_task(task: Task, asked, rows, of: int, model, settings) -> dict:
  """What results.json says of a task."""
  answers = [row['answer'] for row in rows]
  figures, statistics = {}, {}
  names, notes = resolve_metrics(task)
  for name in names:
    made = compute_statistics(name, task, asked, answers, model.vocabulary)
    total = metrics.get_metric(name).total
    value, low, high = bootstrap.bootstrap_interval(
      made, total, settings['seed']
    )
    figures[name] = {
      k: None if np.isnan(x) else x
      for k, x in (('value', value), ('low', low), ('high', high))
    }
    statistics[name] = made.tolist()
  hashes = [hash_json(request_of(q)) for q in asked]
  return dict(
    name=task.name, set=task.set, language=task.language,
    source_language=task.source_language,
    kind='score' if asked[0].prompt is None else 'generate',
    mode=task.mode, shots=task.shots, normalize=task.normalize,
    source=task.source, prompt_hash=hash_json(hashes), questions=len(asked),
    of=of, cut=sum(row['cut'] for row in rows), chance=task.chance,
    notes=notes, scores=figures, statistics=statistics,
    predictions=[
      {'id': q.id, 'prompt_hash': whole[:16], 'answer': row['answer'],
       'truth': q.truth, 'group': q.group}
      for q, whole, row in zip(asked, hashes, rows)
    ],
  )  # fmt: skip


def resolve_metrics(task: Task) -> tuple[list[str], list[str]]:
  """(metrics, notes): those a task names, or what stands in for spBLEU.

  Raises:
    ValueError: a library is missing; names the extra.
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
