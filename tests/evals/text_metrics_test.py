"""Metrics of texts against the libraries' own corpus functions.

Faults seen: smoothing that does not halve with each order; the brevity penalty
of too long answers; orders of chrF that one side lacks; marks of Indic scripts
dropped from words; no stemmer; Japanese not cut; only the first reference; a
broken SentencePiece model let through.
"""

import hashlib
import json
import os

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from atm.evals import metrics, text_metrics
from atm.evals.task import MissingData

from answer_texts import Letters, score, texts, train_spm, use_spm

sacrebleu = pytest.importorskip('sacrebleu')
rouge_scorer = pytest.importorskip('rouge_score.rouge_scorer')


@pytest.fixture(scope='module')
def tiny_spm(tmp_path_factory):
  return train_spm(tmp_path_factory.mktemp('sacrebleu'))


@pytest.fixture
def spm(tiny_spm, monkeypatch):
  yield from use_spm(tiny_spm, monkeypatch)


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


# Of each language a text that a tokenizer changes: by NFKC, double spaces, a
# newline, joiners, marks apart, and characters that no vocabulary here has.
with open(f'{os.path.dirname(__file__)}/../testdata/odd_texts.json') as f:
  ODD = json.load(f)
TEXTS = (
  'exact_match', 'squad_f1', 'squad_em', 'squad_has_answer_f1', 'rouge1',
  'rouge2', 'rougeL', 'spbleu', 'spbleu_own', 'bleu', 'chrf',
)  # fmt: skip


@pytest.mark.parametrize('language', ODD)
@pytest.mark.parametrize('kind', ['words', 'byte_words'])
def test_the_right_answer_has_the_whole_score(request, kind, language, spm):
  """What the tokenizer makes of the reference, in whatever it is framed.

  Faults seen: '…' against '...'; an unknown character, which answers hold as
  '⁇', wrong; one side normalised alone; only the first reference."""
  words, text = request.getfixturevalue(kind), ODD[language]
  answer = ' '.join(words.decode(words.encode(text)).split())
  assert answer != ' '.join(text.split())
  for name in TEXTS:
    if name == 'bleu' and language == 'ja':
      continue  # which cuts words by another package
    truths = [[text], ['x', text]] if name != 'spbleu' else [text] * 2
    given = dict(language=language, vocabulary=words)
    found = score(name, [answer] * 2, truths, **given)
    assert found == pytest.approx(100), name
    if name != 'exact_match':
      continue
    assert score(name, [answer] * 2, truths, language=language) == 0
    assert score(name, [text] * 2, truths, **given) == 100
    wrong = [answer, f'{answer} a']
    assert score(name, wrong, truths, **given) == pytest.approx(50)


@pytest.mark.parametrize('kind', ['words', 'byte_words'])
def test_a_written_text_is_written_alike(request, kind):
  words = request.getfixturevalue(kind)
  write = lambda text: text_metrics.written_text(text, words)

  @hypothesis.settings(max_examples=50)
  @hypothesis.given(st.text())
  def check(text):
    once = words.decode(words.encode(text))
    assert write(once) == write(text) == write(write(text))
    assert write(' '.join(once.split())).split() == write(text).split()

  check()
  assert write(' a…  b\n') == 'a... b'


@pytest.mark.parametrize('name', ['bleu', 'spbleu', 'chrf'])
def test_a_vocabulary_changes_no_score_of_texts_that_it_keeps(
  name, spm, rng, words
):
  """So figures are sacrebleu's, to be set beside published ones."""
  answers, truths = (
    [text.replace('!', '').replace('k', 'h') for text in side]
    for side in texts(rng, 40)
  )
  for text in answers + truths:
    assert text_metrics.written_text(text, words) == text
  want = expected(name, answers, [truths])
  found = score(name, answers, truths, vocabulary=words)
  assert 0 < found == pytest.approx(want, abs=1e-10)


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


@pytest.mark.parametrize(
  'name', ['spbleu', 'spbleu_own', 'bleu', 'chrf', 'rouge1', 'rougeL']
)
def test_a_library_that_is_missing_is_named(name, monkeypatch):
  def import_module(name):
    raise ModuleNotFoundError(name)

  for cache in (text_metrics._spbleu, text_metrics._bleu_of_language):
    cache.cache_clear()
  monkeypatch.setattr(text_metrics.importlib, 'import_module', import_module)
  with pytest.raises(ModuleNotFoundError, match=r'needs .*atm-jax\[eval\]'):
    text_metrics.check_installed(name, 'en')
  text_metrics.check_installed('squad_f1', 'en')


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
