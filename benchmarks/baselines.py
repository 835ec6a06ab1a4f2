"""A results folder of `atm eval` beside doing nothing: chance, or a copy.

Pools the tasks of each set. Choices: accuracy against chance. Translations:
chrF, and BLEU of the model's pieces, against the source sentence copied, paired
on the same questions. Intervals are 95% bootstraps over questions.

  python benchmarks/baselines.py FOLDER VOCABULARY
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def pooled(folder: str, tasks, name: str, words) -> tuple:
  """(rows of the answers, rows of copies, or None) of all tasks of a set."""
  import numpy as np

  from atm.evals import metrics

  metric, ours, copies = metrics.get_metric(name), [], []
  for task in tasks:
    with open(f'{folder}/predictions/{task["name"]}.jsonl') as f:
      rows = list(map(json.loads, f))
    truths = [row['truth'] for row in rows]
    groups = [row['group'] for row in rows]
    count = lambda answers, task=task, truths=truths, groups=groups: (
      metric.rows(answers, truths, groups, task['language'], words)
    )
    ours.append(count([row['answer'] for row in rows]))
    if task['source_language']:
      copies.append(count([row['shown']['sentence'] for row in rows]))
  join = lambda parts: np.concatenate(parts) if parts else None
  return metric, join(ours), join(copies)


def main(folder: str, vocabulary: str):
  from atm.data.vocabulary import Vocabulary
  from atm.evals import bootstrap
  from atm.evals import results as results_lib

  results, words = results_lib.read_results(folder), Vocabulary(vocabulary)
  sets: dict[str, list] = {}
  for task in results['tasks']:
    sets.setdefault(task['set'], []).append(task)
  for name, tasks in sets.items():
    for key in dict.fromkeys(k for task in tasks for k in task['scores']):
      metric, ours, copies = pooled(folder, tasks, key, words)
      value, low, high = bootstrap.bootstrap_interval(ours, metric.total)
      line = f'{name}, {metric.title}: {value:.2f} [{low:.2f}, {high:.2f}]'
      if copies is not None:
        more, low, high, p = bootstrap.paired_bootstrap(
          copies, ours, metric.total
        )
        copied = metric.total(copies.sum(0))
        line += f'; copies {copied:.2f}, difference {more:.2f} '
        line += f'[{low:.2f}, {high:.2f}], p = {p:.3f}'
      elif tasks[0]['chance'] is not None:
        line += f'; chance {tasks[0]["chance"]:.2f}'
      print(f'{line}; {len(ours):,} questions in {len(tasks)} tasks')


if __name__ == '__main__':
  main(*sys.argv[1:])
