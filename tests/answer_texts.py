"""Answers and references for tests of metrics."""

import numpy as np

from atm.evals import metrics, text_metrics

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


class Letters:
  """A vocabulary of letters."""

  def encode(self, text):
    return list(map(ord, text))

  def decode(self, ids):
    return ''.join(map(chr, ids))


def score(name, answers, truths, groups=None, **others):
  metric = metrics.METRICS[name]
  rows = metric.rows(answers, truths, groups or [''] * len(answers), **others)
  assert rows.dtype == np.float64
  return float(metric.total(rows.sum(0)))


def train_spm(folder):
  """Makes sacrebleu's folder, with a tiny model in place of Flores-101's."""
  import sentencepiece

  (folder / 'models').mkdir()
  model = folder / 'models' / 'sacrebleu_tokenizer_spm'
  rng = np.random.default_rng(1)
  lines = texts(rng, 200)[1]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_prefix=str(model), vocab_size=60,
    hard_vocab_limit=False, minloglevel=2,
  )  # fmt: skip
  return folder


def use_spm(folder, monkeypatch):
  """Lets sacrebleu find a folder of `train_spm` until the generator ends."""
  where = 'sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR'
  monkeypatch.setattr(where, str(folder))
  yield folder
  text_metrics._spbleu.cache_clear()
  for kept in (folder / 'models').glob('*.sha256'):
    kept.unlink()
