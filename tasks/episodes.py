"""Generated episodes of in-context learning, which no model can know.

An episode is some examples with answers, the shots, and a query whose answer
follows from them: the words are invented, and mean something else in each
episode. There are three families:

  recall   pairs of words; the query is the key of one of the shots
  mapping  sentences of two words in one invented language and in another; the
           query combines words of two shots
  edits    three words, and the same edited by a rule that the shots show

A word is a syllable of a consonant and a vowel, which a vocabulary trained on
episodes has as one piece. All is a function of (family, split, number). No
entry of an episode to train on is one of another split, and the reverse: see
`is_reserved`.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence

from atm.data import counter_rng
from atm.inference.prompts import Template

CONSONANTS = 'bdkmnrst'
VOWELS = 'aeiou'
INVENTED_WORDS = tuple(c + v for c in CONSONANTS for v in VOWELS)
# Of two-word sentences: one word of each class, which its vowel tells, in
# both languages. So one sentence shows the order of the classes.
WORD_CLASSES = tuple(
  tuple(word for word in INVENTED_WORDS if word[1] in vowels)
  for vowels in ('ao', 'ei')
)
EPISODES = {'train': 30_000, 'validation': 200, 'test': 200}  # of a family
MOST_SHOTS = 4
# A line of an episode, and what stands between two.
TEMPLATE = Template(
  name='in_context',
  body='{query} ',
  cue='=',
  answer='answer',
  between='; ',
  cut=';',
)
# Of lines of two words. With a sign between key and value a small model finds a
# key's value later, see docs/study.md.
PAIR_TEMPLATE = dataclasses.replace(TEMPLATE, body='{query}', cue='')
CHOICE_COUNT = 4

Example = tuple[str, str]  # a query and its answer


@dataclasses.dataclass(frozen=True)
class Episode:
  """One episode.

  Attributes:
    shots: MOST_SHOTS examples, the most telling first: see `choose_shots`.
    query: the text to answer.
    answer: its answer.
    others: CHOICE_COUNT - 1 wrong answers.
    further: two other queries with their answers, to train on. `recall` does
      not need them: its other keys are asked.
    entries: what is to be learned from the shots, pairs of texts: keys and
      values, words and their translations, sentences and the edited ones.
    key: the integers that it is drawn by, and its choices and orders, too.
  """

  shots: tuple[Example, ...]
  query: str
  answer: str
  others: tuple[str, ...]
  further: tuple[Example, Example]
  entries: tuple[Example, ...]
  key: tuple[int, int]

  def choose_shots(self, k: int) -> list[Example]:
    """Returns the first k shots, in an order that is drawn for this k."""
    return Draw(*self.key, k).shuffle(self.shots[:k])

  def choices(self) -> tuple[list[str], int]:
    """Returns (answers in an order that is drawn, index of the right one)."""
    draw = Draw(*self.key, 0)
    answers = draw.shuffle([self.answer, *self.others])
    return answers, answers.index(self.answer)


class Draw:
  """Draws from sequences, by the integers of a key."""

  def __init__(self, *key: int):
    self._numbers = self._stream(key)

  def _stream(self, key: Sequence[int]) -> Iterator[float]:
    for part in itertools.count():
      yield from counter_rng.uniform(counter_rng.make_key(*key, part), 64)[0]

  def number(self, n: int) -> int:
    """Draws a whole number below n."""
    return int(next(self._numbers) * n)

  def one(self, items: Sequence):
    return items[self.number(len(items))]

  def shuffle(self, items: Sequence) -> list:
    return self.some(items, len(items))

  def some(self, items: Sequence, count: int) -> list:
    """Draws `count` different items."""
    left = list(items)
    return [left.pop(self.number(len(left))) for _ in range(count)]


def is_reserved(source: str, target: str) -> bool:
  """Tells whether an entry is for evaluation alone: one in eight, by content.

  `validation` and `test` have these entries and no others, `train` the others.
  """
  return zlib.crc32(f'{source} = {target}'.encode()) % 8 == 0


def draw_entry(
  draw: Draw, sources: Sequence[str], targets: Sequence[str], reserved: bool
) -> Example:
  """Draws a source and a target that may be entries of the split."""
  while True:
    source, target = draw.one(sources), draw.one(targets)
    if is_reserved(source, target) == reserved:
      return source, target


def draw_lexicon(
  draw: Draw, words: Sequence[str], count: int, reserved: bool
) -> list[Example]:
  """Draws entries of different sources and different targets."""
  sources, targets, entries = list(words), list(words), []
  for _ in range(count):
    source, target = draw_entry(draw, sources, targets, reserved)
    sources.remove(source)
    targets.remove(target)
    entries.append((source, target))
  return entries


# --- Families


def draw_recall(draw: Draw, reserved: bool, key: tuple[int, int]) -> Episode:
  """Draws keys and values; the first shot is the query's."""
  shots = draw_lexicon(draw, INVENTED_WORDS, MOST_SHOTS, reserved)
  (query, answer), *others = shots
  wrong = tuple(value for _, value in others[: CHOICE_COUNT - 1])
  further = tuple(others[:2])
  return Episode(tuple(shots), query, answer, wrong, further, tuple(shots), key)


def draw_mapping(draw: Draw, reserved: bool, key: tuple[int, int]) -> Episode:
  """Draws a lexicon of 3 words of either class, and the order of classes.

  Of the query's words the first shot has one, the second shot the other. Of
  the wrong answers one has the right word that the first shot shows, one that
  of the second, and one none.
  """
  lexicons = [draw_lexicon(draw, words, 3, reserved) for words in WORD_CLASSES]
  orders = draw.number(2), draw.number(2)
  first = draw.number(2)  # the class of the word that the first shot has

  def write(one: Example, other: Example) -> Example:
    """Writes a sentence of an entry of class `first` and of the other one."""
    by_class = (one, other) if first == 0 else (other, one)
    texts = []
    for side, order in enumerate(orders):
      words = [entry[side] for entry in by_class]
      texts.append(' '.join(words[::-1] if order else words))
    return tuple(texts)

  ones, others = lexicons[first], lexicons[1 - first]
  query, answer = write(ones[0], others[0])
  rest = [(i, j) for i in range(3) for j in range(3)]
  telling = [(0, 1), (1, 0)]
  rest = [pair for pair in rest if pair not in ((0, 0), *telling)]
  chosen = [*telling, *draw.some(rest, MOST_SHOTS - len(telling))]
  shots = tuple(write(ones[i], others[j]) for i, j in chosen)
  wrong = tuple(
    write(ones[i], others[j])[1] for i, j in ((0, 2), (1, 0), (1, 2))
  )
  further = tuple(write(ones[i], others[j]) for i, j in ((1, 1), (1, 0)))
  entries = (*lexicons[0], *lexicons[1])
  return Episode(shots, query, answer, wrong, further, entries, key)


# Rules by name: (words, a word to replace, a new word) -> words.
RULES: dict[str, Callable[[list[str], str, str], list[str]]] = {
  'drop the first': lambda words, old, new: words[1:],
  'drop the last': lambda words, old, new: words[:-1],
  'repeat the last': lambda words, old, new: [*words, words[-1]],
  'reverse': lambda words, old, new: words[::-1],
  'last to the front': lambda words, old, new: [words[-1], *words[:-1]],
  'append': lambda words, old, new: [*words, new],
  'prepend': lambda words, old, new: [new, *words],
  'replace': lambda words, old, new: [new if w == old else w for w in words],
}


def draw_edits(draw: Draw, reserved: bool, key: tuple[int, int]) -> Episode:
  """Draws a rule and sentences of 3 words; each has the word to replace."""
  name = draw.one([*RULES])
  old, new, *words = draw.shuffle(INVENTED_WORDS)

  def sentence() -> list[str]:
    return draw.shuffle([old, *draw.some(words, 2)])

  examples: list[Example] = []
  while len(examples) < MOST_SHOTS + 3:
    text = sentence()
    entry = ' '.join(text), ' '.join(RULES[name](text, old, new))
    if is_reserved(*entry) == reserved and entry not in examples:
      examples.append(entry)
  (query, answer), *shots = examples[: MOST_SHOTS + 1]
  further = tuple(examples[MOST_SHOTS + 1 :])
  edited = (rule(query.split(), old, new) for rule in RULES.values())
  wrong = [x for x in map(' '.join, edited) if x != answer]
  wrong = tuple(draw.some(wrong, CHOICE_COUNT - 1))
  return Episode(
    tuple(shots), query, answer, wrong, further, tuple(examples), key
  )


FAMILIES: dict[str, Callable[[Draw, bool, tuple[int, int]], Episode]] = {
  'recall': draw_recall,
  'mapping': draw_mapping,
  'edits': draw_edits,
}


def draw_episode(family: str, split: str, number: int) -> Episode:
  """Draws an episode of a family of FAMILIES and a split of EPISODES."""
  key = zlib.crc32(f'{family} {split}'.encode()), number
  return FAMILIES[family](Draw(*key), split != 'train', key)


# --- Text


def choose_template(family: str) -> Template:
  """Returns how the lines of a family are written."""
  return PAIR_TEMPLATE if family == 'recall' else TEMPLATE


def write_document(family: str, episode: Episode) -> str:
  """Writes 1 to MOST_SHOTS shots and three queries, a document to train on.

  It begins as the prompt of an evaluation and its answer. More queries follow:
  CLM's input is at most a part of a document, and has to be as long as a
  prompt. They differ from each other; of `edits` none is one of the shots, of
  `mapping` some are. Of `recall` all keys are asked twice, so that two lines of
  three can be learned.
  """
  draw = Draw(*episode.key, MOST_SHOTS + 1)
  shots = episode.choose_shots(1 + draw.number(MOST_SHOTS))
  asked = [(episode.query, episode.answer), *episode.further]
  if family == 'recall':
    asked = [*draw.shuffle(shots), *draw.shuffle(shots)]
  template = choose_template(family)
  question = f'{template.body}{template.cue}'
  lines = [
    f'{question.format(query=query)} {answer}'
    for query, answer in [*shots, *asked]
  ]
  return template.between.join(lines)
