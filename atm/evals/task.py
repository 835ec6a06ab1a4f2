"""Evaluation tasks, and questions with their reference answers.

A task reads the examples of a data set and writes each as a question: a prompt
whose continuation is generated, or pairs of an encoder and a decoder text of
which the likeliest is chosen, as in the paper's scoring.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

OWN_FORMAT = 'own'  # in place of a mode, where a task has none


@dataclasses.dataclass(frozen=True)
class Question:
  """One example as the model reads it, without `[CLM]`.

  Attributes:
    id: of the example in its data set; unique in a task.
    truth: what metrics compare with: the index of the right choice, a reference
      text, or a list of accepted texts; see `metrics.Metric`.
    prompt: the encoder's text, where an answer is generated.
    pairs: (encoder text, decoder text) of each choice, where one is chosen.
    group: questions of one group are judged together and drawn together in
      bootstraps (the answers to one question of MultiRC); '' for its own.
    shown: texts of the example that the report shows, by name.
    languages: (source, target) that a pair says, as users write them; None:
      those of the task.
  """

  id: str
  truth: Any
  prompt: str | None = None
  pairs: tuple[tuple[str, str], ...] = ()
  group: str = ''
  shown: Mapping[str, str] = dataclasses.field(default_factory=dict)
  languages: tuple[str, str] | None = None


class Tokenizer(Protocol):
  """The methods of `Vocabulary` which tasks use to cut long texts."""

  def encode(self, text: str) -> list[int]: ...

  def decode(self, ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Task:
  """One data set in one language or direction, in one prompt format.

  Attributes:
    name: 'xnli_de', 'flores101_en_de'.
    set: the data set, 'xnli': the key of published figures and of folders.
    language: of the answer, a code of `languages.LANGUAGES`.
    metrics: keys of `metrics.METRICS`, the main one first.
    make_questions: tokenizer or None -> the questions, in the data set's order.
      Without a tokenizer no text is cut to a number of tokens.
    answer: (output, question) -> the answer cut out of a generated text; with
      `read`, the part of a prompt that had room, where it was cut.
    source_language: of the text, where it is not `language`.
    mode: 'clm' or 'denoise', see `prompts.MODES`; None: the model's own format.
    shots: examples with answers in front of each question.
    max_tokens: of a generated answer.
    stop: texts that end a generated answer.
    truncate: 'start' or 'end', where a text that is too long is cut.
    normalize: 'mean' (a token) or 'sum': what is compared between choices.
    chance: the main metric of guessing, where choices are given; else None.
    ends: whether a choice is scored with the end token behind it, as pairs that
      models are tuned on have it.
    source: where the examples are read, for the record.
    by_languages: of a translation: the same task as sentences alone, for models
      that are told the languages as codes; see `model_tasks`.
    asked_as_is: whether a question is the input that models are tuned on.
    languages: (source, target) as the model's own codes, where the model is
      told them; None: it is not.
  """

  name: str
  set: str
  language: str
  metrics: tuple[str, ...]
  make_questions: Callable[[Tokenizer | None], list[Question]]
  answer: Callable[..., str] | None = None
  source_language: str | None = None
  mode: str | None = 'clm'
  shots: int = 0
  max_tokens: int = 64
  stop: tuple[str, ...] = ()
  truncate: str = 'start'
  normalize: str = 'mean'
  chance: float | None = None
  ends: bool = False
  source: str = ''
  by_languages: 'Task | None' = None
  asked_as_is: bool = False
  languages: tuple[str | None, str | None] | None = None

  @property
  def asked(self) -> str:
    """How a model is asked: 'by language codes eng_Latn -> tam_Taml'."""
    if self.languages is None:
      return f'{self.shots or "zero"}-shot, {self.mode or OWN_FORMAT} mode'
    codes = (code or 'default' for code in self.languages)
    return f'by language codes {" -> ".join(codes)}'


class MissingData(Exception):
  """A data set is not on disk; says where to get and where to put its files."""
