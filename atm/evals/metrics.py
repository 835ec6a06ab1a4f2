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
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from atm.evals import text_metrics
from atm.evals.task import Tokens
from atm.messages import check_choice


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


def group_indices(groups: Sequence[str]) -> np.ndarray:
  """The row of each question: int [N], in the order of first occurrence."""
  found: dict = {}
  keys = (group or (i,) for i, group in enumerate(groups))
  return np.array([found.setdefault(key, len(found)) for key in keys], int)


def _sum_by_group(
  counts: Callable[..., np.ndarray],
) -> Callable[..., np.ndarray]:
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
    where = group_indices(groups)
    made = np.zeros((where.max() + 1, each.shape[1]))
    np.add.at(made, where, each)
    return made

  return rows


def weighted_mean(sums: np.ndarray) -> np.ndarray:
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
  sums = _sum_by_group(_accuracy)(answers, truths, groups)
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
    100.0 * (one(answer) in map(one, text_metrics.reference_texts(truth)))
    for answer, truth in zip(answers, truths)
  ]
  return np.stack([hits, np.ones(len(hits))], 1)


STAND_IN = (
  "a stand-in over pieces of the model's own vocabulary: not comparable with "
  'spBLEU, nor with models of another vocabulary'
)


def _metrics() -> list[Metric]:
  make = lambda name, title, counts, total=weighted_mean, note='': Metric(
    name, title, _sum_by_group(counts), total, note=note
  )
  rouge = lambda kind: functools.partial(text_metrics.rouge_counts, kind)
  return [
    make('accuracy', 'accuracy', _accuracy),
    make('exact_match', 'exact match', _exact),
    make('cb_f1', 'macro F1', _cb, _cb_total),
    make('multirc_f1a', 'F1 over answers', _multirc, _multirc_total),
    Metric('multirc_em', 'exact match of questions', _all_right, weighted_mean),
    make('record_f1', 'F1', _record(squad_f1)),
    make('record_em', 'exact match', _record(squad_em)),
    make('squad_f1', 'F1', _squad(squad_f1, None)),
    make('squad_em', 'exact match', _squad(squad_em, None)),
    make('squad_has_answer_f1', 'F1, answerable', _squad(squad_f1, True)),
    make('squad_no_answer_f1', 'F1, unanswerable', _squad(squad_f1, False)),
    make('rouge1', 'ROUGE-1', rouge('rouge1')),
    make('rouge2', 'ROUGE-2', rouge('rouge2')),
    make('rougeL', 'ROUGE-L', rouge('rougeL')),
    make('spbleu', 'spBLEU', text_metrics.spbleu_counts,
         text_metrics.bleu_total),
    make('spbleu_own', 'BLEU of own pieces', text_metrics.own_bleu_counts,
         text_metrics.bleu_total, STAND_IN),
    make('bleu', 'BLEU', text_metrics.bleu_counts, text_metrics.bleu_total),
    make('chrf', 'chrF', text_metrics.chrf_counts, text_metrics.chrf_total),
  ]  # fmt: skip


METRICS: dict[str, Metric] = {metric.name: metric for metric in _metrics()}


def get_metric(name: str) -> Metric:
  """The metric of a name.

  Raises:
    ValueError: there is none; says the nearest.
  """
  check_choice('metric', name, METRICS)
  return METRICS[name]


def check_metrics(names: Iterable[str], language: str = 'en') -> None:
  """Raises what these metrics would raise, before anything is generated.

  Raises:
    ValueError: a name is unknown.
    MissingData: a file a metric needs is neither there nor in reach.
    ModuleNotFoundError: an extra is not installed; says which.
  """
  for name in names:
    text_metrics.check_installed(get_metric(name).name, language)


def metric_versions(names: Iterable[str]) -> dict[str, str]:
  """What figures of these metrics depend on, for results.json's versions."""
  found = {name: text_metrics.library_version(name) for name in names}
  return {name: text for name, text in found.items() if text}
