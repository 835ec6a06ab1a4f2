"""Scores of a task's answers, and metrics that cannot be computed."""

import dataclasses
import functools
import hashlib

import pytest

from atm.evals import metrics, scoring
from atm.evals.task import MissingData, Question, Task

from eval_runs import go_offline

QUESTIONS = [
  Question('a', 1, pairs=(('x', 'no'), ('x', 'yes'))),
  Question('b', 0, pairs=(('y', 'no'), ('y', 'yes'))),
]


def task(*names: str) -> Task:
  return Task('t', 'set', 'en', names, lambda tokenizer: QUESTIONS)


def answered(*answers: int) -> list[dict]:
  return [{'answer': answer, 'cut': i == 0} for i, answer in enumerate(answers)]


def test_an_entry_of_results():
  """Faults seen: truths for answers; rows summed; cuts not counted."""
  entry = scoring.score_task(
    task('accuracy'), QUESTIONS, answered(1, 1), 9, None, seed=0
  )
  assert entry['scores']['accuracy']['value'] == 50
  assert entry['statistics'] == {'accuracy': [[100, 1], [0, 1]]}
  assert (entry['questions'], entry['of'], entry['cut']) == (2, 9, 1)
  assert entry['kind'] == 'score'
  assert [x['answer'] for x in entry['predictions']] == [1, 1]
  hashes = [x['prompt_hash'] for x in entry['predictions']]
  assert len(set(hashes)) == 2 and all(len(x) == 16 for x in hashes)


def test_hashes_of_prompts_are_those_of_earlier_results():
  """Of the request's JSON in UTF-8, so that results stay comparable."""
  question = Question('a', ['ja'], prompt='Wo ist 東京?')
  entry = scoring.score_task(
    task('squad_em'), [question], [{'answer': 'ja', 'cut': False}], 1, None,
    seed=0,
  )  # fmt: skip
  of = lambda text: hashlib.sha256(text.encode()).hexdigest()
  whole = of('{"prompt": "Wo ist 東京?"}')
  assert entry['predictions'][0]['prompt_hash'] == whole[:16]
  assert entry['prompt_hash'] == of(f'["{whole}"]')
  assert entry['predictions'][0]['truth'] == ['ja']


def test_nothing_judged_has_no_score():
  """Fault seen: NaN, which is no JSON."""
  questions = [Question('a', ['Paris'], prompt='Where?')]
  entry = scoring.score_task(
    task('squad_no_answer_f1'), questions,
    [{'answer': 'Oslo', 'cut': False}], 1, None, seed=0,
  )  # fmt: skip
  score = entry['scores']['squad_no_answer_f1']
  assert score == {'value': None, 'low': None, 'high': None}
  assert entry['kind'] == 'generate'


def test_references_are_counted_that_no_answer_can_equal(words):
  """Faults seen: white space counted as a change; references that are cut at
  the delimiter, read otherwise or too long for an answer not counted."""
  from atm_tasks.evaluation import generation

  def counted(truths, answer=None, **fields):
    questions = [Question(str(i), x, prompt='p') for i, x in enumerate(truths)]
    made = Task('t', 's', 'en', ('bleu',), list, answer, **fields)
    rows = [{'answer': 'a', 'cut': False}] * len(truths)
    entry = scoring.score_task(
      dataclasses.replace(made, metrics=()), questions, rows, 9, words, 0
    )
    return tuple(entry['references'].values())

  assert counted(['Every  one', 'one\n']) == (0, 0, 0)
  assert counted(['Every…', ['one', 'ﬁve'], '漢']) == (3, 1, 0)
  assert counted(['one; two', ['one; two', 'one']], stop=(';',)) == (0, 0, 1)
  assert counted(['one ' * 9], max_tokens=4) == (0, 0, 1)
  squad = generation.SQUADV2_FORMAT
  read = functools.partial(squad.answer, mode='clm')
  assert counted([['none'], ['one'], []], read, stop=squad.stop) == (0, 0, 1)
  pairs = functools.partial(generation.PairFormat().answer, mode='denoise')
  assert counted(['one; two'], pairs, mode='denoise') == (0, 0, 0)


def test_references_behind_a_prompt_are_read_behind_it(words):
  from atm_tasks.evaluation import generation

  squad = generation.TRANSLATION_FORMAT
  read = functools.partial(squad.answer, mode='denoise')
  prompt = 'Sentence: eins; Translation in English:'
  questions = [Question(x, x, prompt=prompt) for x in ('one', 'one; two')]
  asked = Task('t', 's', 'en', (), list, read, mode='denoise', max_tokens=99)
  assert scoring.count_references(asked, questions, words)['out_of_reach'] == 1


def test_choices_have_no_references(words):
  assert scoring.count_references(task('accuracy'), QUESTIONS, words) is None


@pytest.fixture
def offline(tmp_path, monkeypatch):
  yield from go_offline(tmp_path, monkeypatch)


def test_a_stand_in_takes_the_place_of_spbleu(offline):
  pytest.importorskip('sacrebleu')
  names, notes = scoring.resolve_metrics(task('spbleu', 'chrf'))
  assert names == ['spbleu_own', 'chrf'] and 'put it at' in notes[0]


def test_other_metrics_have_none(monkeypatch):
  """Faults seen: a stand-in for any metric; a missing library as a note."""

  def raise_(error):
    def check(names, language):
      raise error

    monkeypatch.setattr(metrics, 'check_metrics', check)

  raise_(MissingData('no file'))
  assert scoring.resolve_metrics(task('chrf')) == ([], ['no file'])
  raise_(ModuleNotFoundError("pip install 'atm-jax[eval]'"))
  with pytest.raises(ValueError, match='pip install'):
    scoring.resolve_metrics(task('chrf'))
