"""Questions to a model, and its answers: written, or chosen.

An answer depends on its question alone: not on batches, order, mesh or hosts,
but for the rounding of sums.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from atm.evals import metrics
from atm.evals.task import Question, Task
from atm.inference import api, sampling

TIE_TOLERANCE = 1e-6  # log-probabilities within this, relative, are a tie


def sample_questions(
  asked: Sequence[Question], limit: int | None, seed: int
) -> list[Question]:
  """`limit` questions drawn by the seed, in their order; groups stay whole.

  Raises:
    ValueError: the limit is below 1, or nothing is asked.
  """
  if limit is not None and limit < 1:
    raise ValueError(f'LIMIT = {limit}: expected 1 or more, or None for all')
  if not asked:
    raise ValueError('a task asks nothing: its file has no examples')
  groups = metrics.group_indices([q.group for q in asked])
  count = groups.max() + 1
  if limit is None or limit >= count:
    return list(asked)
  kept = np.random.default_rng(seed).permutation(count)[:limit]
  inside = np.isin(groups, kept)
  return [q for q, keep in zip(asked, inside) if keep]


# --- What is sent


def request_of(question: Question) -> dict:
  """What of a question is sent: its prompt or pairs."""
  if question.prompt is not None:
    return {'prompt': question.prompt}
  return {'pairs': [list(pair) for pair in question.pairs]}


def hash_json(sent) -> str:
  """SHA-256 of JSON."""
  text = json.dumps(sent, ensure_ascii=False, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


# --- As ids


@dataclasses.dataclass(frozen=True)
class EncodedPair:
  """Ids of an encoder and a decoder text.

  Attributes:
    source, target: ids as the model reads them.
    cut: whether the beginning was left out, for there is no room.
  """

  source: list[int]
  target: list[int]
  cut: bool


def encode_prompt(
  model: api.Model, text: str, mode: str, keeps: str = 'end'
) -> tuple[list, bool]:
  """(encoder ids, whether some were left out for want of room)."""
  ids = model.vocabulary.encode(text)
  room = model.config.positions - len(model.framed([], mode))
  kept = ids[-room:] if keeps == 'end' else ids[:room]
  return model.framed(kept, mode), len(ids) > room


def encode_pair(
  model: api.Model, pair: tuple[str, str], mode: str
) -> EncodedPair:
  """A choice as ids. No end token is scored, as in lm-evaluation-harness.

  Where there is no room the encoder's beginning is left out. In 'denoise' the
  decoder writes that text again: as much of its own beginning is.
  """
  source, target = map(model.vocabulary.encode, pair)
  positions = model.config.positions
  over = len(source) - (positions - len(model.framed([], mode)))
  if mode == 'denoise':
    over = max(over, len(target) - positions)
    target = target[max(0, over) :]
  cut = over > 0 or len(target) > positions
  framed = model.framed(source[max(0, over) :], mode)
  return EncodedPair(framed, target[-positions:], cut)


# --- Answers


def predict(
  model: api.Model,
  task: Task,
  asked: Sequence[Question],
  numbers: Sequence[int],
  batch_size: int,
) -> tuple[dict[int, dict], int]:
  """The answers to some of a task's questions.

  Returns:
    {output, answer, log_probabilities, tokens, cut} by number, and how many
    tokens were read and written.
  """
  of_kind = _choose_answers if asked[0].prompt is None else _generate_answers
  return of_kind(model, task, asked, numbers, batch_size)


def _generate_answers(model, task, asked, numbers, batch_size: int) -> tuple:
  """({number: answer}, tokens) of questions whose answers are written."""
  given = [
    encode_prompt(model, asked[i].prompt, task.mode, task.keeps)
    for i in numbers
  ]
  made = model.complete(
    [ids for ids, _ in given],
    task.mode,
    sampling.Config(max_tokens=task.max_tokens),  # greedy, as in the paper
    stop=task.stop,
    batch_size=batch_size,
  )
  results, tokens = {}, 0
  for i, (ids, cut), (best, *_) in zip(numbers, given, made):
    results[i] = {
      'output': best.text,
      'answer': task.answer(best.text, asked[i]) if task.answer else best.text,
      'log_probabilities': None,
      'tokens': None,
      'cut': cut,
    }
    tokens += len(ids) + len(best.ids)
  return results, tokens


def _choose_answers(model, task, asked, numbers, batch_size: int) -> tuple:
  """({number: answer}, tokens) of questions with choices."""
  pairs = {
    i: [encode_pair(model, pair, task.mode) for pair in asked[i].pairs]
    for i in numbers
  }
  every = [pair for i in numbers for pair in pairs[i]]
  sums, counts, _ = model.likelihoods(
    [pair.source for pair in every],
    [pair.target for pair in every],
    batch_size=batch_size,
  )
  results, at = {}, 0
  for i in numbers:
    mine = slice(at, at := at + len(pairs[i]))
    results[i] = {
      'output': None,
      'answer': choose_likeliest(sums[mine], counts[mine], task.normalize),
      'log_probabilities': sums[mine].tolist(),
      'tokens': counts[mine].tolist(),
      'cut': any(pair.cut for pair in pairs[i]),
    }
  return results, sum(len(p.source) + len(p.target) for p in every)


def choose_likeliest(
  sums: np.ndarray, counts: np.ndarray, normalize: str
) -> int:
  """The index of the likeliest choice, by token ('mean') or whole ('sum').

  The first of those that differ by no more than rounding does.
  """
  values = sums / counts if normalize == 'mean' else sums
  return int(
    np.argmax(np.isclose(values, values.max(), rtol=TIE_TOLERANCE, atol=0))
  )
