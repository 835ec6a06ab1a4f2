"""Metrics against the libraries' own corpus functions, and their intervals.

Faults seen: smoothing that does not halve with each order; the brevity penalty
of too long answers; orders of chrF that one side lacks; marks of Indic scripts
dropped from words; no stemmer; Japanese not cut; only the first reference; a
broken SentencePiece model let through; groups mixed up or '' made one group;
accepted texts without words; no answer never right; the macro F1 of CB over
absent classes; MultiRC's classes swapped; articles kept; draws without
replacement; a 90% interval; a one-sided p; other draws for either side; signs
of differences; Holm's correction without its maximum.
"""

import hashlib
import math
import time

import numpy as np
import pytest

from atm.evals import bootstrap, metrics, published, text_metrics
from atm.evals.task import MissingData

sacrebleu = pytest.importorskip('sacrebleu')
rouge_scorer = pytest.importorskip('rouge_score.rouge_scorer')

WORDS = (
  'the a cat sat on mat near river while children were reading old books '
  'about ships and stars in winter, under lamps; nobody spoke. It was late!'
).split()


def texts(rng, n, length=14):
  """Sentences, and their like with some words changed."""
  right = [list(rng.choice(WORDS, rng.integers(1, length))) for _ in range(n)]
  wrong = [
    [w if rng.random() < 0.7 else str(rng.choice(WORDS)) for w in words]
    for words in right
  ]
  return [' '.join(w) for w in wrong], [' '.join(w) for w in right]


@pytest.fixture(scope='module')
def tiny_spm(tmp_path_factory):
  """A folder as sacrebleu's, with a tiny model in place of Flores-101's."""
  import sentencepiece

  folder = tmp_path_factory.mktemp('sacrebleu')
  (folder / 'models').mkdir()
  model = folder / 'models' / 'sacrebleu_tokenizer_spm'
  rng = np.random.default_rng(1)
  lines = texts(rng, 200)[1]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_prefix=str(model), vocab_size=60,
    hard_vocab_limit=False, minloglevel=2,
  )  # fmt: skip
  return folder


@pytest.fixture
def spm(tiny_spm, monkeypatch):
  where = 'sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR'
  monkeypatch.setattr(where, str(tiny_spm))
  yield tiny_spm
  text_metrics._spbleu.cache_clear()
  for kept in (tiny_spm / 'models').glob('*.sha256'):
    kept.unlink()


class Letters:
  """A vocabulary of letters."""

  def encode(self, text):
    return list(map(ord, text))


def score(name, answers, truths, groups=None, **others):
  metric = metrics.METRICS[name]
  rows = metric.rows(answers, truths, groups or [''] * len(answers), **others)
  assert rows.dtype == np.float64
  return float(metric.total(rows.sum(0)))


# --- sacrebleu


def expected(name, answers, columns):
  if name == 'chrf':
    return sacrebleu.corpus_chrf(answers, columns).score
  tokenize = {'bleu': '13a', 'spbleu': 'flores101'}[name]
  return sacrebleu.corpus_bleu(answers, columns, tokenize=tokenize).score


@pytest.mark.parametrize('name', ['bleu', 'spbleu', 'chrf'])
@pytest.mark.parametrize('n', [1, 2, 60])
def test_sacrebleus_corpus_score(name, n, spm, rng):
  for _ in range(10):
    answers, truths = texts(rng, n)
    want = expected(name, answers, [truths])
    assert score(name, answers, truths) == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize('name', ['bleu', 'chrf'])
def test_several_references_in_different_numbers(name, rng):
  answers, first = texts(rng, 30)
  second = texts(rng, 30)[1]
  truths = [
    [a, b] if i % 3 else [a] for i, (a, b) in enumerate(zip(first, second))
  ]
  other = [b if i % 3 else None for i, b in enumerate(second)]
  want = expected(name, answers, [first, other])
  assert score(name, answers, truths) == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize('name', ['bleu', 'spbleu', 'chrf'])
@pytest.mark.parametrize(
  'answers, truths',
  [
    ([''], ['a cat sat on the mat']),  # nothing is written
    (['xyz'], ['a cat sat on the mat']),  # nothing is right
    (['a cat'], ['a cat sat on the mat']),  # too short for 4-grams
    (['a dog ran off again'], ['a cat sat on the mat']),  # no 2-gram is right
    (['a cat sat on the mat'] * 2, ['a cat sat on the mat'] * 2),
    (['', 'the cat sat on a mat'], ['a cat sat', 'a cat sat on the mat']),
  ],
)
def test_ends_of_the_scale(name, answers, truths, spm):
  want = expected(name, answers, [truths])
  assert score(name, answers, truths) == pytest.approx(want, abs=1e-10)


def test_totals_are_sacrebleus_of_any_counts(rng):
  bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
  for top in (2, 5, 500):
    found = rng.integers(0, top, (300, 4))
    right = np.minimum(found, rng.integers(0, top, (300, 4)))
    lengths = rng.integers(0, 4 * top, (300, 2))
    sums = np.concatenate([lengths, right, found], 1).astype(np.float64)
    want = [bleu._compute_score_from_stats(list(s)).score for s in sums]
    np.testing.assert_allclose(text_metrics.bleu_total(sums), want, rtol=1e-12)
    parts = rng.integers(0, top, (300, 6, 3))
    parts[..., 2] = np.minimum(parts[..., 2], parts[..., :2].min(-1))
    sums = parts.reshape(300, 18).astype(np.float64)
    want = [chrf._compute_score_from_stats(list(s)).score for s in sums]
    np.testing.assert_allclose(text_metrics.chrf_total(sums), want, rtol=1e-12)


def test_without_the_model_it_says_what_to_put_where(tmp_path, monkeypatch):
  where = 'sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR'
  monkeypatch.setattr(where, str(tmp_path))

  asked = []

  def unreachable(url, path, *_):
    asked.append(url)
    raise OSError('no network')

  what = 'sacrebleu.tokenizers.tokenizer_spm.download_file'
  monkeypatch.setattr(what, unreachable)
  text_metrics._spbleu.cache_clear()
  path = tmp_path / 'models' / 'sacrebleu_tokenizer_spm.model'
  for judge in (
    lambda: metrics.check_metrics(['chrf', 'spbleu']),
    lambda: score('spbleu', ['a'], ['a']),
  ):
    with pytest.raises(MissingData, match='https://.*put it at') as error:
      judge()
    assert str(path) in str(error.value) and 'SACREBLEU' in str(error.value)
  assert len(asked) == 1  # the network is not waited for again
  path.parent.mkdir()
  path.write_bytes(b'<html>404</html>')
  text_metrics._spbleu.cache_clear()
  with pytest.raises(MissingData, match='is no SentencePiece model'):
    metrics.check_metrics(['spbleu'])
  assert 'spbleu' in metrics.metric_versions(['spbleu', 'accuracy'])


def test_the_model_of_flores_200_is_refused(spm, monkeypatch):
  path = spm / 'models' / 'sacrebleu_tokenizer_spm.model'
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.setattr(text_metrics, 'FLORES200', digest)
  with pytest.raises(MissingData, match="Flores-200's model"):
    metrics.check_metrics(['spbleu'])


def test_the_file_first_used_is_the_one_for_good(spm):
  """Fault seen: another file taken, and its checksum written over."""
  path = spm / 'models' / 'sacrebleu_tokenizer_spm.model'
  kept, whole = path.with_name(path.name + '.sha256'), path.read_bytes()
  metrics.check_metrics(['spbleu'])
  digest = hashlib.sha256(whole).hexdigest()
  assert kept.read_text() == f'{digest}  {path.name}\n'
  text_metrics._spbleu.cache_clear()
  metrics.check_metrics(['spbleu'])
  kept.write_text('0' * 64 + f'  {path.name}\n')
  for _ in range(2):
    text_metrics._spbleu.cache_clear()
    with pytest.raises(MissingData, match=f'SHA-256 {digest}, but .* says 000'):
      metrics.check_metrics(['spbleu'])


def test_the_file_in_use_is_on_record(spm):
  path = spm / 'models' / 'sacrebleu_tokenizer_spm.model'
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  found = metrics.metric_versions(['spbleu', 'chrf', 'rouge2', 'squad_f1'])
  assert digest in found['spbleu'] and set(found) == {
    'spbleu',
    'chrf',
    'rouge2',
  }


def test_the_stand_in_says_that_it_is_one():
  metric = metrics.METRICS['spbleu_own']
  assert 'not comparable' in metric.note
  truths = ['Everyone has the right to rest and leisure.'] * 3
  answers = ['Everyone has the right to rest.', 'All may rest.', truths[0]]
  cut = lambda x: [' '.join(str(ord(c)) for c in t) for t in x]
  want = sacrebleu.corpus_bleu(cut(answers), [cut(truths)], tokenize='none')
  found = score('spbleu_own', answers, truths, vocabulary=Letters())
  assert found == pytest.approx(want.score, abs=1e-10)
  with pytest.raises(ValueError, match='needs vocabulary'):
    score('spbleu_own', answers, truths)


# --- ROUGE


@pytest.mark.parametrize('name', ['rouge1', 'rouge2', 'rougeL'])
def test_english_rouge_is_rouge_scores_with_its_stemmer(name, rng):
  answers, truths = texts(rng, 20)
  scorer = rouge_scorer.RougeScorer([name], use_stemmer=True)
  each = [scorer.score(t, a)[name].fmeasure for a, t in zip(answers, truths)]
  assert score(name, answers, truths) == pytest.approx(100 * np.mean(each))
  assert score('rouge1', ['Cats were running!'], ['cat runs']) > 50


@pytest.mark.parametrize('name', ['rouge1', 'rouge2', 'rougeL'])
def test_rouge_of_any_script_is_that_of_its_words_in_ascii(name, rng):
  """Words renamed one to one: the script must not matter."""
  latin = [f'w{chr(97 + i)}{chr(97 + i)}' for i in range(12)]
  for language, letters, sign in (
    ('hi', 'कखगघचछजझटठडढ', 'ि'),
    ('ta', 'கஙசஞடணதநபமயர', 'ி'),
    ('ar', 'ابتثجحخدذرزس', 'ّ'),
  ):
    other = {word: c + sign for word, c in zip(latin, letters, strict=True)}
    a = [rng.choice(latin, 9) for _ in range(5)]
    b = [np.where(rng.random(9) < 0.6, x, rng.choice(latin, 9)) for x in a]
    write = lambda x, f: ['، '.join(map(f, t)) + '।' for t in x]
    scorer = rouge_scorer.RougeScorer([name])
    want = np.mean([
      scorer.score(' '.join(t), ' '.join(o))[name].fmeasure
      for t, o in zip(a, b)
    ])  # fmt: skip
    found = score(
      name, write(b, other.get), write(a, other.get), language=language
    )
    assert found == pytest.approx(100 * want)
  assert want > 0


def test_words():
  assert text_metrics.rouge_words('Die Straße, 3x Über-Mut') == [
    'die', 'straße', '3x', 'über', 'mut'
  ]  # fmt: skip
  assert text_metrics.rouge_words('हिन्दी में।') == ['हिन्दी', 'में']
  assert text_metrics.rouge_words('東京タワーは高い。ABC') == [
    *'東京タワーは高い',
    'abc',
  ]


def test_the_best_of_several_references_counts():
  truths = [['nothing like it', 'a cat sat']]
  assert score('rouge2', ['a cat sat'], truths) == 100


# --- SQuAD 2.0


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


# --- Choices


def test_accuracy_and_exact_match():
  assert score('accuracy', [0, 1, 2], [0, 1, 1]) == pytest.approx(200 / 3)
  answers = ['a  b', 'A b', 'c']
  assert score('exact_match', answers, ['a b', 'a b', ['x', 'c']]) == (
    pytest.approx(200 / 3)
  )


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


# --- Sums


def everything(rng):
  """(name, answers, truths) of every metric."""
  answers, truths = texts(rng, 24)
  choices = list(rng.integers(0, 3, 24)), list(rng.integers(0, 3, 24))
  record = [{'candidates': ['a b', 'b c', 'd'], 'answers': ['b', 'c d']}] * 24
  for name in metrics.METRICS:
    if name.startswith('record'):
      yield name, choices[0], record
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
    assert rows.shape[0] == 8 and metric.scale == 100
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
    if name.startswith('record'):
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


# --- Intervals


def test_the_interval_holds_the_truth_19_times_of_20():
  random, held = np.random.default_rng(3), 0
  for _ in range(300):
    hits = 100.0 * (random.random(250) < 0.7)
    rows = np.stack([hits, np.ones(250)], 1)
    value, low, high = bootstrap.bootstrap_interval(
      rows, metrics.weighted_mean, samples=500
    )
    assert low <= value <= high and value == hits.mean()
    held += low <= 70 <= high
  assert 0.91 <= held / 300 <= 0.98


def test_a_mean_has_the_interval_of_its_standard_error(rng):
  rows = np.stack([rng.normal(50, 10, 400), np.ones(400)], 1)
  value, low, high = bootstrap.bootstrap_interval(
    rows, metrics.weighted_mean, samples=4000
  )
  error = rows[:, 0].std() / np.sqrt(400)
  assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_groups_are_drawn_whole(rng):
  """Ten equal answers a group: the interval of 40 answers, not of 400."""
  hits = np.repeat(rng.integers(0, 2, 40), 10)
  width = lambda groups: np.ptp(
    bootstrap.bootstrap_interval(
      metrics.METRICS['accuracy'].rows(list(hits), [1] * 400, groups),
      metrics.weighted_mean,
    )[1:]
  )
  grouped = width([str(i // 10) for i in range(400)])
  assert grouped > 2.5 * width([''] * 400)


def test_draws_hang_on_the_seed_alone(rng):
  rows = rng.random((3000, 2))
  draw = lambda **given: bootstrap.resample(rows, **given)
  np.testing.assert_array_equal(draw(), draw())
  assert not np.array_equal(draw(), draw(seed=1))
  assert draw(samples=800).shape == (800, 2)
  # Every group is drawn as often as any other.
  ones = np.eye(7)
  drawn = bootstrap.resample(ones, samples=2000)
  np.testing.assert_array_equal(drawn.sum(1), 7)
  np.testing.assert_allclose(drawn.mean(0), 1, atol=0.1)
  with pytest.raises(ValueError, match='no rows'):
    bootstrap.bootstrap_interval(np.zeros((0, 2)), metrics.weighted_mean)


def test_nothing_judged_has_no_interval():
  assert all(
    map(
      math.isnan,
      bootstrap.bootstrap_interval(np.zeros((3, 2)), metrics.weighted_mean),
    )
  )


def test_paired_finds_a_difference_and_no_other():
  random = np.random.default_rng(5)
  rows = lambda p: np.stack([100.0 * (random.random(500) < p), np.ones(500)], 1)
  a = rows(0.6)
  better = a.copy()
  better[np.flatnonzero(a[:, 0] == 0)[:40], 0] = 100  # on the same questions
  difference, low, high, p = bootstrap.paired_bootstrap(
    a, better, metrics.weighted_mean
  )
  assert difference == pytest.approx(8) and low > 0 and p < 0.01
  assert bootstrap.paired_bootstrap(better, a, metrics.weighted_mean)[
    0
  ] == pytest.approx(-8)
  assert bootstrap.paired_bootstrap(a, a, metrics.weighted_mean) == (0, 0, 0, 1)
  found = [
    bootstrap.paired_bootstrap(rows(0.6), rows(0.6), metrics.weighted_mean)[3]
    for _ in range(200)
  ]
  assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.1
  with pytest.raises(ValueError, match='same groups'):
    bootstrap.paired_bootstrap(a, a[:10], metrics.weighted_mean)


def test_p_is_two_sided():
  """That of a z-test, for the mean of many differences."""
  random = np.random.default_rng(8)
  for z in (0.5, 1.5, -1.5):
    change = random.normal(0, 1, 400)
    change += z / 20 * change.std() - change.mean()
    a = np.stack([random.normal(50, 9, 400), np.ones(400)], 1)
    b = a + np.stack([change, np.zeros(400)], 1)
    p = bootstrap.paired_bootstrap(a, b, metrics.weighted_mean, samples=8000)[3]
    assert p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.02)


def test_pairs_see_more_than_two_intervals_do():
  """A small gain on the same hard and easy questions."""
  random = np.random.default_rng(6)
  hard = random.normal(50, 20, 300)
  rows = lambda shift: np.stack(
    [hard + shift + random.normal(0, 2, 300), np.ones(300)], 1
  )
  a, b = rows(0), rows(1)
  assert (
    bootstrap.bootstrap_interval(b, metrics.weighted_mean)[1]
    < bootstrap.bootstrap_interval(a, metrics.weighted_mean)[2]
  )
  assert bootstrap.paired_bootstrap(a, b, metrics.weighted_mean)[3] < 0.01


def test_holm():
  found = bootstrap.holm_adjust([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
  assert bootstrap.holm_adjust([0.9, 0.8]).max() == 1 and not len(
    bootstrap.holm_adjust([])
  )


def test_132_directions_take_seconds(rng):
  rows = rng.integers(0, 30, (1012, 10)).astype(np.float64)
  rows[:, 2:6] = np.minimum(rows[:, 2:6], rows[:, 6:])
  start = time.perf_counter()
  for _ in range(13):
    bootstrap.bootstrap_interval(rows, text_metrics.bleu_total)
  assert time.perf_counter() - start < 3  # of a tenth of the directions


# --- Published figures


def test_published_figures_name_metrics_and_average_to_theirs():
  for (task, metric), found in published.PUBLISHED.items():
    assert metric in metrics.METRICS or (task, metric) == (
      'superglue',
      'average',
    )
    assert found.certainty in ('certain', 'medium') and found.source
  theirs = {}
  for (task, metric), found in published.PUBLISHED.items():
    theirs.setdefault(task, {})[metric] = {'value': found.value}
  average = published.superglue_average(theirs)
  assert average == pytest.approx(69.16, abs=0.05)
  del theirs['superglue_wic']
  assert published.superglue_average(theirs) is None
