"""Answers of a model to questions: generated texts, or the likeliest choice.

An answer depends on its question alone: not on batches, order, mesh or hosts,
but for the rounding of sums.
"""

import functools
from collections.abc import Sequence

import numpy as np

from atm.evals.metrics import group_indices
from atm.evals.task import Question, Task
from atm.inference import api, sampling
from atm.inference.framed_inputs import fit_inputs
from atm.inference.framing import Framing, cut_ids
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
    told = question.languages and {'languages': list(question.languages)}
    return {'prompt': question.prompt, **(told or {})}
  return {'pairs': [list(pair) for pair in question.pairs]}


def encode_prompt(
  framing: Framing, text: str, mode: str | None, truncate: str = 'start',
  source: str | None = None, max_tokens: int = 1,
) -> tuple[list[int], int]:  # fmt: skip
  """Encodes a prompt with room for it: (ids, how many were cut).

  Where one stack has both there is room for `max_tokens` of output, too.
  """
  row = framing.encode(text, mode, source)
  start = framing.start(mode)
  (row,), (count,) = fit_inputs(framing, [row], truncate, [start], max_tokens)
  return row, count


def encode_pair(
  framing: Framing,
  pair: tuple[str, str],
  mode: str | None,
  truncate: str = 'start',
  ends: bool = False,
) -> tuple[list[int], list[int], int]:
  """Encodes a choice, cut to the model's positions.

  Returns:
    (encoder ids, decoder ids, how many were cut of the text that lost most).
  """
  # No end token is scored, as in lm-evaluation-harness, but of what models are
  # tuned on: there 'play' is likelier than 'play music', which it begins.
  source, target = map(framing.vocabulary.encode, pair)
  target = [*target, framing.config.end_id] if ends else target
  positions = framing.config.positions
  repeats = mode == 'denoise' and not ends
  reserved = framing.count_reserved(len(target))
  excess = max(0, len(source) - framing.count_room(mode) + reserved)
  if repeats:
    # The decoder writes the encoder's text again, so both lose the same tokens.
    if reserved:  # of one stack's positions
      both = len(source) + len(target) - framing.count_room(mode)
      excess = max(0, -(-both // 2))
    excess = max(excess, len(target) - positions)
    target = cut_ids(target, max(1, len(target) - excess), truncate)
    if reserved:
      both = len(source) + len(target) - framing.count_room(mode)
      excess = min(max(excess, both), len(source))
  source = cut_ids(source, len(source) - excess, truncate)
  framed = framing.frame(source, mode)
  positions -= framing.count_reserved(len(framed), 'refuse')
  count = max(excess, len(target) - positions)
  return framed, list(cut_ids(target, positions, truncate)), count


def _find_languages(
  framing: Framing, question: Question, task: Task
) -> tuple[str | None, str | None]:
  """Returns (source, target) as the model's own codes; None: it is told none.

  Raises ValueError where the model lacks a language of the question.
  """
  if task.languages is None or question.languages is None:
    return task.languages or (None, None)
  names = 'source_language', 'target_language'
  return tuple(map(framing.find_language, names, question.languages))


def _encode_question(framing: Framing, question: Question, task: Task):
  """Returns `encode_prompt` of a question of a task."""
  source, _ = _find_languages(framing, question, task)
  return encode_prompt(
    framing, question.prompt, task.mode, task.truncate, source, task.max_tokens
  )


def count_cut(framing: Framing, task: Task, question: Question) -> int:
  """Returns how many tokens of a question have no room in a model."""
  if question.prompt is not None:
    return _encode_question(framing, question, task)[1]
  pairs = question.pairs
  encode = functools.partial(encode_pair, framing)
  cuts = (encode(pair, task.mode, task.truncate, task.ends) for pair in pairs)
  return max(cut for _, _, cut in cuts)


# --- Answers


def predict(
  model: api.Model,
  task: Task,
  questions: Sequence[Question],
  batch_size: int,
  config: sampling.Config = sampling.Config(),
) -> tuple[list[dict], int]:
  """Answers questions of a task, `batch_size` prompts or pairs at a time.

  `config` chooses tokens; the task's max_tokens counts where it has none.

  Returns:
    ({output, answer, log_probabilities, tokens, cut, truncated} of each
    question, how many tokens were read and written). `truncated` is how many
    tokens were cut, at the task's side, `cut` whether any.
  """
  framing = Framing(model.config, model.vocabulary)
  if questions[0].prompt is None:
    return _choose_answers(model, framing, task, questions, batch_size)
  return _generate_answers(model, framing, task, questions, batch_size, config)


def _generate_answers(
  model, framing, task, questions, batch_size: int, config
) -> tuple[list[dict], int]:
  """Generates answers, greedily by default, as in the paper; see `predict`."""
  encoded = [_encode_question(framing, q, task) for q in questions]
  told = [_find_languages(framing, q, task) for q in questions]
  generations = model.complete(
    [ids for ids, _ in encoded],
    task.mode,
    config.with_defaults({'max_tokens': task.max_tokens}),
    stop=task.stop,
    batch_size=batch_size,
    source=[source for source, _ in told],
    target=[target for _, target in told],
  )
  answers, tokens = [], 0
  for question, (ids, cut), (best, *_) in zip(questions, encoded, generations):
    text = best.text
    answer = text
    if task.answer:  # in 'denoise' an output repeats what was read
      read = {'read': model.vocabulary.decode(ids[1:-1])} if cut else {}
      answer = task.answer(text, question, **read)
    answers.append(dict(output=text, answer=answer, log_probabilities=None,
                        tokens=None, cut=cut > 0, truncated=cut))  # fmt: skip
    tokens += len(ids) + len(best.ids)
  return answers, tokens


def _choose_answers(model, framing, task, questions, batch_size: int):
  """Scores all choices and takes the likeliest of each; see `predict`."""
  sources, targets, cuts = zip(
    *(
      encode_pair(framing, pair, task.mode, task.truncate, task.ends)
      for q in questions
      for pair in q.pairs
    )
  )
  sums, counts, _ = model.likelihoods(sources, targets, batch_size=batch_size)
  answers, at = [], 0
  for question in questions:
    mine = slice(at, at := at + len(question.pairs))
    answer = choose_likeliest(sums[mine], counts[mine], task.normalize)
    answers.append(
      dict(output=None, answer=answer, log_probabilities=sums[mine].tolist(),
           tokens=counts[mine].tolist(), cut=any(cuts[mine]),
           truncated=max(cuts[mine]))
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
