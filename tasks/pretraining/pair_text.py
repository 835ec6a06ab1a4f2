"""Reads a pair of input and target, and its languages, from a line.

A line of JSON is either of

  {"input": "Good.", "target": "Gut.",
   "source_language": "en", "target_language": "de"}
  {"translation": {"en": "Good.", "de": "Gut."}}
  {"input_ids": [17, 5], "target_ids": [9, 31]}
  {"input": "Wake me at six.", "choices": ["alarm", "music"],
   "answer": "alarm"}

Of choices the answer, or the one of that number from 0, is the target. A line
of TSV has the two texts in its columns, see `PairReader.columns`.
Languages that a line lacks are those of the settings. In the second form, which
is that of Hugging Face's data sets, they say which text is the input. A pair is
stored as a text, the JSON of [input, target, source, target language], without
the last two where it has no languages.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from atm.data import text_reader
from atm.data.language_codes import find_language
from atm.data.text_lines import BadRecord
from atm.messages import MOST_INT32, one_line, quote

PAIR_FIELDS = ('input', 'target')
PAIR_ID_FIELDS = ('input_ids', 'target_ids')
LANGUAGE_FIELDS = ('source_language', 'target_language')
Direction = tuple[str, str]  # source and target language
_NAME = re.compile(r'\{(\w+)\}')  # of a column, in a template


def pair_to_text(source, target, direction: Iterable = ()) -> str:
  """Writes a pair, of texts or lists of ids, as the text that sources give."""
  return json.dumps([source, target, *direction], ensure_ascii=False)


def text_to_pair(text: str) -> dict[str, str]:
  """Reads a text of `pair_to_text`: {input, target}, and its languages."""
  return dict(zip((*PAIR_FIELDS, *LANGUAGE_FIELDS), json.loads(text)))


def text_to_direction(text: str) -> Direction | None:
  """Returns the languages of a text of `pair_to_text`, if it has any."""
  return tuple(json.loads(text)[2:]) or None


@dataclasses.dataclass(frozen=True)
class PairReader:
  """Reads lines of pairs.

  Attributes:
    source_language, target_language: of pairs that do not say their own.
    known: the model's own codes of languages, into which those of pairs are
      turned; none of a model without: they stay as they are.
    required: whether a pair without languages is a bad one.
    columns: of input and target: names of fields or of a header's columns,
      numbers of columns from 1, or templates, 'Question: {question}', of them.
      None: `input` and `target`; of TSV the first two columns.
  """

  source_language: str | None = None
  target_language: str | None = None
  known: tuple[str, ...] = ()
  required: bool = False
  columns: tuple[str | int, str | int] | None = None

  @property
  def has_header(self) -> bool:
    """Whether columns of TSV are found by the names in its first line."""
    names = self._find_names()
    return not all(name.isdecimal() for name in names)

  def _find_names(self) -> list[str]:
    """Returns the names or numbers of all columns that are read."""
    found = []
    for column in self.columns or (1, 2):
      found += _NAME.findall(str(column)) or [str(column)]
    return found

  def fill(self, row: Mapping) -> dict[str, str]:
    """Returns input and target of a record whose columns are named."""
    texts = []
    for column in self.columns or (1, 2):
      value = str(column)
      filled = _NAME.sub(lambda match: row[match[1]], value)
      texts.append(filled if _NAME.search(value) else row[value])
    return dict(zip(PAIR_FIELDS, texts))

  def read_columns(
    self, line: str, header: Sequence[str] = ()
  ) -> tuple[str, str, Direction | None]:
    """Returns the same as `read` of a line of TSV, whose header is given.

    Raises:
      BadRecord: it has too few columns, or its header has not their names.
    """
    cells = line.split('\t')
    names = header or [str(i + 1) for i in range(len(cells))]
    if missing := [x for x in self._find_names() if x not in names]:
      got = quote(header) if header else f'{len(cells):,}: {quote(line, 60)}'
      raise BadRecord(
        f'a column {quote(missing[0])}', got, 1 if header else None
      )
    if len(cells) < len(header):
      raise BadRecord(
        f'{len(header):,} columns', f'{len(cells):,}: {quote(line, 60)}'
      )
    return self.read_row(self.fill(dict(zip(names, cells))))

  def read(self, line: str) -> tuple[str, str, Direction | None]:
    """Returns input, target and, where they are known, their languages.

    Raises:
      BadRecord: it is no pair, or lacks a language, or has an unknown one.
    """
    if self.columns:
      names = self._find_names()
      row = text_reader.parse_object(line, names)
      for name in names:
        text_reader.check_strings(name, row[name])
      given = {name: row.get(name) for name in LANGUAGE_FIELDS}
      return self.read_row({**given, **self.fill(row)})
    if '"translation"' in line:
      row = text_reader.parse_object(line)
      if isinstance(row.get('translation'), dict):
        return self.read_row(row)
    if '"input_ids"' in line:
      row = text_reader.parse_object(line)
      if 'input_ids' in row:
        return self.read_row(row)
    if '"choices"' in line:
      row = text_reader.parse_object(line, PAIR_FIELDS[:1])
      if 'choices' in row:
        return self.read_row({**row, 'target': get_answer(row)})
    row = text_reader.parse_object(line, PAIR_FIELDS)
    for name in PAIR_FIELDS:
      text_reader.check_strings(name, row[name])
    return self.read_row(row)

  def read_row(self, row: Mapping) -> tuple[str, str, Direction | None]:
    """Returns the same of an object, whose texts were checked."""
    if isinstance(row.get('translation'), dict):
      return self._read_translation(row)
    texts, given = _get_sides(row), self._get_given(row)
    if None in given.values():
      if self.required or set(given.values()) != {None}:
        raise BadRecord(_describe_missing(given), quote(texts[0], 60))
      return *texts, None
    return *texts, tuple(self._find(*item) for item in given.items())

  def _get_given(self, row: Mapping) -> dict[str, str | None]:
    """Returns the languages that a line names, or else the settings do."""
    given = {}
    for name in LANGUAGE_FIELDS:
      value = row.get(name)
      if value is not None and not (isinstance(value, str) and value.strip()):
        raise BadRecord(f'a text in `{name}`', quote(value, 60))
      given[name] = getattr(self, name) if value is None else value
    return given

  def _find(self, name: str, value: str) -> str:
    """Returns the model's own code of a language, or what was given."""
    if not self.known:
      return value
    try:
      return _find_language(name, value, self.known)
    except ValueError as e:
      raise BadRecord('a language of the model', one_line(e)) from None

  def _read_translation(self, row: Mapping) -> tuple[str, str, Direction]:
    """Reads {"translation": {"en": TEXT, "de": TEXT}}."""
    texts, given = row['translation'], self._get_given(row)
    if len(texts) == 2 and list(given.values()).count(None) == 1:
      # Of two languages the one that is not named is the other.
      (missing,) = (name for name, value in given.items() if value is None)
      (named,) = filter(None, given.values())
      given[missing] = next(
        k for k in texts if k != self._find_key(named, texts)
      )
    if None in given.values():
      raise BadRecord(_describe_missing(given), quote(texts, 60))
    chosen = []
    for name, value in given.items():
      text = texts[self._find_key(value, texts)]
      if not isinstance(text, str):
        raise BadRecord(f'a text in {quote(value)}', quote(text, 60))
      text_reader.check_strings(name, text)
      chosen.append(text)
    return *chosen, tuple(self._find(*item) for item in given.items())

  def _find_key(self, code: str, texts: Mapping) -> str:
    """Returns the language of a translation that a code means."""
    try:
      return _find_language('translation', code, tuple(texts))
    except ValueError as e:
      raise BadRecord(
        f'a translation with {quote(code)}', quote(list(texts), 60)
      ) from e


# Pairs by the million have the same few languages.
_find_language = functools.lru_cache(maxsize=4096)(find_language)


def _describe_missing(given: Mapping[str, str | None]) -> str:
  """Returns what is expected of a line that lacks a language."""
  names = [name for name, value in given.items() if value is None]
  fields = ' and '.join(f'`{name}`' for name in names)
  settings = ' and '.join(name.upper() for name in names)
  return f'an object with {fields}, or {settings} for all'


def get_answer(row: Mapping) -> str:
  """Returns the right one of the choices of a line.

  Raises BadRecord unless there are two or more, all different, and a right one.
  """
  choices, answer = row['choices'], row.get('answer')
  texts = isinstance(choices, list) and all(
    isinstance(x, str) and x.strip() for x in choices
  )
  if not texts or len({*choices}) != len(choices) or len(choices) < 2:
    raise BadRecord(
      'two different texts or more in `choices`', quote(choices, 60)
    )
  text_reader.check_strings('choices', choices)
  if type(answer) is int and 0 <= answer < len(choices):
    return choices[answer]
  if isinstance(answer, str) and answer in choices:
    return answer
  raise BadRecord(
    'one of `choices` in `answer`, or its number from 0', quote(answer, 60)
  )


def _get_sides(row: Mapping) -> list:
  """Returns input and target: texts, or lists of token ids."""
  if 'input_ids' not in row:
    return [row[name] for name in PAIR_FIELDS]
  for name in PAIR_ID_FIELDS:
    ids = row.get(name)
    # True is an int, too.
    if not isinstance(ids, list) or not all(
      type(i) is int and 0 <= i <= MOST_INT32 for i in ids
    ):
      expected = f'token ids in `{name}`, such as [17, 5]'
      raise BadRecord(expected, quote(ids, 60))
  return [row[name] for name in PAIR_ID_FIELDS]
