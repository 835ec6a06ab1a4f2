"""Reads the text that users give: plain text, JSON Lines and JSON arrays.

All text comes in here: prompts, pairs, training text, evaluation data, shots.
Lines are those of `text_lines`. A file of JSON holds an object a line, or one
array of objects; a blank line is none, and numbers count it. Refused are half
of a surrogate pair, a name that an object has twice, deep nesting, and, where
values are written again, NaN and Infinity.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from atm import fileio
from atm.data.text_lines import BadRecord, decode, read_lines
from atm.messages import check_text, one_line, quote

_SCAN, _SPACE = json.JSONDecoder().raw_decode, re.compile(r'[ \t\r\n]*')
_PEEK = 8  # lines that tell JSON in a text file

Record = tuple[int, bytes]  # a line's number, and a line or a JSON value


# --- Records


def iterate_records(
  path: str, kind: str, start: int = 0, end: int | None = None
) -> Iterator[Record]:
  """Yields (number, line) of text, or (number, JSON) of JSON Lines or an array.

  Args:
    path: a file, or one of `text_lines.STDIN`.
    kind: 'jsonl', or another for text, see `text_lines.detect_text_format`.
    start, end: the bytes in which lines begin; numbers are relative to these.

  Raises:
    OSError, BadRecord, ValueError: see `read_lines`; or text that is JSON.
  """
  lines = read_lines(path, start, end)
  if start > 0:
    yield from enumerate(lines, 1)
    return
  head, broken = _peek(lines)
  if kind != 'jsonl' and _is_json(head):
    raise ValueError(
      f'{path}, line 1: expected a text a line; got JSON: give a file whose '
      'name ends in .jsonl'
    )
  if kind == 'jsonl' and b''.join(head).lstrip().startswith(b'['):
    yield from _read_array([*head, *lines])
    return
  yield from enumerate(itertools.chain(head, lines), 1)
  if broken:
    raise broken


def _peek(lines: Iterator[bytes]) -> tuple[list[bytes], BadRecord | None]:
  """Takes the first lines, up to where they break."""
  head, written = [], 0
  try:
    while written < _PEEK:
      head.append(next(lines))
      written += bool(head[-1].strip())
  except StopIteration:
    pass
  except BadRecord as e:
    return head, e
  return head, None


def is_array(path: str) -> bool:
  """Tells whether a file of JSON is an array, not an object a line."""
  return next(filter(None, map(bytes.strip, read_lines(path))), b'')[:1] == b'['


def _is_json(head: Sequence[bytes]) -> bool:
  """Tells whether all lines are JSON objects, or begin an array of them."""
  lines = [line.strip() for line in head if line.strip()]
  if re.match(rb'\[\s*\{\s*"', b'\n'.join(lines)):
    return True
  try:
    rows = [json.loads(line) for line in lines if line[:1] == b'{']
  except (ValueError, RecursionError):
    return False
  return len(rows) == len(lines) > 0


def _read_array(lines: Sequence[bytes]) -> Iterator[Record]:
  """Yields (number of its first line, JSON) of each value of an array."""
  text = '\n'.join(decode(line, i) for i, line in enumerate(lines, 1))
  number, at = 1, text.index('[') + 1
  line_at = 0
  while True:
    begin = _SPACE.match(text, at).end()
    number, line_at = number + text.count('\n', line_at, begin), begin
    if text[begin : begin + 1] == ']':
      break
    try:
      _, end = _SCAN(text, begin)
    except (ValueError, RecursionError):
      end = begin
    at = _SPACE.match(text, end).end()
    if end == begin or text[at : at + 1] not in (',', ']'):
      near = quote(text[begin : begin + 60])
      raise BadRecord('an object a line, or an array of them', near, number)
    yield number, text[begin:end].encode()
    at += text[at] == ','
  if rest := text[begin + 1 :].strip():
    raise BadRecord('the end of the array to end the file', quote(rest), number)


# --- JSON


def _unique_names(pairs: list[tuple[str, Any]]) -> dict:
  """Returns an object; raises ValueError where it has a name twice."""
  made = dict(pairs)
  if len(made) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f'{quote(twice, 40)} twice in an object')
  return made


# Made once: `json.loads` would make one for each line.
_STRICT = json.JSONDecoder(object_pairs_hook=_unique_names)


def parse_value(raw: bytes | str, expected: str = 'JSON'):
  """Returns the value of a JSON text; raises BadRecord for what is none."""
  text = decode(raw) if isinstance(raw, bytes) else raw
  try:
    # Quoted on error alone: documents are long.
    return fileio.parse_json(text, '', _STRICT.decode)
  except ValueError as e:
    why = str(e).replace(': line 1 col', ': col')
    raise BadRecord(expected, quote(raw, 60) + why) from e


@functools.cache
def _describe_object(fields: tuple[str, ...]) -> str:
  """Says what is expected: 'an object with a string `a` and `b`'."""
  names = ' and'.join(f' `{name}`' for name in fields)
  return f'an object with a string{names}' if fields else 'an object'


def parse_object(raw: bytes | str, fields: Sequence[str] = ()) -> dict:
  """Returns a JSON object with a text under each of `fields`.

  Raises:
    BadRecord: it is no object, or lacks a field, or one is no text.
  """
  expected = _describe_object(tuple(fields))
  row = parse_value(raw, expected)
  if not isinstance(row, dict):
    raise BadRecord(expected, quote(raw, 60))
  for name in fields:
    if not isinstance(row.get(name), str):
      raise BadRecord(expected, quote(raw, 60))
    try:
      row[name].encode()
    except UnicodeEncodeError as e:
      got = f'half of a surrogate pair as character {e.start}'
      raise BadRecord(expected, got) from None
  return row


def check_strings(name: str, value) -> None:
  """Raises BadRecord unless UTF-8 and JSON can hold all of a JSON value."""
  level = [value]
  while level:
    for inner in level:
      if isinstance(inner, str):
        _check_string(name, inner)
      elif isinstance(inner, float) and inner - inner != 0:
        raise BadRecord('JSON', f'{inner} in {name}, which is none')
    level = [
      x
      for inner in level
      if isinstance(inner, dict | list)
      for x in ([*inner, *inner.values()] if isinstance(inner, dict) else inner)
    ]


def _check_string(name: str, text: str) -> None:
  try:
    check_text(name, text)
  except ValueError as e:
    raise BadRecord('text', one_line(e)) from None


# --- Whole files


def read_text_lines(path: str, kind: str = 'txt') -> Iterator[tuple[int, str]]:
  """Yields (number, line) of a text file, blank lines, too.

  Raises:
    OSError: there is no such file.
    ValueError: a line is no text; names file and line.
  """
  yield from _located(path, kind, decode)


def read_objects(
  path: str, fields: Sequence[str] = ()
) -> Iterator[tuple[int, dict]]:
  """Yields (number, object) of JSON Lines or of an array; no blank lines.

  All texts in an object are checked, whatever their names.

  Raises:
    OSError: there is no such file.
    ValueError: a line has no object with a text under each of `fields`, or
      other values than JSON has; names file and line.
  """

  def parse(text: str) -> dict:
    row = parse_object(text, fields)
    for name, value in row.items():
      _check_string('a name', name)
      check_strings(f'`{name[:40]}`', value)
    return row

  yield from read_values(path, parse)


def read_values(
  path: str, parse: Callable = parse_value
) -> Iterator[tuple[int, Any]]:
  """Yields (number, JSON value) of JSON Lines or of an array; see above.

  Args:
    path: the file.
    parse: text of a line -> value; raises BadRecord.
  """

  def parse_line(raw: bytes):
    text = decode(raw)
    return parse(text) if text.strip() else None

  yield from _located(path, 'jsonl', parse_line)


def read_document(path: str) -> dict:
  """Returns the one object of a JSON file, whose texts are checked.

  Raises:
    OSError: there is no such file.
    ValueError: it holds no such object; names the file.
  """
  value = fileio.read_json(path)
  try:
    check_strings('a text', value)
  except BadRecord as e:
    raise ValueError(f'{path}: {e}') from e
  return value


def _located(path: str, kind: str, parse: Callable) -> Iterator[tuple]:
  """Yields (number, parsed record), None left out; adds the place to errors."""
  number = 0
  try:
    for number, raw in iterate_records(path, kind):
      if (value := parse(raw)) is not None:
        yield number, value
      number += 1  # of the next, where the file breaks
  except BadRecord as e:
    number = e.number or max(1, number)
    raise ValueError(f'{path}, line {number}: {e}') from e
