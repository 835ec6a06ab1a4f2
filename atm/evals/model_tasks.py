"""Fits tasks to a model: translation models are asked by language codes.

A model with languages and without `[CLM]` follows no prompt and no examples: it
reads a sentence and is told both languages. Of all tasks it takes translations,
and those whose questions are inputs that models are tuned on.
"""

import dataclasses
from collections.abc import Sequence

from atm.data.input_format import InputFormat
from atm.data.language_codes import find_language
from atm.evals.task import MissingData, Question, Task, Tokenizer


def is_translation_model(input_format: InputFormat) -> bool:
  """Tells whether a model is asked by language codes, not by examples."""
  return input_format.has_languages and input_format.clm_id is None


def fit_tasks(
  tasks: Sequence[Task], input_format: InputFormat | None
) -> tuple[list[Task], dict[str, str]]:
  """Fits tasks to a model's format; without one they stay as they are.

  Returns:
    (the tasks as the model is asked them, name -> why a task cannot be asked).
    Where questions of such a task are made, MissingData says the same.
  """
  if input_format is None:
    return [*tasks], {}
  if is_translation_model(input_format):
    fitted = [_fit_translation(task, input_format) for task in tasks]
  else:
    fitted = [(_fit_mode(task, input_format), '') for task in tasks]
  refused = {task.name: why for task, why in fitted if why}
  return [task for task, _ in fitted], refused


def _fit_mode(task: Task, input_format: InputFormat) -> Task:
  """Returns a task in the model's own format where it has no `[CLM]`."""
  own = input_format.clm_id is None and task.mode == 'clm'
  return dataclasses.replace(task, mode=None) if own else task


def _fit_translation(task: Task, form: InputFormat) -> tuple[Task, str]:
  """Returns (a task by language codes, '' or why it cannot be asked)."""
  if task.asked_as_is:
    languages = form.source, form.target
    return dataclasses.replace(task, mode=None, languages=languages), ''
  if (alone := task.by_languages) is None:
    why = (
      f'this model translates between {len(form.languages)} languages, and '
      'follows no prompt'
    )
    return _refuse(task, why), why
  codes = ('source', task.source_language), ('target', task.language)
  try:
    languages = tuple(find_language(*code, form.languages) for code in codes)
  except ValueError as e:
    why = str(e).partition('. Known: ')[0]  # a hundred codes
    return _refuse(task, why), why
  return dataclasses.replace(alone, mode=None, languages=languages), ''


def _refuse(task: Task, why: str) -> Task:
  """Returns a task whose questions cannot be made."""

  def make_questions(tokenizer: Tokenizer | None) -> list[Question]:
    raise MissingData(why)

  return dataclasses.replace(task, make_questions=make_questions)
