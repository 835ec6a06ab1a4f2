"""Questions of running text: what they ask, and what shots add."""

import numpy as np
import pytest

from atm.data import text_reader
from atm.data.languages import LANGUAGE_CODES
from atm_tasks.evaluation import registry, text_context


def ask(shots: int, **options):
  (task,) = registry.suite(['udhr_context'], shots=shots, **options)
  return task.make_questions(None)


def test_segments_are_whole_words_and_characters():
  segments, space = text_context.split_segments(
    'All human beings are born free and equal in dignity'
  )
  assert (segments, space) == (
    ['All human beings are', 'born free and equal in'], ' '
  )  # fmt: skip
  segments, space = text_context.split_segments('すべての人間は、' * 4)
  assert (segments[0], space) == ('すべての人間は', '') and len(segments) == 4


@pytest.mark.parametrize('mode', ['clm', 'denoise'])
def test_a_prompt_and_its_answer_are_running_text(mode):
  """Of every number of shots, in the articles as they are shipped."""
  texts = {
    ' '.join(line.partition('\t')[2].split())
    for language in LANGUAGE_CODES
    for _, line in text_reader.read_text_lines(f'tasks/udhr/{language}.tsv')
  }
  questions = {k: ask(k, mode=mode) for k in (0, 1, 2, 4)}
  for number in range(0, 371, 10):
    before = None
    for asked in questions.values():
      question = asked[number]
      prompt, answer = question.pairs[question.truth]
      space = '' if question.id.startswith('ja') else ' '
      text = f'{prompt}{space}{answer}' if mode == 'clm' else answer
      assert any(text in whole for whole in texts), text
      assert len({*question.pairs}) == 4
      assert before is None or text.endswith(before) and len(text) > len(before)
      before = text


def test_a_guess_is_at_chance():
  questions = ask(4)
  assert len(questions) == 371 and len({q.id for q in questions}) == 371
  places = np.bincount([q.truth for q in questions]) / len(questions)
  assert abs(places - 0.25).max() < 0.02
  lengths = [[len(a) for _, a in q.pairs] for q in questions]
  for guess in (np.argmin, np.argmax):
    right = np.mean([guess(x) == q.truth for x, q in zip(lengths, questions)])
    assert abs(right - 0.25) < 0.05


def test_a_split_of_few_articles_has_fewer_questions():
  questions = ask(4, split='validation')
  assert all(len({*q.pairs}) == 4 for q in questions) and len(questions) < 100


def test_shots_are_as_many_as_there_is_text_before():
  with pytest.raises(ValueError, match=r'SHOTS of udhr_context = 5: .* to 4'):
    ask(5)
