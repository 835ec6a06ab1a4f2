"""Few-shot prompts of the paper's formats as methods of a model."""

from collections.abc import Mapping, Sequence
from functools import partial

from atm.data import languages
from atm.data.language_codes import find_language
from atm.inference import prompts
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
    if isinstance(shots, str):
      raise ValueError(
        f'shots = {quote(shots)}: expected a list of pairs. Did you mean '
        f'source={quote(shots)}?'
      )
    sentences, shots = check_shots('sentences', sentences, shots)
    by_codes = self.languages and mode is None
    known = self.languages if by_codes else languages.LANGUAGES
    to = find_language('to', to, known)
    if source is not None:
      source = find_language('source', source, known)
    if by_codes and shots:
      raise ValueError(
        f'{len(shots)} shots: this model translates by language codes, and '
        'reads no examples: leave them out'
      )
    if by_codes:
      return self.generate(sentences, source=source, target=to, **options)
    example = lambda text: {'sentence': text, 'language': to}
    shots = [{**example(x), 'translation': y} for x, y in shots]
    queries = list(map(example, sentences))
    return self.answers(prompts.TRANSLATION, queries, shots, mode, **options)

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
    if self.vocabulary is None:
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
    framed = self._framing.name_mode(mode, named)
    if framed != 'denoise':  # there shots are written, delimiters and all
      options = {'stop': [template.cut], **options}
    mode = framed if framed in prompts.MODES else None
    outputs = self.generate(texts, mode, **options)
    # In 'denoise' an output repeats the prompt, as far as that was read.
    return [
      prompts.extract_answer(
        template, output, mode or 'clm', text, self._find_read(text, mode)
      )
      for text, output in zip(texts, outputs)
    ]

  def _find_read(self, text: str, mode: str) -> str | None:
    """Returns the end of a prompt that is read; None where all of it is."""
    room = self._framing.count_room(mode)
    ids = self.vocabulary.encode(text)
    return None if len(ids) <= room else self.vocabulary.decode(ids[-room:])
