"""Few-shot prompts of the paper's formats as methods of a model."""

from collections.abc import Mapping, Sequence
from functools import partial

from atm.inference import prompts
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
  mode=partial(check_choice, 'mode', known=prompts.MODES),
  # By the methods, which name an element that is wrong.
  **dict.fromkeys(
    ('sentences', 'to', 'documents', 'shots', 'template', 'queries')
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

  In all, `mode` and `options` are those of `generate`, and `shots` examples to
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
    mode: str = 'clm',
    **options,
  ) -> list[str]:
    """Translates sentences, in the paper's 1-shot format.

    Args:
      sentences: texts.
      to: the target's language, a code or an English name of
        `languages.LANGUAGES`.
      shots: (sentence, translation) pairs.
    """
    to = check_text('to', to)
    sentences, shots = check_shots('sentences', sentences, shots)
    example = lambda text: {'sentence': text, 'language': to}
    shots = [{**example(x), 'translation': y} for x, y in shots]
    queries = list(map(example, sentences))
    return self.answers(prompts.TRANSLATION, queries, shots, mode, **options)

  @_check_call
  def summarize(
    self,
    documents: Sequence[str],
    shots: Sequence[tuple[str, str]] = (),
    mode: str = 'clm',
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
    mode: str = 'clm',
    **options,
  ) -> list[str]:
    """Generates answers to queries of a template, cut at its delimiter.

    Args:
      template: one of `prompts.TEMPLATES`, or another.
      queries: dicts of the template's fields.
      shots: the same, with answers.
      options: in 'clm' `stop` is the template's delimiter by default.

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
    if mode == 'clm':  # in 'denoise' the shots are written, delimiters and all
      options = {'stop': [template.cut], **options}
    outputs = self.generate(texts, mode, **options)
    # In 'denoise' an output repeats the prompt, as far as that was read.
    return [
      prompts.extract_answer(
        template, output, mode, text, self._find_read(text, mode)
      )
      for text, output in zip(texts, outputs)
    ]

  def _find_read(self, text: str, mode: str) -> str | None:
    """Returns the end of a prompt that is read; None where all of it is."""
    room = self.config.positions - len(self.framed([], mode))
    ids = self.vocabulary.encode(text)
    return None if len(ids) <= room else self.vocabulary.decode(ids[-room:])
