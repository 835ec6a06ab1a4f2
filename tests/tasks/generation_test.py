"""Questions whose answers are generated, and the answers cut out."""

import os

import pytest

from atm.inference.prompts import MODES
from atm_tasks.evaluation import generation, registry

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(HERE, 'testdata', 'evaluation')


def test_answers_are_cut_in_both_modes():
  for mode in MODES:
    (task,) = registry.suite('flores101_en_de', DATA, mode=mode)
    question = task.make_questions(None)[0]
    output = ' Zwei Ziegen; Sentence: mehr'
    if mode == 'denoise':
      output = question.prompt + output
    assert task.answer(output, question) == 'Zwei Ziegen'
    assert task.stop == ((';',) if mode == 'clm' else ())
  assert task.max_tokens == 1023


def test_no_answer_is_heard():
  (task,) = registry.suite('squadv2', DATA)
  question = task.make_questions(None)[1]
  for output in ('Unanswerable.; Question:', ' no answer', '', ' "N/A"'):
    assert task.answer(output, question) == ''
  assert task.answer(' None of them; ', question) == 'None of them'
  assert question.truth == []


def test_inputs_are_asked_as_they_are():
  form = generation.PairFormat()
  example = {'id': '3', 'input': ' a  b', 'target': 'c'}
  question = form.question(example, [], 'en', 'clm', None)
  assert (question.prompt, question.truth) == (' a  b', 'c')
  assert form.answer(' c ', question, 'clm') == 'c'
  with pytest.raises(ValueError, match='SHOTS: pairs are asked as they are'):
    form.question(example, [example], 'en', 'clm', None)


@pytest.mark.parametrize('answer, kept', [
  ('Unanswerable.', ''), ('"N/A"', ''), ('None', ''), ("I don't know!", ''),
  ('None of them', 'None of them'), ('Paris.', 'Paris.'),
])  # fmt: skip
def test_refusals_are_no_answers(answer, kept):
  """Fault seen: an answer that begins as a refusal does."""
  assert generation.drop_refusal(answer) == kept


def test_pairs_are_asked_in_their_languages(tmp_path):
  """Those of a line, or of the settings; a line without stays without."""
  folder = tmp_path / 'pairs'
  folder.mkdir()
  (folder / 'validation.jsonl').write_text(
    '{"input": "a", "target": "b"}\n'
    '{"input": "c", "target": "d", "source_language": "fr", '
    '"target_language": "it"}\n'
    '{"translation": {"en": "e", "de": "f"}}\n'
  )
  (task,) = registry.suite('pairs', str(tmp_path), target_language='de')
  with pytest.raises(ValueError, match='example 1: .*`source_language`'):
    task.make_questions(None)
  (task,) = registry.suite(
    'pairs', str(tmp_path), source_language='en', target_language='de'
  )
  asked = [(q.prompt, q.truth, q.languages) for q in task.make_questions(None)]
  assert asked == [
    ('a', 'b', ('en', 'de')), ('c', 'd', ('fr', 'it')), ('e', 'f', ('en', 'de'))
  ]  # fmt: skip
  (folder / 'validation.jsonl').write_text('{"input": "a", "target": "b"}\n')
  (task,) = registry.suite('pairs', str(tmp_path))
  (question,) = task.make_questions(None)
  assert question.languages is None and question.shown == {'input': 'a'}
