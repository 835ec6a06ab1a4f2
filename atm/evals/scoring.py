"""Scores of a task's answers, as results.json has them."""

from collections.abc import Sequence

import numpy as np

from atm.evals import bootstrap, metrics, text_metrics
from atm.evals.predict import request_of
from atm.evals.task import OWN_FORMAT, MissingData, Question, Task
from atm.fileio import hash_json
from atm.inference import stop_strings


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
    mode=task.mode or OWN_FORMAT, shots=task.shots, asked=task.asked,
    normalize=task.normalize,
    source=task.source, prompt_hash=hash_json(hashes),
    references=count_references(task, questions, vocabulary),
    questions=len(questions), of=of, cut=sum(row['cut'] for row in rows),
    truncate=task.truncate,
    chance=task.chance, notes=notes, scores=scores, statistics=statistics,
    predictions=[
      {'id': q.id, 'prompt_hash': whole[:16], 'answer': row['answer'],
       'truth': q.truth, 'group': q.group}
      for q, whole, row in zip(questions, hashes, rows)
    ],
  )  # fmt: skip


def count_references(
  task: Task, questions: Sequence[Question], vocabulary
) -> dict[str, int] | None:
  """Counts the references that the tokenizer or the protocol changes.

  Returns:
    {changed: questions with a reference that the tokenizer writes otherwise,
    but for white space; unknown: with characters that it lacks; out_of_reach:
    where no answer equals a reference, as its own text is cut or read
    otherwise}. None where choices are given, or without a vocabulary: texts are
    compared as they are.
  """
  if questions[0].prompt is None or vocabulary is None:
    return None
  counts = dict.fromkeys(('changed', 'unknown', 'out_of_reach'), 0)
  write = lambda text: text_metrics.written_text(text, vocabulary).split()
  for question in questions:
    truth = question.truth
    texts = [truth] if isinstance(truth, str) else list(truth)
    written = list(map(write, texts))
    counts['changed'] += written != [text.split() for text in texts]
    counts['unknown'] += any(
      vocabulary.unk_id in vocabulary.encode(text) for text in texts
    )
    counts['out_of_reach'] += bool(texts) and not any(
      write(answer) == wanted
      for text, wanted in zip(texts, written)
      for answer in _right_answers(task, question, text, vocabulary)
    )
  return counts


def _right_answers(task: Task, question: Question, text: str, vocabulary):
  """Yields the answers in outputs that hold a reference, read as others are."""
  outputs = [text]
  if task.mode == 'denoise':  # the prompt is written again, or not
    outputs.append(f'{question.prompt} {text}')
  for output in outputs:
    ids = vocabulary.encode(output)[: task.max_tokens]
    output = stop_strings.cut_at_stop(vocabulary.decode(ids), task.stop)
    yield task.answer(output, question) if task.answer else output


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
