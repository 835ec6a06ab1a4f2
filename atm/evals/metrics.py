"""Metrics: additive counts of answers, and the scores that sums of them give.

A metric is two functions: `rows` turns answers and truths into additive counts,
a row for each group of questions; `total` turns a sum of rows into the score,
in the units it is published in, 0 to 100.
"""
# So the score of a task, of a draw of a bootstrap and of any part of a task are
# the same function of different sums, and 1,000 draws are one matrix product.

import collections
import dataclasses
import functools
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from atm.evals import text_metrics
from atm.messages import (
  check_choice,
  check_index,
  check_list,
  check_number,
  check_text,
  check_texts,
  quote,
)


@dataclasses.dataclass(frozen=True)
class Metric:
  """One way to score answers.

  Attributes:
    name, title: its key in METRICS, and its name for readers.
    rows: (answers, truths, groups, language='en', vocabulary=None) -> float64
      [G, M]. Answers are texts or indices of choices, truths as in
      `Question.truth`. Questions of one group make one row, in the order in
      which groups first occur; '' is a group of its own. The language is that
      of the answers; only `spbleu_own` needs the vocabulary.
    total: sums [..., M] -> scores [...]; nan where nothing is judged.
    note: a caveat on comparing figures, or ''.
  """

  name: str
  title: str
  rows: Callable[..., np.ndarray]
  total: Callable[[np.ndarray], np.ndarray]
  note: str = ''


def group_indices(groups: Sequence[str]) -> np.ndarray:
  """Returns the row of each question: int [N], in order of first occurrence."""
  rows: dict = {}
  keys = (group or (i,) for i, group in enumerate(groups))
  return np.array([rows.setdefault(key, len(rows)) for key in keys], int)


# What answers and truths of a metric are: (name, value) -> value, checked.


def _check_references(name: str, truth) -> str | tuple[str, ...]:
  return (check_text if isinstance(truth, str) else check_texts)(name, truth)


def _check_entity(name: str, truth) -> dict:
  if not isinstance(truth, Mapping) or not {'candidates', 'answers'} <= {
    *truth
  }:
    raise ValueError(
      f'{name} = {quote(truth)}: expected a dict of `candidates` and `answers`'
    )
  keys = 'candidates', 'answers'
  return {key: check_texts(f'{name}[{key!r}]', truth[key]) for key in keys}


CHOICES = check_index, check_index
TEXTS = check_text, _check_references
ENTITIES = check_index, _check_entity


def _check_vocabulary(vocabulary) -> None:
  methods = (getattr(vocabulary, x, None) for x in ('encode', 'decode'))
  if vocabulary is not None and not all(map(callable, methods)):
    raise ValueError(
      f'vocabulary = {quote(vocabulary)}: expected a tokenizer, or None'
    )


def _sum_by_group(
  counts: Callable, kinds: tuple[Callable, Callable]
) -> Callable[..., np.ndarray]:
  """Builds the `rows` of a metric from its counts of each question [N, M].

  `kinds` are CHOICES, TEXTS or ENTITIES.
  """

  def rows(answers, truths, groups, language='en', vocabulary=None):
    given = dict(answers=answers, truths=truths, groups=groups)
    answers, truths, groups = (
      [check(f'{name}[{i}]', x) for i, x in enumerate(check_list(name, values))]
      for (name, values), check in zip(given.items(), (*kinds, check_text))
    )
    check_text('language', language)
    _check_vocabulary(vocabulary)
    if not len(answers) == len(truths) == len(groups) > 0:
      raise ValueError(
        f'{len(answers)} answers, {len(truths)} truths and {len(groups)} '
        'groups: expected as many of each, and at least one'
      )
    each = counts(answers, truths, language, vocabulary)
    where = group_indices(groups)
    sums = np.zeros((where.max() + 1, each.shape[1]))
    np.add.at(sums, where, each)
    return sums

  return rows


def _as_written(counts: Callable) -> Callable:
  """Builds counts of texts as the vocabulary writes them, if there is one."""
  # Where its tokenizer has '...' a model writes no '…', and the right answer
  # would be wrong.

  def written_counts(answers, truths, language, vocabulary) -> np.ndarray:
    if vocabulary is not None:
      write = lambda text: text_metrics.written_text(text, vocabulary)
      answers = list(map(write, answers))
      truths = [
        write(truth) if isinstance(truth, str) else list(map(write, truth))
        for truth in truths
      ]
    return counts(answers, truths, language, vocabulary)

  return written_counts


def _judge_each(judge: Callable) -> Callable[..., np.ndarray]:
  """Builds counts (score, 1) from judge(answer, truth): 0 to 100, or None."""
  # None: the metric leaves the question out, which counts (0, 0).

  def counts(answers, truths, language, vocabulary) -> np.ndarray:
    scores = map(judge, answers, truths)
    return np.array([(0, 0) if s is None else (s, 1) for s in scores], float)

  return counts


def weighted_mean(sums: np.ndarray) -> np.ndarray:
  """Divides summed (value, weight): [..., 2] -> [...]; nan without weight."""
  value, weight = sums[..., 0], sums[..., 1]
  empty = np.full(np.shape(value), np.nan)
  return np.divide(value, weight, empty, where=weight > 0)


def _f1(right, chosen, wanted) -> np.ndarray:
  """Computes F1, 0 to 100; 0 without any chosen or wanted, as scikit-learn."""
  both = chosen + wanted
  return np.divide(200 * right, both, np.zeros_like(both), where=both > 0)


# --- Choices. An answer is the index of a pair.


def _accuracy(answer: int, truth: int) -> float:
  return 100.0 * (answer == truth)


def _count_classes(classes: int, answers, truths, language, vocabulary):
  """Counts (right, chosen, wanted) of the first classes: [N, 3 * classes]."""
  chosen, wanted = (
    np.equal.outer(np.array(x), np.arange(classes)) for x in (answers, truths)
  )
  counts = np.stack([chosen & wanted, chosen, wanted], -1)
  return counts.reshape(len(counts), -1).astype(np.float64)


def _macro_f1(sums: np.ndarray) -> np.ndarray:
  """Averages F1 over the classes that are chosen or wanted, as scikit-learn."""
  parts = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
  present = (parts[1] + parts[2]) > 0
  return _f1(*parts).sum(-1) / np.maximum(present.sum(-1), 1)


def _count_labels(answers, truths, language, vocabulary) -> np.ndarray:
  """Counts (right, chosen, wanted) of every label of the questions."""
  labels = sorted(
    {x for t in truths for x in (*t['candidates'], *t['answers'][:1])}
  )
  number = {label: i for i, label in enumerate(labels)}
  chosen, wanted = [], []
  for answer, truth in zip(answers, truths):
    check_number('an answer', answer, 0, len(truth['candidates']) - 1)
    chosen.append(number[truth['candidates'][answer]])
    wanted.append(number[truth['answers'][0]])
  return _count_classes(len(labels), chosen, wanted, language, vocabulary)


def _label_accuracy(answer: int, truth: dict) -> float:
  """Returns 100 where the right label is chosen, else 0."""
  check_number('an answer', answer, 0, len(truth['candidates']) - 1)
  return 100.0 * (truth['candidates'][answer] in truth['answers'])


def _balanced_accuracy(sums: np.ndarray) -> np.ndarray:
  """Averages the share of right answers over the labels that are wanted."""
  right, _, wanted = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
  there = wanted > 0
  shares = np.divide(100 * right, wanted, np.zeros_like(right), where=there)
  return shares.sum(-1) / np.maximum(there.sum(-1), 1)


def _all_right(answers, truths, groups, language='en', vocabulary=None):
  """Counts (100 where all answers of the group are right, 1)."""
  count = _sum_by_group(_judge_each(_accuracy), CHOICES)
  sums = count(answers, truths, groups)
  whole = sums[:, 0] == 100 * sums[:, 1]
  return np.stack([100.0 * whole, np.ones(len(whole))], 1)


# --- Texts, by the definitions of the SQuAD 2.0 evaluation

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


def squad_words(text: str) -> list[str]:
  """Splits into words without case, ASCII punctuation and English articles."""
  bare = text.lower().translate(_NO_PUNCTUATION)
  return _ARTICLES.sub(' ', bare).split()


def squad_em(answer: str, truth: str) -> float:
  """Returns 100 where the words are the same, else 0."""
  return 100.0 * (squad_words(answer) == squad_words(truth))


def squad_f1(answer: str, truth: str) -> float:
  """Computes F1 of words, 0 to 100; if a side has none, 100 if neither has."""
  found, wanted = squad_words(answer), squad_words(truth)
  if not found or not wanted:
    return 100.0 * (found == wanted)
  common = collections.Counter(found) & collections.Counter(wanted)
  return 200 * common.total() / (len(found) + len(wanted))


def _squad(score: Callable, answerable: bool | None = None):
  """Builds counts of the best score over the accepted texts.

  Of questions that are `answerable` or not; None: of all.
  """

  def judge(answer: str, truth: str | Sequence[str]) -> float | None:
    truth = [truth] if isinstance(truth, str) else truth
    if answerable not in (None, bool(truth)):
      return None
    # A text of articles and punctuation alone is no answer.
    accepted = [t for t in truth if squad_words(t)] or ['']
    return max(score(answer, text) for text in accepted)

  return _judge_each(judge)


def _record(score: Callable):
  """Builds counts of the chosen entity's best score over accepted texts."""

  def judge(answer: int, truth: dict) -> float:
    check_number('an answer', answer, 0, len(truth['candidates']) - 1)
    entity = truth['candidates'][answer]
    return max(score(entity, text) for text in truth['answers'])

  return _judge_each(judge)


def _exact(answer: str, truth: str | Sequence[str]) -> float:
  """Returns 100 for one of the references, but for runs of whitespace."""
  references = map(str.split, text_metrics.reference_texts(truth))
  return 100.0 * (answer.split() in references)


STAND_IN = (
  "a stand-in over pieces of the model's own vocabulary: not comparable with "
  'spBLEU, nor with models of another vocabulary'
)


def _metrics() -> list[Metric]:
  make = lambda kinds, name, title, counts, total=weighted_mean, note='': (
    Metric(name, title, _sum_by_group(counts, kinds), total, note=note)
  )
  texts = lambda name, title, counts, *others: make(
    TEXTS, name, title, _as_written(counts), *others
  )
  rouge = lambda kind: functools.partial(text_metrics.rouge_counts, kind)
  classes = lambda count: functools.partial(_count_classes, count)
  return [
    make(CHOICES, 'accuracy', 'accuracy', _judge_each(_accuracy)),
    make(CHOICES, 'cb_f1', 'macro F1', classes(3), _macro_f1),
    # Choice 0 says that an answer is true; of the other no F1 is taken.
    make(CHOICES, 'multirc_f1a', 'F1 over answers', classes(1), _macro_f1),
    Metric('multirc_em', 'exact match of questions', _all_right, weighted_mean),
    make(ENTITIES, 'label_accuracy', 'accuracy', _judge_each(_label_accuracy)),
    make(ENTITIES, 'macro_f1', 'macro F1', _count_labels, _macro_f1),
    make(ENTITIES, 'balanced_accuracy', 'balanced accuracy', _count_labels,
         _balanced_accuracy),
    make(ENTITIES, 'record_f1', 'F1', _record(squad_f1)),
    make(ENTITIES, 'record_em', 'exact match', _record(squad_em)),
    texts('exact_match', 'exact match', _judge_each(_exact)),
    texts('squad_f1', 'F1', _squad(squad_f1)),
    texts('squad_em', 'exact match', _squad(squad_em)),
    texts('squad_has_answer_f1', 'F1, answerable', _squad(squad_f1, True)),
    texts('squad_no_answer_f1', 'F1, unanswerable', _squad(squad_f1, False)),
    texts('rouge1', 'ROUGE-1', rouge('rouge1')),
    texts('rouge2', 'ROUGE-2', rouge('rouge2')),
    texts('rougeL', 'ROUGE-L', rouge('rougeL')),
    texts('spbleu', 'spBLEU', text_metrics.spbleu_counts,
          text_metrics.bleu_total),
    texts('spbleu_own', 'BLEU of own pieces', text_metrics.own_bleu_counts,
          text_metrics.bleu_total, STAND_IN),
    texts('bleu', 'BLEU', text_metrics.bleu_counts, text_metrics.bleu_total),
    texts('chrf', 'chrF', text_metrics.chrf_counts, text_metrics.chrf_total),
  ]  # fmt: skip


METRICS: dict[str, Metric] = {metric.name: metric for metric in _metrics()}


def get_metric(name: str) -> Metric:
  """Returns the metric of a name; raises ValueError with the nearest one."""
  check_choice('metric', name, METRICS)
  return METRICS[name]


def check_metrics(names: Iterable[str], language: str = 'en') -> None:
  """Raises the errors of these metrics, see `text_metrics.check_installed`."""
  for name in names:
    text_metrics.check_installed(get_metric(name).name, language)


def metric_versions(names: Iterable[str]) -> dict[str, str]:
  """Returns the versions that scores depend on, of metrics that have one."""
  found = {name: text_metrics.library_version(name) for name in names}
  return {name: text for name, text in found.items() if text}
