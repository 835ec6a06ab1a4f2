"""Questions whose answers are generated, in the paper's prompts.

See `prompts` for the templates. In 'denoise' the prompt is the same, and the
decoder fills in the answer behind its last cue.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atm.evals.task import Question
from atm.inference import prompts
from atm_tasks.evaluation.multiple_choice import PASSAGE_TOKENS, Cut
from atm_tasks.pretraining.pair_text import PairReader


@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """How examples of one task become questions.

  Attributes:
    template: how a prompt is written.
    fields: (example, language of the answer) -> its fields, answer and all.
    truth: example -> the reference, or the accepted answers.
    max_tokens: of an answer; the paper is silent.
    long: the field that is cut, to
    tokens: of a query's, and
    shot_tokens: of a shot's.
    read: what an answer means, where that is not the answer itself.
  """

  template: prompts.Template
  fields: Callable[[Mapping, str], Mapping[str, str]]
  truth: Callable[[Mapping], Any]
  max_tokens: int
  long: str = ''
  tokens: int = 0
  shot_tokens: int = 0
  read: Callable[[str], str] = str
  generates = True
  truncate = 'start'

  @property
  def stop(self) -> tuple[str, ...]:
    """The texts that end an answer, where the decoder writes nothing else."""
    return (self.template.cut,)

  def question(
    self, example: Mapping, shots: Sequence[Mapping], language: str, mode: str,
    cut: Cut,
  ) -> Question:  # fmt: skip
    """Writes the question of an example, behind its shots."""

    def written(one: Mapping, tokens: int) -> dict[str, str]:
      fields = dict(self.fields(one, language))
      if self.long:
        fields[self.long] = cut(fields[self.long], tokens)
      return fields

    prompt = prompts.build_prompt(
      self.template,
      written(example, self.tokens),
      [written(shot, self.shot_tokens) for shot in shots],
    )
    fields = self.fields(example, language)
    shown = {k: fields[k] for k in self.template.fields if k != 'language'}
    truth = self.truth(example)
    return Question(example['id'], truth, prompt=prompt, shown=shown)

  def answer(
    self, output: str, question: Question, mode: str, read: str | None = None
  ) -> str:
    """Returns the answer in a generated text; see `prompts.extract_answer`."""
    return self.read(
      prompts.extract_answer(self.template, output, mode, question.prompt, read)
    )


@dataclasses.dataclass(frozen=True)
class PairFormat:
  """Inputs asked as they are, as a model was fine-tuned on them.

  Attributes:
    source_language, target_language: of pairs that do not say their own.
  """

  source_language: str | None = None
  target_language: str | None = None
  max_tokens: int = 1023
  generates = True
  truncate = 'end'  # as `pairs.FramePairs` does
  stop = ()

  def question(
    self, example: Mapping, shots: Sequence[Mapping], language: str, mode: str,
    cut: Cut,
  ) -> Question:  # fmt: skip
    """Returns the input as the question; raises ValueError with shots."""
    if shots:
      raise ValueError('SHOTS: pairs are asked as they are: expected 0 or None')
    reader = PairReader(self.source_language, self.target_language)
    text, truth, languages = reader.read_row(example)
    shown = {'input': text}
    if languages:
      shown['languages'] = ' to '.join(languages)
    return Question(
      example['id'], truth, prompt=text, shown=shown, languages=languages
    )

  def answer(
    self, output: str, question: Question, mode: str, read: str | None = None
  ) -> str:
    """Returns the generated text."""
    return output.strip()


@dataclasses.dataclass(frozen=True)
class SentenceFormat:
  """Sentences alone, for models that are told both languages as codes."""

  max_tokens: int
  generates = True
  truncate = 'end'
  stop = ()

  def question(
    self, example: Mapping, shots: Sequence[Mapping], language: str, mode: str,
    cut: Cut,
  ) -> Question:  # fmt: skip
    """Returns the sentence as the question; no shots are in front."""
    shown = {'sentence': example['source'], 'translation': example['target']}
    return Question(
      example['id'], example['target'], prompt=example['source'], shown=shown
    )

  def answer(
    self, output: str, question: Question, mode: str, read: str | None = None
  ) -> str:
    """Returns the generated text."""
    return output.strip()


TRANSLATION_FORMAT = PromptFormat(
  prompts.TRANSLATION,
  lambda e, language: {
    'sentence': e['source'], 'language': language, 'translation': e['target'],
  },
  lambda e: e['target'],
  max_tokens=256,
)  # fmt: skip
SENTENCE_FORMAT = SentenceFormat(TRANSLATION_FORMAT.max_tokens)
# Shots are under 192 words, as in the paper. That one of many tokens, as those
# in Japanese may be, is cut, too, is ours: a prompt has to fit 1024 positions.
SUMMARY_FORMAT = PromptFormat(
  prompts.SUMMARY,
  lambda e, language: {k: e[k] for k in ('document', 'summary')},
  lambda e: e['summary'],
  max_tokens=128,
  long='document',
  tokens=550,
  shot_tokens=350,
)
# For E2E the prompt of the authors' script, which speaks of places; that WebNLG
# has the same is our reading.
DATA_TO_TEXT_FORMAT = PromptFormat(
  prompts.DATA_TO_TEXT,
  lambda e, language: {'data': e['data'], 'text': e['texts'][0]},
  lambda e: e['texts'],
  max_tokens=128,
)

# The paper's prompt does not say how to decline. What these say is no answer.
NO_ANSWER = frozenset((
  'unanswerable', 'no answer', 'none', 'n/a', 'unknown', 'not given',
  'not stated', 'not mentioned', 'not answerable', "i don't know", '',
))  # fmt: skip


def drop_refusal(answer: str) -> str:
  """Returns an answer, '' in place of one which says that there is none."""
  return '' if answer.strip(' .!"\'').lower() in NO_ANSWER else answer


SQUADV2_FORMAT = PromptFormat(
  prompts.SQUADV2,
  lambda e, language: {
    'context': e['context'],
    'question': e['question'],
    'answer': (e['answers'] or ['unanswerable'])[0],
  },
  lambda e: e['answers'],
  max_tokens=32,
  long='context',
  tokens=PASSAGE_TOKENS,
  shot_tokens=PASSAGE_TOKENS,
  read=drop_refusal,
)
