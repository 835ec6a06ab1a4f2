"""Answers of a model to questions: generated texts, or the likeliest choice.

An answer depends on its question alone: not on batches, order, mesh or hosts,
but for the rounding of sums.
"""

from collections.abc import Sequence

import numpy as np

from atm.evals.metrics import group_indices
from atm.evals.task import Question, Task
from atm.inference import api, sampling
from atm.messages import check_number

# Batches and meshes round sums of log-probabilities differently, and choices
# that the vocabulary cannot tell apart must tie on all of them.
TIE_TOLERANCE = 1e-6  # relative


def sample_questions(
  questions: Sequence[Question], limit: int | None, seed: int
) -> list[Question]:
  """Draws `limit` groups of questions by the seed, and keeps their order."""
  limit = check_number('LIMIT', limit, least=1, optional=True)
  if not questions:
    raise ValueError('a task has no questions: its file has no examples')
  groups = group_indices([q.group for q in questions])
  count = groups.max() + 1
  if limit is None or limit >= count:
    return list(questions)
  random = np.random.default_rng(seed % 2**64)  # takes no negative ones
  drawn = random.permutation(count)[:limit]
  return [q for q, keep in zip(questions, np.isin(groups, drawn)) if keep]


# --- Requests


def request_of(question: Question) -> dict:
  """Returns the part of a question that the model reads: prompt or pairs."""
  if question.prompt is not None:
    return {'prompt': question.prompt}
  return {'pairs': [list(pair) for pair in question.pairs]}


def encode_prompt(
  model: api.Model, text: str, mode: str, keep_side: str = 'end'
) -> tuple[list[int], bool]:
  """Encodes a prompt with room for it: (ids, whether some were left out)."""
  ids = model.vocabulary.encode(text)
  room = model.config.positions - len(model.framed([], mode))
  kept = ids[-room:] if keep_side == 'end' else ids[:room]
  return model.framed(kept, mode), len(ids) > room


def encode_pair(
  model: api.Model, pair: tuple[str, str], mode: str
) -> tuple[list[int], list[int], bool]:
  """Encodes a choice, cut to the model's positions; the encoder keeps its end.

  Returns:
    (encoder ids, decoder ids, whether tokens were left out).
  """
  # No end token is scored, as in lm-evaluation-harness.
  source, target = map(model.vocabulary.encode, pair)
  positions = model.config.positions
  excess = len(source) - (positions - len(model.framed([], mode)))
  if mode == 'denoise':
    # The decoder writes the encoder's text again, so both lose the same tokens.
    excess = max(excess, len(target) - positions)
    target = target[max(0, excess) :]
  cut = excess > 0 or len(target) > positions
  framed = model.framed(source[max(0, excess) :], mode)
  return framed, target[-positions:], cut


# --- Answers


def predict(
  model: api.Model, task: Task, questions: Sequence[Question], batch_size: int
) -> tuple[list[dict], int]:
  """Answers questions of a task, `batch_size` prompts or pairs at a time.

  Returns:
    ({output, answer, log_probabilities, tokens, cut} of each question, how many
    tokens were read and written).
  """
  if questions[0].prompt is None:
    return _choose_answers(model, task, questions, batch_size)
  return _generate_answers(model, task, questions, batch_size)


def _generate_answers(model, task, questions, batch_size: int):
  """Generates answers greedily, as in the paper; see `predict`."""
  encoded = [
    encode_prompt(model, q.prompt, task.mode, task.keep_side) for q in questions
  ]
  generations = model.complete(
    [ids for ids, _ in encoded],
    task.mode,
    sampling.Config(max_tokens=task.max_tokens),
    stop=task.stop,
    batch_size=batch_size,
  )
  answers, tokens = [], 0
  for question, (ids, cut), (best, *_) in zip(questions, encoded, generations):
    text = best.text
    answer = task.answer(text, question) if task.answer else text
    answers.append(dict(output=text, answer=answer, log_probabilities=None,
                        tokens=None, cut=cut))  # fmt: skip
    tokens += len(ids) + len(best.ids)
  return answers, tokens


def _choose_answers(model, task, questions, batch_size: int):
  """Scores all choices and takes the likeliest of each; see `predict`."""
  sources, targets, cuts = zip(
    *(
      encode_pair(model, pair, task.mode) for q in questions for pair in q.pairs
    )
  )
  sums, counts, _ = model.likelihoods(sources, targets, batch_size=batch_size)
  answers, at = [], 0
  for question in questions:
    mine = slice(at, at := at + len(question.pairs))
    answer = choose_likeliest(sums[mine], counts[mine], task.normalize)
    answers.append(
      dict(output=None, answer=answer, log_probabilities=sums[mine].tolist(),
           tokens=counts[mine].tolist(), cut=any(cuts[mine]))
    )  # fmt: skip
  return answers, sum(map(len, sources + targets))


def choose_likeliest(
  sums: np.ndarray, counts: np.ndarray, normalize: str
) -> int:
  """Returns the index of the likeliest of N choices; of a tie, the first.

  Compares log-probabilities [N] a token, or whole ones if `normalize` is 'sum'.
  """
  values = sums / counts if normalize == 'mean' else sums
  tied = np.isclose(values, values.max(), rtol=TIE_TOLERANCE, atol=0)
  return int(np.argmax(tied))
