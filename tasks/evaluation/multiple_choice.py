"""Tasks in which the likeliest of given choices wins.

A choice is an encoder text and a decoder text (the paper, section 4). Which,
depends on the mode:

  clm      the question -> the answer, as the decoder continues the encoder
  denoise  the text without the answer -> the whole text, with the answer, as
           the decoder writes the encoder's text again, completed

The prompt of CB is the authors' (`prompts.NLI`). Of the other tasks the paper
does not give the prompts: each one here says whose it follows, with ` <br> `
for newlines, which the tokenizer drops.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atm.data import languages
from atm.evals.task import Question
from atm.inference import prompts
from atm.inference.prompts import Template

Cut = Callable[[str, int], str]  # (text, tokens) -> whole sentences of so many
BETWEEN = ' <br> '
# Passages are cut to whole sentences of so many tokens, that a question fits
# 1024 positions; the paper is silent.
PASSAGE_TOKENS = 800


@dataclasses.dataclass(frozen=True)
class Choice:
  """One choice of an example, written.

  Attributes:
    question, answer: in 'clm' what the encoder reads and the decoder writes.
    gap, whole: in 'denoise', the text without the answer and with it.
  """

  question: str
  answer: str
  gap: str
  whole: str

  def pair(self, mode: str, before: str) -> tuple[str, str]:
    """(encoder text, decoder text), behind the shots `before`."""
    if mode == 'denoise':
      return before + self.gap, before + self.whole
    return before + self.question, self.answer


@dataclasses.dataclass(frozen=True)
class Written:
  """An example with its choices.

  Attributes:
    choices: in the order of the answers' indices.
    right: index of the right one: what a shot shows.
    truth: of the question, where that is more than `right`.
    group, shown: see `task.Question`.
  """

  choices: Sequence[Choice]
  right: int
  shown: Mapping[str, str]
  truth: Any = None
  group: str = ''


@dataclasses.dataclass(frozen=True)
class Kind:
  """How examples of one task become questions.

  Attributes:
    write: (example, language, cut) -> its choices; `cut` shortens passages.
  """

  write: Callable[[Mapping, str, Cut], Written]
  generates = False

  def question(
    self, example: Mapping, shots: Sequence[Mapping], language: str, mode: str,
    cut: Cut,
  ) -> Question:  # fmt: skip
    """The example as it is asked, behind its shots."""
    before = ''
    for shot in shots:
      written = self.write(shot, language, cut)
      before += written.choices[written.right].whole + BETWEEN
    written = self.write(example, language, cut)
    return Question(
      id=example['id'],
      truth=written.right if written.truth is None else written.truth,
      pairs=tuple(choice.pair(mode, before) for choice in written.choices),
      group=written.group,
      shown=written.shown,
    )


def one_line(text: str) -> str:
  return ' '.join(text.split())


def ending(question: str, answers: Sequence[str]) -> list[Choice]:
  """Choices of which the answer ends the text."""
  return [Choice(question, a, question, f'{question} {a}') for a in answers]


def fill(template: Template, **texts: str) -> str:
  """The query of a template; a blank text is written as `-`."""
  return prompts.build_prompt(
    template, {k: v if v.strip() else '-' for k, v in texts.items()}
  )


def _template(name: str, body: str, cue: str, choices=()) -> Template:
  return Template(name, body, cue, 'chosen', BETWEEN, '<br>', tuple(choices))


# --- Inference


@functools.cache
def nli_template(language: str) -> Template:
  """`prompts.NLI`, its dummy shots true of passages in another language.

  They ask whether the passage is in English, True, and in French, False. The
  paper does not show it for XNLI; that the first names the passage's language
  and the second English is our reading.
  """
  if language == 'en':
    return prompts.NLI
  first, second = prompts.NLI.body.split('French')
  body = first.replace('English', languages.name_language(language))
  return dataclasses.replace(prompts.NLI, body=f'{body}English{second}')


# CB's classes in the order of the choices True, False, Neither.
NLI_LABELS = ('entailment', 'contradiction', 'neutral')


def nli(example: Mapping, language: str, cut: Cut) -> Written:
  """CB and XNLI."""
  template = nli_template(language)
  shown = {k: example[k] for k in ('premise', 'hypothesis')}
  return Written(
    ending(fill(template, **shown), template.choices),
    NLI_LABELS.index(example['label']),
    shown,
  )


# lm-evaluation-harness' prompt, which is GPT-3's with a capital.
RTE = _template(
  'rte', '{premise} <br> Question: {hypothesis} True or False? <br> ',
  'Answer:', ('True', 'False'),
)  # fmt: skip


def rte(example: Mapping, language: str, cut: Cut) -> Written:
  shown = {k: example[k] for k in ('premise', 'hypothesis')}
  return Written(
    ending(fill(RTE, **shown), RTE.choices),
    ('entailment', 'not_entailment').index(example['label']),
    shown,
  )


# --- Yes or no

# lm-evaluation-harness' prompts; GPT-3's are the same but for capitals. The
# question of BoolQ has no question mark of its own.
BOOLQ = _template(
  'boolq', '{passage} <br> Question: {question}? <br> ', 'Answer:',
  ('no', 'yes'),
)  # fmt: skip
WIC = _template(
  'wic',
  'Sentence 1: {sentence1} <br> Sentence 2: {sentence2} <br> Question: Is the '
  "word '{word}' used in the same way in the two sentences above? <br> ",
  'Answer:',
  ('no', 'yes'),
)
WSC = _template(
  'wsc',
  'Passage: {text} <br> Question: In the passage above, does the pronoun '
  '"*{pronoun}*" refer to "*{noun}*"? <br> ',
  'Answer:',
  ('no', 'yes'),
)
# lm-evaluation-harness' prompt; it scores the candidate with the answer, which
# adds the same to both.
MULTIRC = _template(
  'multirc',
  '{passage} <br> Question: {question} <br> Answer: {candidate} <br> ',
  'Is the answer correct?',
  ('yes', 'no'),
)


def boolq(example: Mapping, language: str, cut: Cut) -> Written:
  shown = {k: example[k] for k in ('passage', 'question')}
  question = fill(
    BOOLQ, **{**shown, 'passage': cut(example['passage'], PASSAGE_TOKENS)}
  )
  choices = ending(question, BOOLQ.choices)
  return Written(choices, int(example['label']), shown)


def wic(example: Mapping, language: str, cut: Cut) -> Written:
  shown = {k: example[k] for k in ('sentence1', 'sentence2', 'word')}
  choices = ending(fill(WIC, **shown), WIC.choices)
  return Written(choices, int(example['label']), shown)


def wsc(example: Mapping, language: str, cut: Cut) -> Written:
  """Two choices, no and yes: does the pronoun mean the noun?"""
  pronoun, noun = example['span2_text'], example['span1_text']
  text = mark(example['text'], example['span2_index'], pronoun)
  question = fill(WSC, text=text, pronoun=pronoun, noun=noun)
  shown = {'text': text, 'noun': noun}
  return Written(ending(question, WSC.choices), int(example['label']), shown)


def mark(text: str, index: int, span: str) -> str:
  """The text with `*` around a span of words, which begins at word `index`.

  Where the span is not there, as in some examples of WSC, the nearest place
  that has it is marked, or none.
  """
  words, wanted = text.split(), _bare(span).split()
  n = len(wanted)
  places = [
    i
    for i in range(len(words) - n + 1)
    if [_bare(word) for word in words[i : i + n]] == wanted
  ]
  if places and n:
    at = min(places, key=lambda i: abs(i - index))
    here = ' '.join(words[at : at + n])
    bare = here.strip(string.punctuation)
    words[at : at + n] = [here.replace(bare, f'*{bare}*', 1)]
  return ' '.join(words)


def _bare(words: str) -> str:
  """Without case, and without punctuation around each word."""
  return ' '.join(w.strip(string.punctuation) for w in words.lower().split())


def multirc(example: Mapping, language: str, cut: Cut) -> Written:
  """Each candidate is a question of its own; index 0 says that it is true."""
  shown = {k: example[k] for k in ('passage', 'question', 'candidate')}
  question = fill(
    MULTIRC, **{**shown, 'passage': cut(example['passage'], PASSAGE_TOKENS)}
  )
  right = MULTIRC.choices.index('yes' if example['label'] else 'no')
  choices = ending(question, MULTIRC.choices)
  return Written(choices, right, shown, group=example['group'])


# --- Texts to complete

# Connectives of lm-evaluation-harness: why, and what follows.
CONNECTIVES = {
  'en': {'cause': 'because', 'effect': 'therefore'},
  'it': {'cause': 'perché', 'effect': 'quindi'},
  'ta': {'cause': 'காரணமாக', 'effect': 'எனவே'},
}
COPA = _template('copa', '{premise} ', '{connective}')


def copa(example: Mapping, language: str, cut: Cut) -> Written:
  """COPA and XCOPA: premise and connective -> the alternative.

  As in GPT-3 and lm-evaluation-harness the alternative is scored: the premise
  loses its full stop, the alternative its capital.
  """
  premise = re.sub(r'[.!?।]$', '', example['premise'].strip())
  connective = CONNECTIVES[language][example['question']]
  question = fill(COPA, premise=premise, connective=connective)
  answers = [one_line(example[k]) for k in ('choice1', 'choice2')]
  answers = [a[:1].lower() + a[1:] for a in answers]
  shown = {'premise': example['premise'], 'question': example['question']}
  return Written(ending(question, answers), example['label'], shown)


# What asks and what answers, by language: the format of XGLM. That of
# lm-evaluation-harness, whose words these are, also gives the second sentence a
# small letter. Index 1 is a paraphrase, as the label 1 is.
PARAPHRASE = {
  'de': ('richtig', 'Nein', 'Ja'),
  'en': ('right', 'No', 'Yes'),
  'es': ('verdad', 'No', 'Sí'),
  'fr': ("n'est-ce pas", 'Non', 'Oui'),
  'ja': ('ですね', 'いいえ', 'はい'),
}
PAWSX = _template('pawsx', '{sentence1}, ', '{right}?')


def pawsx(example: Mapping, language: str, cut: Cut) -> Written:
  """`A, right?` -> `Yes, B`, or `No, B`."""
  right, *answers = PARAPHRASE[language]
  first = re.sub(r'[.。]$', '', example['sentence1'].strip())
  question = fill(PAWSX, sentence1=first, right=right)
  second = one_line(example['sentence2'])
  choices = [
    Choice(question, end, f'{question} {second}', f'{question} {end}')
    for end in (f'{answer}, {second}' for answer in answers)
  ]
  shown = {k: example[k] for k in ('sentence1', 'sentence2')}
  return Written(choices, example['label'], shown)


def xwinograd(example: Mapping, language: str, cut: Cut) -> Written:
  """What stands behind the pronoun, given what stands before it and an answer
  in its place: partial evaluation as in Trinh & Le (2018), which GPT-3, XGLM
  and lm-evaluation-harness use. So the encoder's texts differ, and in 'clm' the
  decoder's do not.
  """
  before, after = example['before'], example['after']
  choices = [
    Choice(
      one_line(before + option),
      one_line(after),
      one_line(before + after),
      one_line(before + option + after),
    )
    for option in example['options']
  ]
  shown = {'text': f'{before}_{after}'}
  return Written(choices, example['label'], shown)


def record(example: Mapping, language: str, cut: Cut) -> Written:
  """Passage and highlights -> the query with an entity in it.

  The query is scored as one more highlight, as in GPT-3 and in
  lm-evaluation-harness, whose layout this is.
  """
  passage, *highlights = re.split(r'\n@highlight\n', example['passage'])
  parts = [
    cut(passage, PASSAGE_TOKENS),
    *(f'- {text.rstrip(".")}.' for text in highlights),
  ]
  context = ' <br> '.join(one_line(part) for part in parts) + ' <br>'
  query, entities = example['query'], example['entities']

  def filled(entity: str) -> str:
    return '- ' + one_line(query.replace('@placeholder', entity))

  choices = [
    Choice(context, end, f'{context} {filled("")}', f'{context} {end}')
    for end in map(filled, entities)
  ]
  right = next(
    (i for i, e in enumerate(entities) if e in example['answers']), 0
  )
  truth = {'candidates': entities, 'answers': example['answers']}
  shown = {k: example[k] for k in ('passage', 'query')}
  return Written(choices, right, shown, truth)


def continuation(example: Mapping, language: str, cut: Cut) -> Written:
  """The beginning of a paragraph -> one of several ends."""
  begun, space = example['begun'], example['space']
  choices = [
    Choice(begun, end, begun, begun + space + end) for end in example['ends']
  ]
  return Written(choices, example['label'], {'begun': begun})
