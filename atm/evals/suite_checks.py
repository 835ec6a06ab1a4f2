"""Checks a suite before the model's parameters are read.

Data that is missing, texts without room and results of other settings are told
at once, all of them, and not after hours of answers.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from atm import storage
from atm.evals import predict, results
from atm.evals.task import MissingData, Question, Task
from atm.inference.framing import Framing, list_some

# Of this share of texts that are cut the scores say little.
NEARLY_ALL = 0.9


@dataclasses.dataclass
class TaskSurvey:
  """What a task would ask of a model.

  Attributes:
    task: the task.
    questions: those that would be asked; of a task without data none.
    cuts: how many tokens of each have no room.
    missing: what is missing, '' where all is there.
  """

  task: Task
  questions: list[Question]
  cuts: list[int]
  missing: str = ''

  @property
  def long(self) -> int:
    """How many questions have no room."""
    return sum(map(bool, self.cuts))


def survey_task(
  task: Task, framing: Framing, limit: int | None, seed: int
) -> TaskSurvey:
  """Makes a task's questions and counts those without room."""
  try:
    questions = task.make_questions(framing.vocabulary)
  except MissingData as e:
    return TaskSurvey(task, [], [], str(e))
  questions = predict.sample_questions(questions, limit, seed)
  cuts = [predict.count_cut(framing, task, q) for q in questions]
  return TaskSurvey(task, questions, cuts)


def check_complete(missing: Mapping[str, str], count: int, allow: bool) -> None:
  """Raises ValueError where tasks have no data.

  Args:
    missing: the tasks without data, and what they miss.
    count: of all tasks.
    allow: take some without, if others have data.
  """
  if not missing or allow and len(missing) < count:
    return
  first = next(iter(missing.values())).partition('\n')[0]
  remedy = (
    ''
    if len(missing) == count
    else '; ALLOW_MISSING=True leaves such tasks out'
  )
  raise ValueError(
    f'{len(missing):,} of {count:,} tasks have no data: '
    f'{list_some(list(missing))}. {first}. CHECK_DATA=True says where to get '
    f'it{remedy}'
  )


def check_askable(refused: Mapping[str, str], count: int, allow: bool) -> None:
  """Raises ValueError where tasks cannot be asked of a model.

  Args:
    refused: those tasks, and why.
    count: of all tasks.
    allow: take some without, if others can be asked.
  """
  if not refused or allow and len(refused) < count:
    return
  first, why = next(iter(refused.items()))
  remedy = (
    ''
    if len(refused) == count
    else '. ALLOW_MISSING=True leaves such tasks out, TASKS chooses others'
  )
  raise ValueError(
    f'{len(refused):,} of {count:,} tasks cannot be asked of this model: '
    f'{list_some(list(refused))}. {first}: {why}{remedy}'
  )


def check_room(
  surveys: Sequence[TaskSurvey], positions: int, truncate: str
) -> str:
  """Returns a line on texts that will be cut, '' without any.

  Raises:
    ValueError: there are some, and truncate is 'refuse'.
  """
  long = [survey for survey in surveys if survey.long]
  if not long:
    return ''
  count = sum(survey.long for survey in surveys)
  every = sum(len(survey.questions) for survey in surveys)
  named = [f'{s.task.name} ({s.long:,} of {len(s.questions):,})' for s in long]
  text = (
    f'{count:,} of {every:,} questions have more tokens than Config.positions '
    f'= {positions}: {list_some(named)}'
  )
  if truncate == 'refuse':
    raise ValueError(
      f"{text}. TRUNCATE='start' cuts them there, 'end' at the end; TASKS "
      'chooses tasks that fit'
    )
  text += f'; they are cut at the {truncate}'
  if count >= NEARLY_ALL * every:
    return f'warning: {text}. Scores of such prompts say little of a model'
  return text


def check_same_results(
  folder: str, facts: Mapping, names: Sequence[str]
) -> None:
  """Raises ValueError where results.json in a folder is of another evaluation.

  Args:
    folder: where results are to be.
    facts: `suite`, `step` and `settings` of the one to be made.
    names: of its tasks, in which all of those that are there must be.
  """
  path = os.path.join(folder, results.RESULTS_FILE)
  if not storage.exists(path):
    return
  there = results.read_results(folder)
  found = {'step': there['step'], **there['settings']}
  wanted = {'step': facts['step'], **facts['settings']}
  # The batch changes no answer, and older results do not say how they cut.
  keys = [k for k in wanted if k != 'batch_size' and k in found]
  other = [f'{k.upper()} = {found[k]!r}' for k in keys if found[k] != wanted[k]]
  if others := {task['name'] for task in there['tasks']} - {*names}:
    other.append(f'the task {min(others)}')
  if other:
    raise ValueError(
      f'{path} is there already, of another evaluation ({list_some(other)}): '
      'OVERWRITE=True replaces it; or give another OUTPUT'
    )
