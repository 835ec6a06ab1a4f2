"""Metrics of choices and short texts, and sums of counts of all metrics.

Faults seen: groups mixed up or '' made one group; accepted texts without words;
no answer never right; the macro F1 of CB over absent classes; MultiRC's classes
swapped; articles kept.
"""

import math

import numpy as np
import pytest

from atm.evals import metrics

from answer_texts import Letters, score, texts, train_spm, use_spm


@pytest.fixture(scope='module')
def tiny_spm(tmp_path_factory):
  return train_spm(tmp_path_factory.mktemp('sacrebleu'))


@pytest.fixture
def spm(tiny_spm, monkeypatch):
  yield from use_spm(tiny_spm, monkeypatch)


def test_squad_of_worked_examples():
  """F1 by hand; case, punctuation and articles do not count."""
  one = lambda name, answer, truth: score(name, [answer], [truth])
  assert one('squad_em', 'The Eiffel-Tower!', ['eiffeltower']) == 100
  assert one('squad_f1', 'in the city of Paris', ['Paris', 'paris city']) == (
    pytest.approx(100 * 2 * 2 / (4 + 2))
  )
  assert one('squad_f1', 'to to be', ['to be be']) == pytest.approx(200 / 3)
  # No answer: all or nothing.
  assert one('squad_f1', '', []) == 100 == one('squad_em', '', [])
  assert one('squad_f1', 'the', []) == 100
  assert one('squad_f1', 'Paris', []) == 0
  assert one('squad_f1', '', ['Paris']) == 0
  assert one('squad_f1', '', ['the', 'Paris']) == 0
  assert one('squad_f1', '', ['the']) == 100


def test_squad_is_that_of_lm_evals_record(rng):
  theirs = pytest.importorskip('lm_eval.tasks.super_glue.record.t5_utils')
  answers, truths = texts(rng, 200, 6)
  for a, t in zip(answers, truths):
    assert ' '.join(metrics.squad_words(a)) == theirs.normalize_squad(a)
    if metrics.squad_words(t):
      pair = [(a, f'0_{t}')]
      assert metrics.squad_f1(a, t) == pytest.approx(
        100 * theirs.squad_f1_agg(pair)
      )
      assert metrics.squad_em(a, t) == 100 * theirs.squad_em_agg(pair)


def test_squad_splits_into_answerable_and_not():
  answers = ['Paris', '', 'Rome', 'x']
  truths = [['Paris'], ['Oslo'], ['Rome x'], []]
  has, has_not, all_of_them = (
    score(f'squad_{name}', answers, truths)
    for name in ('has_answer_f1', 'no_answer_f1', 'f1')
  )
  assert has == pytest.approx((100 + 0 + 200 / 3) / 3)
  assert has_not == 0
  assert all_of_them == pytest.approx((3 * has + has_not) / 4)
  assert math.isnan(score('squad_no_answer_f1', answers[:3], truths[:3]))


def test_accuracy_and_exact_match():
  assert score('accuracy', [0, 1, 2], [0, 1, 1]) == pytest.approx(200 / 3)
  answers = ['a  b', 'A b', 'c']
  assert score('exact_match', answers, ['a b', 'a b', ['x', 'c']]) == (
    pytest.approx(200 / 3)
  )


def test_labels_count_alike_however_frequent():
  """Worked out by hand: labels a (3 wanted), b (1), c (only chosen), d (none).

  Choices may have another order in each question. Faults seen: by number; a
  label that is never wanted in balanced accuracy.
  """
  truth = lambda labels, right: {'candidates': [*labels], 'answers': [right]}
  truths = [truth('abcd', 'a'), truth('dcba', 'a'), truth('abcd', 'a'),
            truth('abcd', 'b')]  # fmt: skip
  answers = [0, 3, 2, 1]  # a, a, c, b
  assert score('label_accuracy', answers, truths) == 75
  f1 = (2 * 2 / (2 + 3), 1, 0)
  assert score('macro_f1', answers, truths) == pytest.approx(100 * sum(f1) / 3)
  recalls = 2 / 3, 1
  assert score('balanced_accuracy', answers, truths) == pytest.approx(
    100 * sum(recalls) / 2
  )
  with pytest.raises(ValueError, match='an answer'):
    score('macro_f1', [4], truths[:1])


def test_cb_f1_is_scikit_learns_macro(rng):
  learn = pytest.importorskip('sklearn.metrics')
  for n, classes in ((56, 3), (8, 3), (5, 2), (3, 1)):
    answers, truths = rng.integers(0, classes, (2, n))
    want = learn.f1_score(truths, answers, average='macro', zero_division=0)
    found = score('cb_f1', list(answers), list(truths))
    assert found == pytest.approx(100 * want)


def test_multirc_is_that_of_lm_eval(rng):
  """Theirs has 'True' and 'False' as texts, ours choices 0 and 1."""
  theirs = pytest.importorskip('lm_eval.tasks.super_glue.multirc.t5_utils')
  groups = [f'{i // 4}' for i in range(80)]
  truths = rng.integers(0, 2, 80)
  answers = np.where(rng.random(80) < 0.8, truths, 1 - truths)
  labels = ['True', 'False']
  pairs = [
    ([labels[a]], [f'{g}_{labels[t]}'])
    for a, t, g in zip(answers, truths, groups)
  ]
  want_f1 = 100 * theirs.agg_f1([theirs.f1(*p) for p in pairs])
  want_em = 100 * theirs.agg_em([theirs.em(*p) for p in pairs])
  assert 0 < want_em < 100
  given = list(answers), list(truths), groups
  assert score('multirc_f1a', *given) == pytest.approx(want_f1)
  assert score('multirc_em', *given) == pytest.approx(want_em)
  assert len(metrics.METRICS['multirc_f1a'].rows(*given)) == 20


def test_record_takes_the_best_of_the_accepted_texts():
  truth = {
    'candidates': ['Oslo', 'the United States', 'US'],
    'answers': ['United States', 'America'],
  }
  assert score('record_em', [1], [truth]) == 100
  assert score('record_f1', [0], [truth]) == 0
  truth['answers'] = ['States of America', 'Oslo']
  assert score('record_f1', [1], [truth]) == pytest.approx(200 * 1 / (2 + 3))
  assert score('record_em', [1], [truth]) == 0


# Of labels that an input is given.
LABELS = 'label_accuracy', 'macro_f1', 'balanced_accuracy'


def everything(rng):
  """(name, answers, truths) of every metric."""
  answers, truths = texts(rng, 24)
  choices = list(rng.integers(0, 3, 24)), list(rng.integers(0, 3, 24))
  record = [{'candidates': ['a b', 'b c', 'd'], 'answers': ['b', 'c d']}] * 24
  for name in metrics.METRICS:
    if name.startswith('record'):
      yield name, choices[0], record
    elif name in LABELS:
      truths_of = [{'candidates': [*'abc'], 'answers': ['abc'[i]]}
                   for i in choices[1]]  # fmt: skip
      yield name, choices[0], truths_of
    elif name.startswith('squad'):
      yield name, answers, [[t] if i % 2 else [] for i, t in enumerate(truths)]
    elif name.startswith(('accuracy', 'cb', 'multirc')):
      yield name, *choices
    else:
      yield name, answers, truths


def test_parts_add_up_and_totals_take_leading_axes(rng, spm):
  groups = [['', 'a', 'b', 'a'][i % 4] for i in range(24)]
  order = list(metrics.group_indices(groups))
  assert order[:6] == [0, 1, 2, 1, 3, 1]
  for name, answers, truths in everything(rng):
    metric = metrics.METRICS[name]
    rows = metric.rows(answers, truths, groups, 'en', Letters())
    assert rows.shape[0] == 8
    if name != 'multirc_em':
      alone = metric.rows(answers, truths, [''] * 24, 'en', Letters())
      np.testing.assert_allclose(rows.sum(0), alone.sum(0))
    sums = np.stack([[rows.sum(0), rows[:5].sum(0)], [rows[0], rows[1]]])
    each = [[metric.total(s) for s in row] for row in sums]
    np.testing.assert_allclose(metric.total(sums), each)


def test_perfect_answers_score_100(spm):
  record = {'candidates': ['x', 'y'], 'answers': ['y']}
  for name, metric in metrics.METRICS.items():
    text = 'Everyone has the right to rest and leisure.'
    answer, truth = text, text
    if name.startswith('record') or name in LABELS:
      answer, truth = 1, record
    elif name == 'squad_no_answer_f1':
      answer, truth = '', []
    elif name.startswith('squad'):
      truth = [text]
    elif name.startswith(('accuracy', 'cb', 'multirc')):
      answer, truth = 0, 0
    rows = metric.rows([answer], [truth], [''], 'en', Letters())
    assert metric.total(rows[0]) == pytest.approx(100)


def test_what_is_asked_wrongly_is_refused():
  with pytest.raises(ValueError, match='accuracy'):
    metrics.get_metric('acuracy')
  with pytest.raises(ValueError, match='2 answers, 1 truths'):
    metrics.METRICS['accuracy'].rows([1, 2], [1], [''])
  with pytest.raises(ValueError, match='at least one'):
    metrics.METRICS['accuracy'].rows([], [], [])
  with pytest.raises(ValueError, match='reference'):
    score('chrf', ['a'], [[]])


@pytest.mark.parametrize('name', metrics.METRICS)
def test_arguments_are_named(name):
  """Faults seen: characters of a text as answers, wrong types as wrong."""
  rows = metrics.METRICS[name].rows
  chosen = name in LABELS or name.startswith(('acc', 'cb', 'multirc', 'record'))
  truth = 0 if chosen else 'a'
  if 'record' in name or name in LABELS:
    truth = {'candidates': ['a'], 'answers': ['a']}
  for wrong in ('a', None, 5, b'a', [None], [b'a'], [[['a']]], [-1.5]):
    with pytest.raises(ValueError, match='^answers'):
      rows(wrong, [truth], [''])
    with pytest.raises(ValueError, match='^groups'):
      rows([0] if chosen else ['a'], [truth], wrong)


def test_truths_are_named():
  for name, truth in dict(
    accuracy='0', exact_match=5, squad_f1=[None], chrf=b'a', record_f1={}
  ).items():
    answer = 0 if name in ('accuracy', 'record_f1') else 'a'
    with pytest.raises(ValueError, match=r'truths\[0\].* = .*expected'):
      metrics.METRICS[name].rows([answer], [truth], [''])
  truth = {'candidates': ['a'], 'answers': ['a']}
  with pytest.raises(ValueError, match='answer = 1: .* from 0 to 0'):
    metrics.METRICS['record_f1'].rows([1], [truth], [''])
  with pytest.raises(ValueError, match="vocabulary = 'x': expected a tok"):
    metrics.METRICS['exact_match'].rows(['a'], ['a'], [''], 'en', 'x')


def test_one_text_is_a_truth_of_squad():
  """Fault seen: each of its characters accepted."""
  for answer, right in (('blue cat', 100), ('b', 0)):
    assert score('squad_em', [answer], ['blue cat']) == right


def test_versions_are_those_of_libraries_in_use():
  found = metrics.metric_versions(['accuracy', 'chrf', 'squad_f1'])
  assert list(found) == ['chrf'] and found['chrf'].startswith('sacrebleu ')
