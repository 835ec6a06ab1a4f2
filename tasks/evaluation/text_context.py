"""Questions of running text: `udhr_context`, and the halves of `udhr_next`.

`udhr_context` asks what more text before a question brings. A paragraph of the
Declaration is divided into segments of SEGMENT bytes or a little more. The
question is a segment; choices are the one that follows, and such of other
articles. Shots are the segments right before it, so that a prompt is always one
piece of running text.
"""

import functools
import re
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from atm_tasks.episodes import CHOICE_COUNT, MOST_SHOTS
from atm_tasks.evaluation.multiple_choice import (
  ChoiceFormat,
  Cut,
  WrittenChoice,
  WrittenExample,
)
from atm_tasks.evaluation.readers import RawExample

SEGMENT = 20  # bytes: about 8 pieces of a vocabulary of 2,048
# Of either half, so that a question fits the positions of models/tiny.gin.
HALF = 40
BREAK = re.compile(r'\s+|(?<=、)')


def split_in_half(text: str) -> tuple[str, str, str]:
  """Divides a text next to its middle: (beginning, space or '', end).

  Of either half, whole words next to the division, HALF characters at most.
  """
  breaks = [m.span() for m in BREAK.finditer(text)]
  a, b = min(breaks, key=lambda s: abs(sum(s) - len(text)))
  begun, end = text[:a], text[b:]
  if len(begun) > HALF:
    begun = begun[-HALF - 1 :]
    begun = begun.partition(' ')[2] or begun[1:]
  if len(end) > HALF:
    end = end[: HALF + 1]
    end = end.rpartition(' ')[0] or end[:-1]
  return begun, text[a:b], end


def split_segments(text: str) -> tuple[list[str], str]:
  """Divides a text into segments; returns them and what stands between two.

  A segment has whole words, or characters where words are not spaced, and no
  fewer bytes of UTF-8 than SEGMENT; what is left at the end is dropped.
  """
  words, space = text.split(), ' '
  if len(text) > 20 * len(words):
    words, space = list(''.join(words)), ''
  segments, begun = [], []
  for word in words:
    begun.append(word)
    segment = space.join(begun)
    if len(segment.encode()) >= SEGMENT:
      segments.append(segment)
      begun = []
  return segments, space


def make_questions(
  language: str, articles: list[tuple[str, str]]
) -> Iterator[RawExample]:
  """Makes a question of each paragraph that is long enough.

  Args:
    language: decides with a paragraph's number what is drawn.
    articles: (article, paragraph).
  """
  rows = [(article, *split_segments(text)) for article, text in articles]
  need = MOST_SHOTS + 2  # before the question, the question and its end
  rows = [row for row in rows if len(row[1]) >= need]
  rng = np.random.default_rng(zlib.crc32(language.encode()))
  # Each place has the right choice as often as the others, nearly.
  labels = rng.permutation(len(rows)) % CHOICE_COUNT
  for i, (article, segments, space) in enumerate(rows):
    *before, text, end = segments[:need]
    others = [row[1][need - 1] for row in rows if row[0] != article]
    if len(others) < CHOICE_COUNT - 1:  # of `validation`, in some languages
      continue
    drawn = rng.choice(len(others), CHOICE_COUNT - 1, replace=False)
    ends = [others[j] for j in drawn]
    ends.insert(int(labels[i]), end)
    yield {
      'id': f'{language}/{article}/{i}', 'text': text, 'space': space,
      'ends': ends, 'label': int(labels[i]),
      'choose_shots': functools.partial(list_segments_before, before, space),
    }  # fmt: skip


def list_segments_before(
  before: list[str], space: str, k: int
) -> list[RawExample]:
  """Returns the last k segments before a question, in their order."""
  return [
    {'text': text, 'space': space, 'ends': [''], 'label': 0}
    for text in before[MOST_SHOTS - k :]
  ]


def write_segment(example: Mapping, language: str, cut: Cut) -> WrittenExample:
  """Writes a segment -> one of several that may follow; a shot is a segment."""
  text, space = example['text'], example['space']
  choices = [
    WrittenChoice(text, end, text, f'{text}{space}{end}')
    for end in example['ends']
  ]
  return WrittenExample(choices, example['label'], {'text': text})


FORMAT = ChoiceFormat(write_segment, between='')
