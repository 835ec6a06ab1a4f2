"""`atm eval`: a model answers the questions of a suite, and metrics score them.

Answers are on disk as soon as they are computed, so a run that was killed
continues where it was.
"""

import dataclasses
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import jax

import atm
from atm import fileio
from atm.data.vocabulary import Vocabulary
from atm.evals import metrics, predict, results, scoring
from atm.evals.predict import request_of, sample_questions
from atm.evals.task import MissingData, Question, Task
from atm.inference import api, partial_results
from atm.messages import check_count, check_path, check_seed
from atm.parallel import distributed

COMPLETED_FILE = 'answered.json'  # in predictions/
BATCHES_PER_CHUNK = 8  # between two writes of answers


@dataclasses.dataclass
class SuiteEvaluation(api.ModelSource):
  """Evaluates a model on the tasks of a suite.

  Attributes:
    model_dir: None only for a dry run or a check of the data.
    make_tasks: builds the tasks.
    suite: the suite's name, for the report.
    output: a folder; None: MODEL_DIR/eval/SUITE. Answers that an earlier run of
      the same settings left there are read, not computed.
    limit: questions of each task, drawn by `seed`; None: all.
    seed: of that draw and of the bootstraps.
    batch_size: prompts or pairs at a time.
    vocabulary: of a dry run without model_dir: a folder or file; None: long
      texts are not cut.
    dry_run: print every prompt as JSONL, and do nothing else.
    check_data: print the report of `check` on the data, and do nothing else.
    check: reports on the data.
    config_text: the gin configuration, for the record.
    say: prints a line.
  """

  model_dir: str | None = None
  _: dataclasses.KW_ONLY
  make_tasks: Callable[[], Sequence[Task]]
  suite: str
  output: str | None = None
  limit: int | None = None
  seed: int = 0
  batch_size: int = 32
  vocabulary: str | None = None
  dry_run: bool = False
  check_data: bool = False
  check: Callable[[], str] = str
  config_text: str = ''
  say: Callable[[str], None] = print

  checks = api.ModelSource.checks | {
    'model_dir': partial(check_path, 'MODEL_DIR', optional=True),
    'suite': partial(check_path, 'SUITE'),
    'output': partial(check_path, 'OUTPUT', optional=True),
    'limit': partial(check_count, 'LIMIT', optional=True),
    'seed': partial(check_seed, 'SEED'),
    'batch_size': partial(check_count, 'BATCH_SIZE'),
    'vocabulary': partial(check_path, 'VOCABULARY', optional=True),
  }

  def run(self) -> str | None:
    """Writes results.json and predictions/, or prints what was asked for.

    Returns:
      The folder with the results; None after a dry run or a check of the data.

    Raises:
      FileNotFoundError: there is no model.
      ValueError: there is nothing to do, or a broken file; names it.
    """
    if self.check_data:
      self._log(self.check())
      return None
    tasks = self.make_tasks()
    if self.dry_run:
      for line in self.format_requests(tasks):
        self._log(line)
      return None
    if self.model_dir is None:
      raise ValueError('MODEL_DIR is required, but for a dry run')
    if distributed.is_main_process():
      fileio.check_output_folder('OUTPUT', self.folder)
    for task in tasks:
      scoring.resolve_metrics(task)  # fails before hours of work, not after
    model = self.load()
    if model.vocabulary is None:
      raise ValueError(f'{self.model_dir} has no tokenizer: suites ask in text')
    self._log(
      f'step {model.step:,} of {self.model_dir}: {len(tasks)} tasks of '
      f'{self.suite}'
    )
    start = time.perf_counter()
    found, missing = self.evaluate_tasks(model, tasks)
    results.write_results(self.folder, dict(
      suite=self.suite, model_dir=self.model_dir, step=model.step,
      parameters=sum(x.size for x in jax.tree.leaves(model.params)),
      config=self.config_text, versions=collect_versions(tasks),
      settings={key: getattr(self, key)
                for key in ('limit', 'seed', 'batch_size', 'weights')},
      seconds=round(time.perf_counter() - start, 1),
      tasks=found, missing=missing,
    ))  # fmt: skip
    for line in format_scores(found):
      self._log(line)
    return self.folder

  @property
  def folder(self) -> str:
    """The folder that results and answers are written to."""
    return self.output or os.path.join(self.model_dir, 'eval', self.suite)

  def _log(self, line: str) -> None:
    if distributed.is_main_process():
      self.say(line)

  def format_requests(self, tasks: Iterable[Task]) -> Iterator[str]:
    """Formats questions as lines of JSON, as the model would read them."""
    place = self.vocabulary
    if place is None and self.model_dir:
      place = os.path.join(self.model_dir, 'vocabulary')
    vocabulary = Vocabulary(place) if place else None
    for task in tasks:
      try:
        questions = task.make_questions(vocabulary)
      except MissingData as e:
        yield json.dumps({'task': task.name, 'missing': str(e)})
        continue
      for question in sample_questions(questions, self.limit, self.seed):
        row = {'task': task.name, 'id': question.id, **request_of(question)}
        yield json.dumps(row, ensure_ascii=False)

  def evaluate_tasks(
    self, model: api.Model, tasks: Sequence[Task]
  ) -> tuple[list[dict], list[dict]]:
    """Evaluates tasks; returns `tasks` and `missing` of results.json."""
    found, missing = [], []
    for number, task in enumerate(tasks, 1):
      self._log(f'{task.name} ({number} of {len(tasks)})')
      try:
        every = task.make_questions(model.vocabulary)
      except MissingData as e:
        why, _, where = str(e).partition('\n')
        missing.append(dict(name=task.name, why=why, where=where))
        self._log(f'  left out: {why}')
        continue
      questions = sample_questions(every, self.limit, self.seed)
      rows = self._answer(model, task, questions)
      if cut := sum(row['cut'] for row in rows):
        lost = {'end': 'beginnings', 'beginning': 'ends'}[task.keep_side]
        self._log(
          f'  {cut:,} of {len(rows):,} texts had no room: their {lost} are '
          f'left out (Config.positions = {model.config.positions})'
        )
      found.append(scoring.score_task(
        task, questions, rows, len(every), model.vocabulary, self.seed
      ))  # fmt: skip
    return found, missing

  def _answer(
    self, model: api.Model, task: Task, questions: Sequence[Question]
  ) -> list[dict]:
    """Returns questions with answers, of predictions/TASK.jsonl or computed."""
    requests = [request_of(question) for question in questions]
    hashes = [fileio.hash_json(r, ensure_ascii=False) for r in requests]
    rows = [
      {
        'id': question.id, 'prompt_hash': hashed[:16],
        'group': question.group, 'truth': question.truth,
        'shown': dict(question.shown), 'prompt': question.prompt,
        'pairs': request.get('pairs', []),
      }
      for question, request, hashed in zip(questions, requests, hashes)
    ]  # fmt: skip
    folder = os.path.join(self.folder, 'predictions')
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f'{task.name}.jsonl')
    # The names of these keys are part of the hash: a new name asks anew.
    settings = dict(
      rows=rows, model=os.path.abspath(self.model_dir), step=model.step,
      mode=task.mode, normalize=task.normalize, max_tokens=task.max_tokens,
      stop=task.stop, weights=self.weights,
    )  # fmt: skip
    completed_path = os.path.join(folder, COMPLETED_FILE)
    completed = _read_completed(completed_path)
    mark = fileio.hash_json(settings)
    if _is_answered(path, mark, completed.get(task.name)):
      self._log('  answered before')
      return _read_answered(path, len(rows))

    def compute(numbers):
      some = [questions[i] for i in numbers]
      answers, tokens = predict.predict(model, task, some, self.batch_size)
      return dict(zip(numbers, answers)), tokens

    partial = partial_results.PartialResults(path, settings, len(rows))
    lengths = [len(str(request)) for request in requests]
    partial_results.compute_missing(
      rows, lengths, partial, BATCHES_PER_CHUNK * self.batch_size, compute,
      lambda text: self._log(f'  {text}'),
    )  # fmt: skip
    if distributed.is_main_process():
      facts = {'settings': mark, 'crc32': fileio.checksum(path)}
      fileio.write_json(completed_path, {**completed, task.name: facts})
    return [partial.done[i] for i in range(len(rows))]


def _read_completed(path: str) -> dict[str, dict | str]:
  """Reads task -> settings and checksum of its answers, where there are all."""
  try:
    return fileio.read_json(path)
  except (FileNotFoundError, ValueError):
    return {}


def _is_answered(path: str, mark: str, facts: dict | str | None) -> bool:
  """Tells whether a file has the answers of these settings, undamaged."""
  if not os.path.exists(path):
    return False
  if isinstance(facts, str):  # of before there were checksums
    return facts == mark
  return facts == {'settings': mark, 'crc32': fileio.checksum(path)}


def _read_answered(path: str, count: int) -> list[dict]:
  """Reads `count` answers of an earlier run; raises ValueError without them."""
  try:
    rows = list(fileio.read_own_lines(path, {'answer': object, 'cut': bool}))
    if len(rows) != count:
      raise ValueError(f'{path} has {len(rows):,} lines: expected {count:,}')
  except ValueError as e:
    raise ValueError(f'{e}. Remove the file to answer anew') from e
  return rows


def collect_versions(tasks: Iterable[Task]) -> dict[str, str]:
  """Returns the versions of what the scores of tasks depend on."""
  names = dict.fromkeys(name for task in tasks for name in task.metrics)
  own = {'atm': atm.__version__, 'jax': importlib.metadata.version('jax')}
  return own | metrics.metric_versions(names)


def format_scores(tasks: Sequence[dict]) -> Iterator[str]:
  """Formats the main score of each task, with its interval, as a line."""
  width = max((len(task['name']) for task in tasks), default=0)
  for task in tasks:
    name, score = next(iter(task['scores'].items()), ('', {'value': None}))
    if score['value'] is None:
      continue
    chance = task['chance']
    yield (
      f'{task["name"]:<{width}}  {score["value"]:6.2f}  '
      f'[{score["low"]:.2f}, {score["high"]:.2f}]  '
      f'{metrics.get_metric(name).title}, {task["questions"]:,} questions'
      + ('' if chance is None else f', chance {chance:.1f}')
    )
