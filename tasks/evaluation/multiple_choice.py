"""Questions of which the model compares given choices.

A choice is an encoder text and a decoder text (the paper, section 4). Which,
depends on the mode:

  clm      the question -> the answer, as the decoder continues the encoder
  denoise  the text without the answer -> the whole text, with the answer, as
           the decoder writes the encoder's text again, completed

The prompt of CB is the authors' (`prompts.NLI`). Of the other tasks the paper
does not give the prompts: each one here says whose it follows, with ` <br> `
for newlines, which the tokenizer drops.
"""

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
from atm_tasks.evaluation.superglue import NLI_LABELS, RTE_LABELS
from atm_tasks.pretraining.text_source import collapse_whitespace

Cut = Callable[[str, int], str]  # (text, tokens) -> whole sentences of so many
BETWEEN = ' <br> '
# Passages are cut to whole sentences of so many tokens, that a question fits
# 1024 positions; the paper is silent.
PASSAGE_TOKENS = 800


@dataclasses.dataclass(frozen=True)
class WrittenChoice:
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
    """Returns (encoder text, decoder text), behind the shots `before`."""
    if mode == 'denoise':
      return before + self.gap, before + self.whole
    return before + self.question, self.answer


@dataclasses.dataclass(frozen=True)
class WrittenExample:
  """An example with its choices.

  Attributes:
    choices: in the order of the answers' indices.
    right: index of the right one: what a shot shows.
    truth: of the question, where that is more than `right`.
    group, shown: see `task.Question`.
  """

  choices: Sequence[WrittenChoice]
  right: int
  shown: Mapping[str, str]
  truth: Any = None
  group: str = ''


@dataclasses.dataclass(frozen=True)
class ChoiceFormat:
  """How examples of one task become questions.

  Attributes:
    write: (example, language, cut) -> its choices; `cut` shortens passages.
    ends: see `task.Task`.
    normalize: of NORMALIZE, where none is set.
    between: what stands between a shot and what follows.
  """

  write: Callable[[Mapping, str, Cut], WrittenExample]
  ends: bool = False
  normalize: str = 'mean'
  between: str = BETWEEN
  generates = False

  def question(
    self, example: Mapping, shots: Sequence[Mapping], language: str, mode: str,
    cut: Cut,
  ) -> Question:  # fmt: skip
    """Writes the question of an example, behind its shots."""
    if shots and self.ends:
      raise ValueError(
        'SHOTS: inputs are asked as they are: expected 0 or None'
      )
    before = ''
    for shot in shots:
      written = self.write(shot, language, cut)
      before += written.choices[written.right].whole + self.between
    written = self.write(example, language, cut)
    return Question(
      id=example['id'],
      truth=written.right if written.truth is None else written.truth,
      pairs=tuple(choice.pair(mode, before) for choice in written.choices),
      group=written.group,
      shown=written.shown,
    )


def write_endings(question: str, answers: Sequence[str]) -> list[WrittenChoice]:
  """Writes choices of which the answer ends the text."""
  return [
    WrittenChoice(question, a, question, f'{question} {a}') for a in answers
  ]


def fill_template(template: Template, **texts: str) -> str:
  """Writes the query of a template; a blank text is written as `-`."""
  return prompts.build_prompt(
    template, {k: v if v.strip() else '-' for k, v in texts.items()}
  )


def _template(name: str, body: str, cue: str, choices=()) -> Template:
  return Template(name, body, cue, 'chosen', BETWEEN, '<br>', tuple(choices))


def write_labels(example: Mapping, language: str, cut: Cut) -> WrittenExample:
  """Writes an input and its labels as a model is tuned on them."""
  text, labels = example['input'], example['choices']
  choices = [WrittenChoice(text, label, text, label) for label in labels]
  right = labels.index(example['answer'])
  truth = {'candidates': [*labels], 'answers': [example['answer']]}
  return WrittenExample(choices, right, {'input': text}, truth)


# The whole answer counts, its end included: of labels each is as likely as it
# is to be written.
LABELS_FORMAT = ChoiceFormat(write_labels, ends=True, normalize='sum')


# --- Answers to a filled template


def _answer_template(
  template: Template, example: Mapping, cut: Cut, right: int
) -> WrittenExample:
  """Writes a question whose fields and choices are those of a template."""
  shown = {name: example[name] for name in template.fields}
  texts = dict(shown)
  if 'passage' in texts:
    texts['passage'] = cut(texts['passage'], PASSAGE_TOKENS)
  choices = write_endings(fill_template(template, **texts), template.choices)
  group = example.get('group', '')
  return WrittenExample(choices, right, shown, group=group)


@functools.cache
def nli_template(language: str) -> Template:
  """Returns `prompts.NLI` with dummy shots that are true in another language.

  They ask whether the passage is in English, True, and in French, False. The
  paper does not show it for XNLI; that the first names the passage's language
  and the second English is our reading.
  """
  if language == 'en':
    return prompts.NLI
  first, second = prompts.NLI.body.split('French')
  body = first.replace('English', languages.name_language(language))
  return dataclasses.replace(prompts.NLI, body=f'{body}English{second}')


def write_nli(example: Mapping, language: str, cut: Cut) -> WrittenExample:
  """Writes an example of CB or XNLI."""
  right = NLI_LABELS.index(example['label'])
  return _answer_template(nli_template(language), example, cut, right)


# lm-evaluation-harness' prompts, which are GPT-3's but for capitals. The
# question of BoolQ has no question mark of its own.
RTE = _template(
  'rte', '{premise} <br> Question: {hypothesis} True or False? <br> ',
  'Answer:', ('True', 'False'),
)  # fmt: skip
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


def _answer_by(template: Template, right: Callable[[Any], int]) -> Callable:
  """Makes a `ChoiceFormat.write` of a template and (label -> right choice)."""

  def write(example: Mapping, language: str, cut: Cut) -> WrittenExample:
    return _answer_template(template, example, cut, right(example['label']))

  return write


write_rte = _answer_by(RTE, RTE_LABELS.index)
write_boolq = _answer_by(BOOLQ, int)
write_wic = _answer_by(WIC, int)
# Each candidate is a question of its own.
write_multirc = _answer_by(MULTIRC, lambda is_true: 0 if is_true else 1)


def write_wsc(example: Mapping, language: str, cut: Cut) -> WrittenExample:
  """Writes two choices, no and yes: does the pronoun mean the noun?"""
  pronoun, noun = example['span2_text'], example['span1_text']
  text = mark_span(example['text'], example['span2_index'], pronoun)
  texts = {'text': text, 'pronoun': pronoun, 'noun': noun}
  written = _answer_template(WSC, texts, cut, int(example['label']))
  shown = {'text': text, 'noun': noun}
  return dataclasses.replace(written, shown=shown)


def mark_span(text: str, index: int, span: str) -> str:
  """Sets `*` around a span of words, which begins at word `index`.

  Where the span is not there, as in some examples of WSC, the nearest place
  that has it is marked, or none.
  """
  words, wanted = text.split(), _strip_words(span).split()
  n = len(wanted)
  places = [
    i
    for i in range(len(words) - n + 1)
    if [_strip_words(word) for word in words[i : i + n]] == wanted
  ]
  if places and n:
    at = min(places, key=lambda i: abs(i - index))
    here = ' '.join(words[at : at + n])
    bare = here.strip(string.punctuation)
    words[at : at + n] = [here.replace(bare, f'*{bare}*', 1)]
  return ' '.join(words)


def _strip_words(words: str) -> str:
  """Removes capitals, and punctuation around each word."""
  return ' '.join(w.strip(string.punctuation) for w in words.lower().split())


# --- Texts to complete

# Connectives of lm-evaluation-harness: why, and what follows.
CONNECTIVES = {
  'en': {'cause': 'because', 'effect': 'therefore'},
  'it': {'cause': 'perché', 'effect': 'quindi'},
  'ta': {'cause': 'காரணமாக', 'effect': 'எனவே'},
}
COPA = _template('copa', '{premise} ', '{connective}')


def write_copa(example: Mapping, language: str, cut: Cut) -> WrittenExample:
  """Writes COPA and XCOPA: premise and connective -> the alternative.

  As in GPT-3 and lm-evaluation-harness the alternative is scored: the premise
  loses its full stop, the alternative its capital.
  """
  premise = re.sub(r'[.!?।]$', '', example['premise'].strip())
  connective = CONNECTIVES[language][example['question']]
  question = fill_template(COPA, premise=premise, connective=connective)
  answers = [collapse_whitespace(example[k]) for k in ('choice1', 'choice2')]
  answers = [a[:1].lower() + a[1:] for a in answers]
  shown = {'premise': example['premise'], 'question': example['question']}
  return WrittenExample(
    write_endings(question, answers), example['label'], shown
  )


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


def write_pawsx(example: Mapping, language: str, cut: Cut) -> WrittenExample:
  """Writes `A, right?` -> `Yes, B`, or `No, B`."""
  right, *answers = PARAPHRASE[language]
  first = re.sub(r'[.。]$', '', example['sentence1'].strip())
  question = fill_template(PAWSX, sentence1=first, right=right)
  second = collapse_whitespace(example['sentence2'])
  choices = [
    WrittenChoice(question, end, f'{question} {second}', f'{question} {end}')
    for end in (f'{answer}, {second}' for answer in answers)
  ]
  shown = {k: example[k] for k in ('sentence1', 'sentence2')}
  return WrittenExample(choices, example['label'], shown)


def write_xwinograd(
  example: Mapping, language: str, cut: Cut
) -> WrittenExample:
  """Writes the text up to an answer in the pronoun's place -> the rest.

  Partial evaluation as in Trinh & Le (2018), which GPT-3, XGLM and
  lm-evaluation-harness use. So the encoder's texts differ, and in 'clm' the
  decoder's do not.
  """
  before, after = example['before'], example['after']
  choices = [
    WrittenChoice(
      collapse_whitespace(before + option),
      collapse_whitespace(after),
      collapse_whitespace(before + after),
      collapse_whitespace(before + option + after),
    )
    for option in example['options']
  ]
  shown = {'text': f'{before}_{after}'}
  return WrittenExample(choices, example['label'], shown)


def write_record(example: Mapping, language: str, cut: Cut) -> WrittenExample:
  """Writes passage and highlights -> the query with an entity in it.

  The query is scored as one more highlight, as in GPT-3 and in
  lm-evaluation-harness, whose layout this is.
  """
  passage, *highlights = re.split(r'\n@highlight\n', example['passage'])
  parts = [
    cut(passage, PASSAGE_TOKENS),
    *(f'- {text.rstrip(".")}.' for text in highlights),
  ]
  context = ' <br> '.join(collapse_whitespace(part) for part in parts) + ' <br>'
  query, entities = example['query'], example['entities']

  def filled(entity: str) -> str:
    return '- ' + collapse_whitespace(query.replace('@placeholder', entity))

  choices = [
    WrittenChoice(context, end, f'{context} {filled("")}', f'{context} {end}')
    for end in map(filled, entities)
  ]
  right = next(
    (i for i, e in enumerate(entities) if e in example['answers']), 0
  )
  truth = {'candidates': entities, 'answers': example['answers']}
  shown = {k: example[k] for k in ('passage', 'query')}
  return WrittenExample(choices, right, shown, truth)


def write_continuation(
  example: Mapping, language: str, cut: Cut
) -> WrittenExample:
  """Writes the beginning of a paragraph -> one of several ends."""
  begun, space = example['begun'], example['space']
  choices = [
    WrittenChoice(begun, end, begun, begun + space + end)
    for end in example['ends']
  ]
  return WrittenExample(choices, example['label'], {'begun': begun})
