"""Builds prompts for in-context learning, and cuts answers out of outputs.

A prompt is k shots, examples with their answers, and one query without:

  query answer between ... query answer between query

The formats are those of the paper's evaluation, as its authors' released script
and notebook write them. The tokenizer drops newlines, so `;` or `<br>` stands
between, and a generated answer is cut there, even if it should hold one.

A prompt has no `[CLM]`: text never encodes to it, so the caller inserts the id,
as `Model.generate(..., mode='clm')` does.
"""

import dataclasses
import itertools
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from atm.data import languages
from atm.data.input_format import MODES
from atm.data.sentences import drop_partial_sentence
from atm.inference import stop_strings
from atm.messages import (
  check_arguments,
  check_choice,
  check_count,
  check_index,
  check_instance,
  check_list,
  check_text,
  quote,
)


@dataclasses.dataclass(frozen=True)
class Template:
  """How one task is written.

  Attributes:
    name: its key in TEMPLATES.
    body: a query up to its cue, with `{field}` for the text of a field;
      `{last_word}` is made of the field `context`.
    cue: the end of a query, which asks for the answer.
    answer: the field that holds an example's answer.
    between: what stands between a shot and what follows.
    cut: a generated answer ends where this begins.
    choices: the answers to choose from, where a task is scored.
  """

  name: str
  body: str
  cue: str
  answer: str
  between: str
  cut: str
  choices: tuple[str, ...] = ()

  @property
  def fields(self) -> tuple[str, ...]:
    """The fields of a query, in order."""
    parts = string.Formatter().parse(self.body + self.cue)
    names = dict.fromkeys(name for _, name, _, _ in parts if name)
    return tuple(name for name in names if name != 'last_word')


SUMMARY = Template(
  name='summary',
  body='Article: {document} ==> ',
  cue='Short summary:',
  answer='summary',
  between=' <br><br><br> ',
  cut='<br>',
)
TRANSLATION = Template(
  name='translation',
  body='Sentence: {sentence}; ',
  cue='Translation in {language}:',
  answer='translation',
  between='; ',
  cut=';',
)
DATA_TO_TEXT = Template(
  name='data_to_text',
  body='{data} ==> ',
  cue='sentence describing the place:',
  answer='text',
  between=' ; ',
  cut=';',
)
# Zero-shot, with a dummy shot that any passage gives.
SQUADV2 = Template(
  name='squadv2',
  body='Context: {context} Question: What is the last word in the passage? '
  'Answer: {last_word}; Question: {question} ',
  cue='Answer:',
  answer='answer',
  between='; ',
  cut=';',
)
# CB and other inference, zero-shot, with two dummy shots.
NLI = Template(
  name='nli',
  body='Context: {premise} <br> Question: Is this passage written in English? '
  '<br> Answer (True, False, or Neither): True <br> Question: Is this passage '
  'written in French? <br> Answer (True, False, or Neither): False <br> '
  'Question: {hypothesis} <br> ',
  cue='Answer (True, False, or Neither):',
  answer='answer',
  between=' <br> ',
  cut='<br>',
  choices=('True', 'False', 'Neither'),
)
TEMPLATES = {
  t.name: t for t in (SUMMARY, TRANSLATION, DATA_TO_TEXT, SQUADV2, NLI)
}


def find_template(name: str) -> Template:
  """Returns the template of a name; raises ValueError with the nearest."""
  check_choice('template', name, TEMPLATES)
  return TEMPLATES[name]


@check_arguments(shots=partial(check_list, 'shots'))
def build_prompt(
  template: Template, query: Mapping[str, str], shots: Sequence[Mapping] = ()
) -> str:
  """Writes the text that the encoder reads, without `[CLM]`.

  Whitespace in a field, newlines too, becomes single spaces, as in the
  tokenizer; not `<br>`, which ends answers.

  Args:
    template: how the task is written.
    query: a text for each of `template.fields`; a language is a code or a name.
      It may hold the answer, which is not written.
    shots: the same with answers, written in this order.

  Raises:
    ValueError: a field is unknown, missing or blank, or a language is unknown.
  """
  parts = [_write(template, shot, True) + template.between for shot in shots]
  return ''.join([*parts, _write(template, query, False)])


def _write(template: Template, example: Mapping, answered: bool) -> str:
  check_instance('a query or a shot', example, Mapping)
  known = (*template.fields, template.answer)
  for name in example:
    check_choice(f'a field of template {template.name!r}', name, known)
  texts = {}
  for name in known if answered else template.fields:
    text = example.get(name)
    if not isinstance(text, str) or not text.strip():
      raise ValueError(
        f'field {name!r} of template {template.name!r} is {quote(text)}: '
        f'expected text. Its fields: {", ".join(known)}.'
      )
    texts[name] = _one_line(text)
  if 'language' in texts:
    languages.check_language(texts['language'])
    texts['language'] = languages.name_language(texts['language'])
  if 'context' in texts:  # stripped as in the authors' notebook
    texts['last_word'] = texts['context'].split()[-1].strip('.').strip('?')
  query = (template.body + template.cue).format(**texts)
  return f'{query} {texts[template.answer]}' if answered else query


def _one_line(text: str) -> str:
  return ' '.join(text.split())


@check_arguments(
  output=partial(check_instance, 'output', kind=str),
  prompt=partial(check_instance, 'prompt', kind=str),
  read=partial(check_text, 'read', optional=True),
)
def extract_answer(
  template: Template, output: str, mode: str = 'clm', prompt: str = '',
  read: str | None = None,
) -> str:  # fmt: skip
  """Extracts the answer of a generated text, up to the template's delimiter.

  On one line, '' where there is none. Cues and delimiters are found as the
  template has them, and as a tokenizer normalises them: outputs have ';' for
  '；'. Only 'denoise' needs the prompt.

  Args:
    template, mode: of the prompt.
    output: the generated text.
    prompt: of `build_prompt`.
    read: the end of the prompt that the model had room to read; None: all.

  Raises:
    ValueError: an unknown mode, or a prompt of another template.
  """
  check_choice('mode', mode, MODES)
  rest = _one_line(output)
  if mode == 'denoise':
    # The output repeats the prompt, shots and all, so the answer stands behind
    # as many cues as the prompt has. An output with fewer did not come so far,
    # or changed a cue: it has no answer, rather than that of a shot.
    prompt = _one_line(prompt)
    cue = _filled_cue(template, prompt)
    read = prompt if read is None else _one_line(read)
    count = _normalize(read).count(_normalize(cue))
    if not count:  # the cue itself had no room
      return ''
    cues = '|'.join(map(re.escape, (cue, _normalize(cue))))
    *before, rest = re.split(cues, rest, maxsplit=count)
    rest = rest if len(before) == count else ''
  cuts = template.cut, _normalize(template.cut)
  return stop_strings.cut_at_stop(rest, cuts).strip()


def _normalize(text: str) -> str:
  # As SentencePiece's nmt_nfkc, where there is no tokenizer to ask.
  return unicodedata.normalize('NFKC', text)


def _filled_cue(template: Template, prompt: str) -> str:
  """Returns the cue that a prompt ends in, its language filled in."""
  start = prompt.rfind(template.cue.split('{')[0])
  if start < 0:
    raise ValueError(
      f'prompt = {quote(prompt)}: expected one of template {template.name!r}, '
      f'which ends in {template.cue!r}'
    )
  return prompt[start:]


@check_arguments(
  text=partial(check_instance, 'text', kind=str),
  limit=partial(check_count, 'limit'),
)
def cut_document(
  text: str,
  encode: Callable[[str], Sequence[int]],
  decode: Callable[[Sequence[int]], str],
  limit: int = 550,
) -> str:
  """Cuts a long document as for 1-shot summaries: 550 tokens, whole sentences.

  Up to the last of `limit` tokens where no sentence ends. `encode` adds no
  `<s>` and `</s>`; a short text stays as it is.
  """
  ids = encode(text)
  if len(ids) <= limit:
    return text
  return drop_partial_sentence(decode(ids[:limit]))


@check_arguments(
  k=partial(check_index, 'k'), field=partial(check_text, 'field')
)
def choose_shots(
  examples: Iterable[Mapping], k: int = 1, field: str = 'document'
) -> list[Mapping]:
  """Returns the first k examples under 192 words: the shots for summaries.

  Raises ValueError if there are fewer.
  """
  # A word is what stands between spaces: in Japanese all documents are short.
  short = (x for x in examples if len(_read_field(x, field).split()) < 192)
  shots = list(itertools.islice(short, k))
  if len(shots) < k:
    raise ValueError(
      f'k = {k}: {len(shots)} of the examples have a {field!r} under 192 words'
    )
  return shots


def _read_field(example: Mapping, field: str) -> str:
  """Returns the text of an example; raises ValueError where it has none."""
  check_instance('an example', example, Mapping)
  return check_instance(f'{field!r} of an example', example.get(field), str)
