"""Which answers are read, and what their cards hold.

Faults seen: wrong answers ranked as right; sums of log-probabilities ranked for
means; the worst shown as the best.
"""

import numpy as np
import pytest

from atm.evals import metrics as metrics_lib
from atm.evals import results as results_lib
from atm.pages import answer_cards

from synthetic import choice, draw_macro, generated


def test_the_worst_are_wrong_by_most_and_the_best_right_by_most(
  folder, results
):
  (task,) = [t for t in results['tasks'] if t['name'] == 'xnli_en']
  lines = results_lib.read_predictions(folder, task)
  found = answer_cards.select_answers(task, lines)
  assert [why for why, _, _ in found] == [
    'worst', 'worst', 'in the middle', 'best', 'best'
  ]  # fmt: skip
  worths = [worth for _, worth, _ in found]
  assert worths == sorted(worths)
  for _, worth, line in found:
    per_token = np.divide(line['log_probabilities'], line['tokens'])
    first, second = np.sort(per_token)[::-1][:2]
    assert abs(worth) == pytest.approx(first - second, abs=1e-6)
    assert (worth > 0) == (line['answer'] == line['truth'])


def test_of_texts_the_metric_decides(folder, results):
  (task,) = [t for t in results['tasks'] if t['name'] == 'flores101_ar_en']
  assert answer_cards.ranking_metric(task) == 'chrf'
  lines = results_lib.read_predictions(folder, task)
  _, worst, line = answer_cards.select_answers(task, lines)[0]
  rows = metrics_lib.METRICS['chrf'].rows(
    [line['answer']], [line['truth']], ['']
  )
  assert worst == pytest.approx(metrics_lib.METRICS['chrf'].total(rows[0]))
  assert worst == min(answer_cards.answer_quality(task, lines))


def test_few_answers_are_not_shown_twice(results):
  (task,) = [t for t in results['tasks'] if t['name'] == 'squadv2']
  task = task | {'statistics': {'squad_f1': [[100, 1], [0, 1]]}}
  lines = [generated(i, '', 'x', ['x'], {}) for i in range(2)]
  found = answer_cards.select_answers(task, lines)
  assert [line['id'] for _, _, line in found] == ['1', '0']


def test_a_long_beginning_of_all_choices_is_left_out():
  start = 'The committee met on Monday and decided that '
  texts = [start + 'it rains', start + 'it pours']
  assert answer_cards.without_shared_start(texts) == ['… rains', '… pours']
  assert answer_cards.without_shared_start(['True', 'False']) == [
    'True',
    'False',
  ]


CARD_TASK = {
  'kind': 'score', 'normalize': 'sum', 'source_language': None,
  'language': 'ar', 'scores': {'accuracy': None},
}  # fmt: skip


def card_of(line, task=CARD_TASK):
  card = answer_cards.answer_card(task, 'worst', -1.5, line)
  return draw_macro('cards', 'answer_card(card)', card=card)


def test_of_many_choices_the_likeliest_and_the_right_ones_are_shown():
  pairs = [['q', f'c{i}'] for i in range(9)]
  line = choice(np.random.default_rng(0), 3, 0, pairs, 8, {'premise': 'p'})
  line['log_probabilities'] = [-1.0 - i for i in range(9)]
  line['answer'] = 0
  drawn = card_of(line)
  assert drawn.text.split('as it was sent')[0].split() == [
    'worst:', 'wrong', 'by', '1.50', '·', 'question', '3',
    'premise\u200ep', 'choices,', 'nats', 'c0', 'chosen', '−1.00', 'c1',
    '−2.00', 'c2', '−3.00', 'c3', '−4.00', 'c4', '−5.00', 'c5', '−6.00', 'c8',
    'right', '−9.00',
  ]  # fmt: skip
  assert 'choice 8, encoder' in drawn.text and '8, decoder' in drawn.text


def test_of_texts_the_beginning_is_shown_and_the_prompt_whole():
  line = generated(0, 'p' * 1300, '', ['w', 'w', 'v'], {'text': 'x' * 1300})
  task = CARD_TASK | {'kind': 'generate', 'scores': {'rouge1': None}}
  drawn = card_of(line, task)
  assert 'x' * 1200 + ' …' in drawn.text and 'x' * 1201 not in drawn.text
  assert 'p' * 1300 in drawn.text
  assert drawn.text.split('wanted, one of')[1].split()[:2] == [
    '\u200ew', '\u200ev'
  ]  # fmt: skip
  assert 'nothing' in drawn.text.split('wanted')[0]  # the answer
  unanswerable = card_of(line | {'answer': 'a', 'truth': []}, task).text
  assert unanswerable.split('wanted')[1].split()[0] == 'nothing'
