"""What answers are worth: metrics, their intervals, and published figures.

A metric is two functions. `rows` turns answers and truths into additive counts,
a row for each group of questions; `total` turns a sum of rows into the score.
So the score of a task, of a draw of a bootstrap and of any part of a task are
the same function of different sums, and 1,000 draws are one matrix product.

Scores are in the units they are published in, 0 to 100.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from atm import overlap
from atm.questions import Tokens
from atm.sharding import check_choice


@dataclasses.dataclass(frozen=True)
class Metric:
  """How a task is judged.

  Attributes:
    name: its key in METRICS.
    title: as a reader knows it.
    rows: (answers, truths, groups, language='en', vocabulary=None) -> float64
      [G, M]. Answers are texts or indices of choices, truths as in
      `Question.truth`. Questions of one group make one row, in the order in
      which groups first occur; '' is a group of its own. The language is that
      of the answers; only `spbleu_own` needs the vocabulary.
    total: sums [..., M] -> scores [...]; nan where nothing is judged.
    scale: the score of a perfect run.
    note: what a reader must know before comparing figures, or ''.
  """

  name: str
  title: str
  rows: Callable[..., np.ndarray]
  total: Callable[[np.ndarray], np.ndarray]
  scale: float = 100.0
  note: str = ''


def grouping(groups: Sequence[str]) -> np.ndarray:
  """The row of each question: int [N], in the order of first occurrence."""
  found: dict = {}
  keys = (group or (i,) for i, group in enumerate(groups))
  return np.array([found.setdefault(key, len(found)) for key in keys], int)


def _summed(counts: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
  """`rows` of a metric whose counts of a group are the sum of its questions."""

  def rows(
    answers: Sequence,
    truths: Sequence,
    groups: Sequence[str],
    language: str = 'en',
    vocabulary: Tokens | None = None,
  ) -> np.ndarray:
    if not len(answers) == len(truths) == len(groups) > 0:
      raise ValueError(
        f'{len(answers)} answers, {len(truths)} truths and {len(groups)} '
        'groups: expected as many of each, and at least one'
      )
    each = counts(answers, truths, language, vocabulary)
    where = grouping(groups)
    made = np.zeros((where.max() + 1, each.shape[1]))
    np.add.at(made, where, each)
    return made

  return rows


def mean(sums: np.ndarray) -> np.ndarray:
  """The mean of summed (value, weight): [..., 2] -> [...]; nan without any."""
  value, weight = sums[..., 0], sums[..., 1]
  empty = np.full(np.shape(value), np.nan)
  return np.divide(value, weight, empty, where=weight > 0)


def _f1(right, chosen, wanted) -> np.ndarray:
  """F1 of 0 to 100; 0 where nothing is chosen or wanted, as scikit-learn's."""
  both = chosen + wanted
  return np.divide(200 * right, both, np.zeros_like(both), where=both > 0)


# --- Choices. An answer is the index of a pair.


def _accuracy(answers, truths, language, vocabulary) -> np.ndarray:
  hits = [100.0 * (a == t) for a, t in zip(answers, truths)]
  return np.stack([hits, np.ones(len(hits))], 1)


CB_CLASSES = 3


def _cb(answers, truths, language, vocabulary) -> np.ndarray:
  """(right, chosen, wanted) of each class: [N, 9]."""
  classes = np.arange(CB_CLASSES)
  chosen = np.equal.outer(np.array(answers), classes)
  wanted = np.equal.outer(np.array(truths), classes)
  made = np.stack([chosen & wanted, chosen, wanted], -1)
  return made.reshape(len(made), -1).astype(np.float64)


def _cb_total(sums: np.ndarray) -> np.ndarray:
  """Macro F1 over the classes that are chosen or wanted, as scikit-learn's."""
  parts = np.moveaxis(sums.reshape(*sums.shape[:-1], CB_CLASSES, 3), -1, 0)
  there = (parts[1] + parts[2]) > 0
  return _f1(*parts).sum(-1) / np.maximum(there.sum(-1), 1)


def _multirc(answers, truths, language, vocabulary) -> np.ndarray:
  """(right, chosen, wanted) of 'this answer is true', which is choice 0."""
  chosen, wanted = (np.array(x) == 0 for x in (answers, truths))
  return np.stack([chosen & wanted, chosen, wanted], 1).astype(np.float64)


def _multirc_total(sums: np.ndarray) -> np.ndarray:
  return _f1(*np.moveaxis(sums, -1, 0))


def _all_right(
  answers, truths, groups, language='en', vocabulary=None
) -> np.ndarray:
  """(100 where all answers of the group are right, 1)."""
  sums = _summed(_accuracy)(answers, truths, groups)
  whole = sums[:, 0] == 100 * sums[:, 1]
  return np.stack([100.0 * whole, np.ones(len(whole))], 1)


# --- Texts, by the definitions of the SQuAD 2.0 evaluation

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


def squad_words(text: str) -> list[str]:
  """Words without case, ASCII punctuation and English articles."""
  bare = text.lower().translate(_NO_PUNCTUATION)
  return _ARTICLES.sub(' ', bare).split()


def squad_em(answer: str, truth: str) -> float:
  """100 where the words are the same, else 0."""
  return 100.0 * (squad_words(answer) == squad_words(truth))


def squad_f1(answer: str, truth: str) -> float:
  """F1 of words, 0 to 100; without any on one side, 100 if on both."""
  found, wanted = squad_words(answer), squad_words(truth)
  if not found or not wanted:
    return 100.0 * (found == wanted)
  common = collections.Counter(found) & collections.Counter(wanted)
  return 200 * common.total() / (len(found) + len(wanted))


def _squad(judge: Callable, part: bool | None):
  """Counts of the best over accepted texts, (value, 1).

  Args:
    judge: squad_em or squad_f1.
    part: True judges only questions that have an answer, False those that have
      none; others count (0, 0).
  """

  def counts(answers, truths, language, vocabulary) -> np.ndarray:
    made = np.zeros((len(answers), 2))
    for i, (answer, truth) in enumerate(zip(answers, truths)):
      if part in (None, bool(truth)):
        # A text of articles and punctuation alone is no answer.
        accepted = [t for t in truth if squad_words(t)] or ['']
        made[i] = max(judge(answer, t) for t in accepted), 1
    return made

  return counts


def _record(judge: Callable):
  """The best over accepted texts of the entity chosen, (value, 1)."""

  def counts(answers, truths, language, vocabulary) -> np.ndarray:
    best = [
      max(judge(truth['candidates'][answer], t) for t in truth['answers'])
      for answer, truth in zip(answers, truths)
    ]
    return np.stack([best, np.ones(len(best))], 1)

  return counts


def _exact(answers, truths, language, vocabulary) -> np.ndarray:
  """Is it one of the references, but for runs of whitespace?"""
  one = lambda text: ' '.join(text.split())
  hits = [
    100.0 * (one(answer) in map(one, overlap.references(truth)))
    for answer, truth in zip(answers, truths)
  ]
  return np.stack([hits, np.ones(len(hits))], 1)


STAND_IN = (
  "a stand-in over pieces of the model's own vocabulary: not comparable with "
  'spBLEU, nor with models of another vocabulary'
)


def _metrics() -> list[Metric]:
  make = lambda name, title, counts, total=mean, note='': Metric(
    name, title, _summed(counts), total, note=note
  )
  rouge = lambda kind: functools.partial(overlap.rouge, kind)
  return [
    make('accuracy', 'accuracy', _accuracy),
    make('exact_match', 'exact match', _exact),
    make('cb_f1', 'macro F1', _cb, _cb_total),
    make('multirc_f1a', 'F1 over answers', _multirc, _multirc_total),
    Metric('multirc_em', 'exact match of questions', _all_right, mean),
    make('record_f1', 'F1', _record(squad_f1)),
    make('record_em', 'exact match', _record(squad_em)),
    make('squad_f1', 'F1', _squad(squad_f1, None)),
    make('squad_em', 'exact match', _squad(squad_em, None)),
    make('squad_has_answer_f1', 'F1, answerable', _squad(squad_f1, True)),
    make('squad_no_answer_f1', 'F1, unanswerable', _squad(squad_f1, False)),
    make('rouge1', 'ROUGE-1', rouge('rouge1')),
    make('rouge2', 'ROUGE-2', rouge('rouge2')),
    make('rougeL', 'ROUGE-L', rouge('rougeL')),
    make('spbleu', 'spBLEU', overlap.spbleu, overlap.bleu_total),
    make('spbleu_own', 'BLEU of own pieces', overlap.spbleu_own,
         overlap.bleu_total, STAND_IN),
    make('bleu', 'BLEU', overlap.bleu, overlap.bleu_total),
    make('chrf', 'chrF', overlap.chrf, overlap.chrf_total),
  ]  # fmt: skip


METRICS: dict[str, Metric] = {metric.name: metric for metric in _metrics()}


def get(name: str) -> Metric:
  """The metric of a name.

  Raises:
    ValueError: there is none; says the nearest.
  """
  check_choice('metric', name, METRICS)
  return METRICS[name]


def check(names: Iterable[str], language: str = 'en') -> None:
  """Raises what these metrics would raise, before anything is generated.

  Raises:
    ValueError: a name is unknown.
    MissingData: a file a metric needs is neither there nor in reach.
    ModuleNotFoundError: an extra is not installed; says which.
  """
  for name in names:
    overlap.check(get(name).name, language)


def versions(names: Iterable[str]) -> dict[str, str]:
  """What figures of these metrics depend on, for results.json's versions."""
  found = {name: overlap.version(name) for name in names}
  return {name: text for name, text in found.items() if text}


# --- Intervals and differences


@functools.lru_cache(maxsize=1)  # tasks of a suite have often as many questions
def _draws(G: int, seed: int, samples: int) -> np.ndarray:
  """How often each group is drawn, of G draws: uint8 [samples, G].

  256 draws of one group among more than 255 do not happen (1 in 10^500).
  """
  random, made = np.random.default_rng(seed), []
  at_once = max(1, 2**20 // G)  # 8 MB of draws
  for start in range(0, samples, at_once):
    n = min(at_once, samples - start)
    drawn = random.integers(0, G, (n, G)) + G * np.arange(n)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n * G).reshape(n, G)
    made.append(counts.astype(np.uint8))
  return np.concatenate(made)


def resample(
  rows: np.ndarray, seed: int = 0, samples: int = 1000
) -> np.ndarray:
  """Sums of as many groups drawn with replacement: [G, M] -> [samples, M].

  The draws depend on G, the seed and the number of samples alone.

  Raises:
    ValueError: there are no rows.
  """
  if not len(rows):
    raise ValueError('no rows: expected those of one group or more')
  drawn = _draws(len(rows), seed, samples)
  at_once = max(1, 2**20 // len(rows))
  parts = (drawn[i : i + at_once] for i in range(0, samples, at_once))
  return np.concatenate([part.astype(np.float64) @ rows for part in parts])


def bootstrap(
  rows: np.ndarray,
  total: Callable[[np.ndarray], np.ndarray],
  seed: int = 0,
  samples: int = 1000,
) -> tuple[float, float, float]:
  """The score of rows [G, M], and its 95% interval: (value, low, high).

  Percentiles of scores of groups drawn with replacement. It says how much the
  score hangs on the choice of questions, and nothing of other seeds or prompts.
  Of a few dozen groups it is somewhat too narrow. nan where nothing is judged.
  """
  rows = np.asarray(rows, np.float64)
  low, high = _percentiles(total(resample(rows, seed, samples)))
  return float(total(rows.sum(0))), low, high


def paired(
  rows_a: np.ndarray,
  rows_b: np.ndarray,
  total: Callable[[np.ndarray], np.ndarray],
  seed: int = 0,
  samples: int = 1000,
) -> tuple[float, float, float, float]:
  """How much better b is than a on the same questions.

  A paired bootstrap (Koehn, 2004): both are scored on the same draws.

  Returns:
    The difference b - a, its 95% interval, and p: twice the share of draws on
    the rarer side of zero, ties on both sides, and at least 2 / (samples + 1),
    so many comparisons need many samples.

  Raises:
    ValueError: not rows of the same groups.
  """
  a, b = (np.asarray(rows, np.float64) for rows in (rows_a, rows_b))
  if a.shape != b.shape:
    raise ValueError(
      f'rows of shape {a.shape} and {b.shape}: expected the same groups'
    )
  drawn = resample(np.concatenate([a, b], 1), seed, samples)
  each = total(drawn[:, a.shape[1] :]) - total(drawn[:, : a.shape[1]])
  each = each[~np.isnan(each)]
  rarer = min((each <= 0).sum(), (each >= 0).sum())
  p = min(1.0, 2 * (rarer + 1) / (len(each) + 1))
  difference = float(total(b.sum(0)) - total(a.sum(0)))
  return difference, *_percentiles(each), float(p)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
  values = values[~np.isnan(values)]
  if not len(values):
    return float('nan'), float('nan')
  low, high = np.percentile(values, [2.5, 97.5])
  return float(low), float(high)


def holm(p: Sequence[float]) -> np.ndarray:
  """p of several comparisons, adjusted so that all hold together (Holm, 1979).

  The k-th smallest of n is multiplied by n - k + 1, never below one before it.
  """
  p = np.asarray(p, np.float64)
  order = np.argsort(p, kind='stable')
  factors = np.arange(len(p), 0, -1)
  made = np.empty_like(p)
  made[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
  return made


# --- Published figures of AlexaTM 20B


@dataclasses.dataclass(frozen=True)
class Published:
  """A figure to set beside ours.

  Attributes:
    value: in the metric's unit.
    certainty: 'certain', read in the paper's own text; or 'medium', read in
      secondary sources.
    source: where it was read.
  """

  value: float
  certainty: str
  source: str


_LEADERBOARDS = 'leaderboards that list AlexaTM 20B (arXiv 2208.01448)'
# By task and metric. CB, RTE, WiC and WSC are accuracies: 67.9, 68.6, 53.3 and
# 68.3 are 38 of 56, 190 of 277, 340 of 638 and 71 of 104.
PUBLISHED: dict[tuple[str, str], Published] = {
  (task, metric): Published(value, 'medium', _LEADERBOARDS)
  for task, metric, value in (
    ('superglue_boolq', 'accuracy', 69.4),
    ('superglue_cb', 'accuracy', 67.9),
    ('superglue_copa', 'accuracy', 78.0),
    ('superglue_multirc', 'multirc_f1a', 59.6),
    ('superglue_record', 'record_f1', 88.4),
    ('superglue_rte', 'accuracy', 68.6),
    ('superglue_wic', 'accuracy', 53.3),
    ('superglue_wsc', 'accuracy', 68.3),
    ('superglue', 'average', 69.16),
    ('squadv2', 'squad_f1', 74.29),
    ('mlsum_de', 'rouge2', 33.73),
    ('xsum', 'rouge2', 24.16),
    ('wmt14_en_fr', 'bleu', 38.38),
    ('wmt16_en_de', 'bleu', 35.23),
    ('flores101_ar_ta', 'spbleu', 21.8),
  )
}


def superglue_average(scores: Mapping[str, Mapping[str, Any]]) -> float | None:
  """The mean over the eight tasks, None where one is missing.

  One metric a task, that of PUBLISHED, whose mean is the published average but
  for rounding. The leaderboard of SuperGLUE averages two metrics of CB, MultiRC
  and ReCoRD first, and has tests of its own.

  Args:
    scores: by task and metric, a value or {'value': a value}.
  """
  found = []
  for task, metric in PUBLISHED:
    if task.startswith('superglue_'):
      value = scores.get(task, {}).get(metric)
      value = value.get('value') if isinstance(value, Mapping) else value
      if value is None:
        return None
      found.append(value)
  return sum(found) / len(found)
