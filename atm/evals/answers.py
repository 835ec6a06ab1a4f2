"""Answers on disk: a killed evaluation continues with what is there."""

import dataclasses
import os
from collections.abc import Callable, Sequence

from atm import fileio, storage
from atm.evals import predict
from atm.evals.predict import request_of
from atm.evals.task import Question, Task
from atm.inference import api, partial_results, sampling
from atm.parallel import distributed

COMPLETED_FILE = 'answered.json'  # in predictions/
BATCHES_PER_CHUNK = 8  # between two writes of answers


def set_truncation(task: Task, truncate: str) -> Task:
  """Returns a task that cuts as TRUNCATE says; 'refuse' leaves its own side."""
  if truncate == 'refuse':
    return task
  return dataclasses.replace(task, truncate=truncate)


@dataclasses.dataclass
class AnswerFolder:
  """A folder with the answers of one model: TASK.jsonl each.

  Attributes:
    folder: predictions/ of an evaluation.
    model_dir, weights, truncate, overwrite, batch_size: see
      `runner.SuiteEvaluation`.
    log: prints a line.
    config: how tokens of generated answers are chosen.
    adapter: the fingerprint of an adapter that is put on the model.
  """

  folder: str
  model_dir: str
  weights: str | None
  truncate: str
  overwrite: bool
  batch_size: int
  log: Callable[[str], None]
  config: sampling.Config = sampling.Config()
  adapter: str | None = None

  def path_of(self, task: Task) -> str:
    """Returns the path of a task's answers."""
    return os.path.join(self.folder, f'{task.name}.jsonl')

  def describe(
    self, task: Task, questions: Sequence[Question], step: int
  ) -> tuple[list[dict], dict]:
    """Returns (questions as rows of answers, all that answers depend on)."""
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
    # The names of these keys are part of the hash: a new name asks anew.
    settings = dict(
      rows=rows, model=storage.absolute(self.model_dir), step=step,
      mode=task.mode, normalize=task.normalize, max_tokens=task.max_tokens,
      stop=task.stop, weights=self.weights,
    )  # fmt: skip
    if self.adapter is not None:
      settings['adapter'] = self.adapter
    if task.languages is not None:
      settings['languages'] = task.languages
    if self.truncate not in ('refuse', task.truncate):
      settings['truncate'] = self.truncate
    given = self.config.list_given()
    if given and any(question.prompt is not None for question in questions):
      settings['generation'] = given
    return rows, settings

  def check(self, task: Task, questions: Sequence[Question], step: int) -> None:
    """Raises ValueError where answers of other settings are there."""
    path = self.path_of(task)
    mark = fileio.hash_json(self.describe(task, questions, step)[1])
    completed = _read_completed(os.path.join(self.folder, COMPLETED_FILE))
    facts = completed.get(task.name)
    there = facts.get('settings') if isinstance(facts, dict) else facts
    begun = partial_results.read_mark(f'{path}.part')
    if storage.exists(path) and there not in (None, mark):
      place = path
    elif begun not in (None, mark):
      place = f'{path}.part'
    else:
      return
    raise ValueError(
      f'{place} is there already, of another step or other settings: '
      'OVERWRITE=True replaces it; or give another OUTPUT'
    )

  def answer(
    self, model: api.Model, task: Task, questions: Sequence[Question]
  ) -> list[dict]:
    """Returns questions with answers, as they are there or computed."""
    rows, settings = self.describe(task, questions, model.step)
    requests = [request_of(question) for question in questions]
    storage.make_folder(self.folder)
    path = self.path_of(task)
    completed_path = os.path.join(self.folder, COMPLETED_FILE)
    completed = _read_completed(completed_path)
    mark = fileio.hash_json(settings)
    if _is_answered(path, mark, completed.get(task.name)):
      self.log('  answered before')
      return _read_answered(path, len(rows))

    cutting = set_truncation(task, self.truncate)

    def compute(numbers):
      some = [questions[i] for i in numbers]
      answers, tokens = predict.predict(
        model, cutting, some, self.batch_size, self.config
      )
      return dict(zip(numbers, answers)), tokens

    partial = partial_results.PartialResults(
      path, settings, len(rows), overwrite=self.overwrite
    )
    lengths = [len(str(request)) for request in requests]
    partial_results.compute_missing(
      rows, lengths, partial, BATCHES_PER_CHUNK * self.batch_size, compute,
      lambda text: self.log(f'  {text}'),
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
  if not storage.exists(path):
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
