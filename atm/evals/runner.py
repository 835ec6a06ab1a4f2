"""Evaluation suites: tasks ask, a model answers, metrics judge; `atm eval`.

What is answered is kept at once, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax

import atm
from atm.data.vocabulary import Vocabulary
from atm.evals import metrics, predict, scoring
from atm.evals import results as results_lib
from atm.evals.predict import hash_json, request_of, sample_questions
from atm.evals.task import MissingData, Task
from atm.inference import api, batch
from atm.parallel import distributed
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

COMPLETED_FILE = 'answered.json'  # in predictions/
BATCHES_PER_CHUNK = 8  # batches between two times that answers are kept


def evaluate(
  make_tasks: Callable[[], Sequence[Task]],
  suite: str,
  model_dir: str | None = None,
  output: str | None = None,
  limit: int | None = None,
  seed: int = 0,
  batch_size: int = 32,
  at_step: int | None = None,
  weights: str | None = None,
  vocabulary: str | None = None,
  dry_run: bool = False,
  check_data: bool = False,
  check: Callable[[], str] = str,
  make_mesh: Callable = mesh_lib.mesh,
  rules: Rules = Rules(),
  config_text: str = '',
  say: Callable[[str], None] = print,
) -> str | None:
  """Runs a suite and writes its results.json and predictions/.

  Args:
    make_tasks: called without arguments.
    suite: its name, of the report.
    model_dir: the trained model's, or a Hugging Face folder.
    output: a folder; None: MODEL_DIR/eval/SUITE. What an earlier run of the
      same settings answered is not asked again.
    limit: questions of each task, drawn by `seed`; None: all.
    seed: of that draw and of the bootstraps.
    batch_size: prompts or pairs at a time.
    at_step, weights: see `api.load`.
    vocabulary: of a dry run without model_dir: a folder or file; None: long
      texts are not cut.
    dry_run: print every prompt as JSONL, and do nothing else.
    check_data: print what `check` says of the data, and do nothing else.
    check: called without arguments.
    make_mesh: called without arguments.
    rules: logical to mesh axes.
    config_text: what is bound, for the record.
    say: prints a line.

  Returns:
    The folder with the results; None where nothing was asked.

  Raises:
    FileNotFoundError: there is no model.
    ValueError: there is nothing to do, or a broken file; names it.
  """
  say = say if distributed.is_first() else lambda text: None
  if check_data:
    say(check())
    return None
  tasks = make_tasks()
  if dry_run:
    folder = vocabulary or model_dir and os.path.join(model_dir, 'vocabulary')
    words = Vocabulary(folder) if folder else None
    for line in format_requests(tasks, words, limit, seed):
      say(line)
    return None
  if model_dir is None:
    raise ValueError('MODEL_DIR is required, but for a dry run')
  mesh = make_mesh()
  for task in tasks:
    scoring.resolve_metrics(task)  # before hours of work
  model = api.load(model_dir, at_step, mesh, rules, weights=weights)
  if model.vocabulary is None:
    raise ValueError(f'{model_dir} has no tokenizer: suites ask in text')
  output = output or os.path.join(model_dir, 'eval', suite)
  say(f'step {model.step:,} of {model_dir}: {len(tasks)} tasks of {suite}')
  settings = dict(limit=limit, seed=seed, batch_size=batch_size,
                  weights=weights)  # fmt: skip
  start = time.perf_counter()
  found, missing = run_tasks(model, tasks, output, settings, model_dir, say)
  results_lib.write_results(
    output,
    dict(
      suite=suite, model_dir=model_dir, step=model.step,
      parameters=sum(x.size for x in jax.tree.leaves(model.params)),
      config=config_text, versions=collect_versions(tasks), settings=settings,
      seconds=round(time.perf_counter() - start, 1),
      tasks=found, missing=missing,
    ),
  )  # fmt: skip
  for line in format_scores(found):
    say(line)
  return output


def run_tasks(
  model, tasks, output, settings, model_dir, say
) -> tuple[list, list]:
  """(results of each task, what is missing), as results.json has them."""
  found, missing = [], []
  for number, task in enumerate(tasks, 1):
    say(f'{task.name} ({number} of {len(tasks)})')
    try:
      asked = task.ask(model.vocabulary)
    except MissingData as e:
      why, _, where = str(e).partition('\n')
      missing.append(dict(name=task.name, why=why, where=where))
      say(f'  left out: {why}')
      continue
    chosen = sample_questions(asked, settings['limit'], settings['seed'])
    rows = predict_task(model, task, chosen, output, settings, model_dir, say)
    if cut := sum(row['cut'] for row in rows):
      lost = {'end': 'beginnings', 'beginning': 'ends'}[task.keeps]
      say(
        f'  {cut:,} of {len(rows):,} texts had no room: their {lost} are left '
        f'out (Config.positions = {model.config.positions})'
      )
    found.append(
      scoring.score_task(task, chosen, rows, len(asked), model, settings)
    )
  return found, missing


# --- Without a model


def format_requests(tasks, vocabulary, limit, seed) -> Iterator[str]:
  """All that tasks would send, a JSON object a question."""
  for task in tasks:
    try:
      asked = task.ask(vocabulary)
    except MissingData as e:
      yield json.dumps({'task': task.name, 'missing': str(e)})
      continue
    for question in sample_questions(asked, limit, seed):
      row = {'task': task.name, 'id': question.id, **request_of(question)}
      yield json.dumps(row, ensure_ascii=False)


# --- Answers


def predict_task(model, task, asked, output, settings, model_dir, say) -> list:
  """The answer to each question, kept in predictions/TASK.jsonl.

  Returns:
    {output, answer, log_probabilities, tokens, cut} for each.
  """
  sent = [request_of(question) for question in asked]
  rows = [
    {
      'id': q.id, 'prompt_hash': hash_json(s)[:16], 'group': q.group,
      'truth': q.truth, 'shown': dict(q.shown), 'prompt': q.prompt,
      'pairs': s.get('pairs', []),
    }
    for q, s in zip(asked, sent)
  ]  # fmt: skip
  folder = os.path.join(output, 'predictions')
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, f'{task.name}.jsonl')
  depends = dict(
    rows=rows, model=os.path.abspath(model_dir), step=model.step,
    mode=task.mode, normalize=task.normalize, max_tokens=task.max_tokens,
    stop=task.stop, weights=settings['weights'],
  )  # fmt: skip
  marks = _read_completed(folder)
  if marks.get(task.name) == batch.hash_settings(depends) and os.path.exists(
    path
  ):
    say('  answered before')
    with open(path, encoding='utf-8') as f:
      return list(map(json.loads, f))
  size = settings['batch_size']
  progress = batch.PartialResults(path, depends, len(rows))
  batch.compute_missing(
    rows,
    [len(str(s)) for s in sent],
    progress,
    BATCHES_PER_CHUNK * size,
    lambda numbers: predict.predict(model, task, asked, numbers, size),
    lambda text: say(f'  {text}'),
  )
  if distributed.is_first():
    marks[task.name] = batch.hash_settings(depends)
    with open(os.path.join(folder, COMPLETED_FILE), 'w') as f:
      json.dump(marks, f)
  return [progress.done[i] for i in range(len(rows))]


def _read_completed(folder: str) -> dict[str, str]:
  """Of tasks that are answered: what the answers depend on."""
  try:
    with open(os.path.join(folder, COMPLETED_FILE)) as f:
      return json.load(f)
  except (FileNotFoundError, ValueError):
    return {}


def collect_versions(tasks: Iterable[Task]) -> dict[str, str]:
  """Of what the figures depend on."""
  names = dict.fromkeys(name for task in tasks for name in task.metrics)
  own = {'atm': atm.__version__, 'jax': importlib.metadata.version('jax')}
  return own | metrics.metric_versions(names)


def format_scores(found: Sequence[dict]) -> Iterator[str]:
  """A line a task: its main figure with its interval."""
  wide = max((len(task['name']) for task in found), default=0)
  for task in found:
    for name, figure in list(task['scores'].items())[:1]:
      if figure['value'] is None:
        continue
      chance = task['chance']
      yield (
        f'{task["name"]:<{wide}}  {figure["value"]:6.2f}  '
        f'[{figure["low"]:.2f}, {figure["high"]:.2f}]  '
        f'{metrics.get_metric(name).title}, {task["questions"]:,} questions'
        + ('' if chance is None else f', chance {chance:.1f}')
      )
