"""What evaluation tasks promise each other."""

import dataclasses
import inspect

import pytest

from atm.data.vocabulary import Vocabulary
from atm.evals.task import Question, Task, Tokenizer


def test_a_vocabulary_is_a_tokenizer():
  """Fault seen: a renamed method, which only long texts would call."""
  for name in ('encode', 'decode'):
    ours, wanted = (
      list(inspect.signature(getattr(kind, name)).parameters)
      for kind in (Vocabulary, Tokenizer)
    )
    assert ours[: len(wanted)] == wanted


def test_questions_and_tasks_do_not_change():
  """Fault seen: one dict shown for all questions."""
  one, two = Question('a', 0), Question('b', 0)
  assert one.shown is not two.shown and one.group == ''
  task = Task('t', 's', 'en', ('accuracy',), lambda tokenizer: [one, two])
  with pytest.raises(dataclasses.FrozenInstanceError):
    task.mode = 'denoise'
