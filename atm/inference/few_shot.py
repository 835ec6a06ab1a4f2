"""Few-shot prompts of the paper's formats as methods of a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

from atm.data import languages
from atm.data.language_codes import find_language
from atm.inference import prompts, sampling
from atm.inference.model_frame import SOURCE_AND_TARGET
from atm.messages import (
  check_arguments,
  check_choice,
  check_instance,
  check_list,
  check_text,
  check_texts,
  quote,
)

_check_call = check_arguments(
  mode=partial(check_choice, 'mode', known=prompts.MODES, optional=True),
  # By the methods, which name an element that is wrong.
  **dict.fromkeys(
    ('sentences', 'to', 'documents', 'shots', 'source', 'template', 'queries')
  ),
)


def check_shots(name: str, texts, shots) -> tuple[list, list]:
  """Returns texts, and pairs of texts, as lists; see `FewShotMixin`."""
  texts = [
    check_text(f'{name}[{i}]', x) for i, x in enumerate(check_list(name, texts))
  ]
  pairs = []
  for i, shot in enumerate(check_list('shots', shots)):
    pair = check_texts(f'shots[{i}]', shot)
    if len(pair) != 2:
      raise ValueError(f'shots[{i}] = {quote(shot)}: expected a pair of texts')
    pairs.append(pair)
  return texts, pairs


@dataclasses.dataclass(frozen=True)
class AnswerPlan:
  """What a model reads, and how answers are cut out of what it writes.

  Attributes:
    texts: inputs.
    mode, stop, source, target: of `Model.complete`.
    template: that the texts are prompts of; None: outputs are the answers.
    reads: the end of each prompt that has room; None where all of it has.
  """

  texts: list[str]
  mode: str | None = None
  stop: tuple[str, ...] = ()
  source: str | None = None
  target: str | None = None
  template: prompts.Template | None = None
  reads: tuple[str | None, ...] = ()

  def extract(self, number: int, output: str) -> str:
    """Returns the answer in the output of a text."""
    if self.template is None:
      return output
    # In 'denoise' an output repeats the prompt, as far as that was read.
    return prompts.extract_answer(
      self.template, output, self.mode or 'clm', self.texts[number],
      self.reads[number],
    )  # fmt: skip


def plan_translation(
  model,
  sentences: Sequence[str],
  to: str,
  shots: Sequence[tuple[str, str]] = (),
  mode: str | None = None,
  source: str | None = None,
  **options,
) -> AnswerPlan:
  """Returns what `translate` generates from, for other means to generate."""
  if isinstance(shots, str):
    raise ValueError(
      f'shots = {quote(shots)}: expected a list of pairs. Did you mean '
      f'source={quote(shots)}?'
    )
  sentences, shots = check_shots('sentences', sentences, shots)
  by_codes = model.languages and mode is None
  known = model.languages if by_codes else languages.LANGUAGES
  to = find_language('to', to, known)
  if source is not None:
    source = find_language('source', source, known)
  if by_codes and shots:
    raise ValueError(
      f'{len(shots)} shots: this model translates by language codes, and '
      'reads no examples: leave them out'
    )
  if by_codes:
    return AnswerPlan(sentences, source=source, target=to)
  example = lambda text: {'sentence': text, 'language': to}
  shots = [{**example(x), 'translation': y} for x, y in shots]
  queries = list(map(example, sentences))
  return plan_answers(
    model, prompts.TRANSLATION, queries, shots, mode, **options
  )


def plan_answers(
  model,
  template: prompts.Template,
  queries: Sequence[Mapping[str, str]],
  shots: Sequence[Mapping[str, str]] = (),
  mode: str | None = None,
  **options,
) -> AnswerPlan:
  """Returns what `answers` generates from, for other means to generate."""
  if model.vocabulary is None:
    raise ValueError('this model has no tokenizer: prompts are texts')
  check_instance('template', template, prompts.Template)
  if options.get('truncate') == 'end':
    raise ValueError(
      "truncate = 'end' would cut the cue that asks for the answer: expected "
      "'refuse' or 'start'"
    )
  queries, shots = check_list('queries', queries), check_list('shots', shots)
  for i, query in enumerate([*queries, *shots]):
    check_instance(
      f'queries[{i}]' if i < len(queries) else f'shots[{i - len(queries)}]',
      query, Mapping,
    )  # fmt: skip
  texts = [prompts.build_prompt(template, query, shots) for query in queries]
  named = any(options.get(x) is not None for x in SOURCE_AND_TARGET)
  framed = model._framing.name_mode(mode, named)
  # In 'denoise' shots are written, delimiters and all.
  stop = () if framed == 'denoise' else (template.cut,)
  mode = framed if framed in prompts.MODES else None
  tokens = 1 + options.get('max_tokens', sampling.Config().max_tokens)
  room = model._framing.count_room(mode)
  room -= model._framing.count_reserved(tokens)
  reads = tuple(_find_read(model, text, room) for text in texts)
  return AnswerPlan(texts, mode, stop, template=template, reads=reads)


def _find_read(model, text: str, room: int) -> str | None:
  """Returns the end of a prompt that is read; None where all of it is."""
  ids = model.vocabulary.encode(text)
  return None if len(ids) <= room else model.vocabulary.decode(ids[-room:])


class FewShotMixin:
  """Adds translate, summarize and answers to a class with `generate`.

  A model with languages translates by their codes, others by examples. In all,
  `mode` and `options` are those of `generate`, and `shots` examples to
  learn from, of which the paper has one. With truncate='start' a prompt that
  has more tokens than Config.positions loses its first ones: those of the first
  shots, then of the query. The cue that asks for the answer stays.
  """

  @_check_call
  def translate(
    self,
    sentences: Sequence[str],
    to: str,
    shots: Sequence[tuple[str, str]] = (),
    mode: str | None = None,
    source: str | None = None,
    **options,
  ) -> list[str]:
    """Translates sentences, by language codes or in the paper's 1-shot format.

    Args:
      sentences: texts.
      to: the target's language: of a model with `languages` a code or a name,
        see `complete`; else one of `languages.LANGUAGES`, the paper's.
      shots: (sentence, translation) pairs, of a model without languages.
      source: the sentences' language; without effect without `languages`.

    Raises:
      ValueError: no such language, or shots for a model with languages.
    """
    plan = plan_translation(self, sentences, to, shots, mode, source, **options)
    return self._write_answers(plan, options)

  @_check_call
  def summarize(
    self,
    documents: Sequence[str],
    shots: Sequence[tuple[str, str]] = (),
    mode: str | None = None,
    **options,
  ) -> list[str]:
    """Summarizes documents, in the paper's 1-shot format.

    Args:
      documents: texts, cut as `prompts.cut_document` does.
      shots: (document, summary) pairs.
    """
    documents, shots = check_shots('documents', documents, shots)
    short = lambda text: prompts.cut_document(
      text, self.vocabulary.encode, self.vocabulary.decode
    )
    shots = [{'document': short(x), 'summary': y} for x, y in shots]
    queries = [{'document': short(text)} for text in documents]
    return self.answers(prompts.SUMMARY, queries, shots, mode, **options)

  @_check_call
  def answers(
    self,
    template: prompts.Template,
    queries: Sequence[Mapping[str, str]],
    shots: Sequence[Mapping[str, str]] = (),
    mode: str | None = None,
    **options,
  ) -> list[str]:
    """Generates answers to queries of a template, cut at its delimiter.

    Args:
      template: one of `prompts.TEMPLATES`, or another.
      queries: dicts of the template's fields.
      shots: the same, with answers.
      options: but in 'denoise' `stop` is the template's delimiter by default.

    Raises:
      ValueError: the model has no tokenizer, truncate is 'end', or see
        `prompts.build_prompt`.
    """
    plan = plan_answers(self, template, queries, shots, mode, **options)
    return self._write_answers(plan, options)

  def _write_answers(self, plan: AnswerPlan, options: Mapping) -> list[str]:
    """Returns the answers of a plan; `options` are those of `generate`."""
    own = {'stop': [*plan.stop], 'source': plan.source, 'target': plan.target}
    own = {name: value for name, value in own.items() if value}
    outputs = self.generate(plan.texts, plan.mode, **{**own, **options})
    return [plan.extract(i, output) for i, output in enumerate(outputs)]
