"""Text and JSON Lines that users give."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atm.data import text_reader

ROWS = [{'input': 'a', 'n': 1}, {'input': 'b\u2028c'}]


def rows(tmp_path, content, name='a.jsonl', fields=()):
  content = content.encode() if isinstance(content, str) else content
  (tmp_path / name).write_bytes(content)
  return list(text_reader.read_objects(str(tmp_path / name), fields))


@pytest.mark.parametrize('content, numbers', [
  ('{"input": "a", "n": 1}\n{"input": "b\u2028c"}', [1, 2]),
  ('\ufeff{"input": "a", "n": 1}\r\n\r\n{"input": "b\\u2028c"}\r\n', [1, 3]),
  ('{"input": "a", "n": 1}\r{"input": "b\u2028c"}\r', [1, 2]),
  ('[{"input": "a", "n": 1}, {"input": "b\u2028c"}]', [1, 1]),
  ('\n [\n{"input":\n"a", "n": 1}\n,\n\n{"input": "b\u2028c"}\n]\n', [3, 7]),
])  # fmt: skip
def test_the_same_rows(tmp_path, content, numbers):
  assert rows(tmp_path, content) == list(zip(numbers, ROWS))


def test_an_empty_array_has_no_rows(tmp_path):
  assert rows(tmp_path, '[ ]\n') == rows(tmp_path, '') == []


BAD = {
  '{"input": "a\\ud83d"}': 'line 1: .*half of a surrogate pair',
  '{"input": "a", "x": {"y": ["\\udc00"]}}': 'line 1: .*half of a surrogate',
  '{"input": "a", "\\udc00": 1}': 'line 1: .*half of a surrogate',
  '{"input": "a\\u0000"}': 'line 1: .*NUL',
  '{"input": "a"}\n{"input": "b", "input": "c"}': "line 2: .*'input' twice",
  '{"input": "a", "x": NaN}': 'line 1: expected JSON; got nan in `x`',
  '{"input": "a", "x": [1e999]}': 'line 1: expected JSON; got inf in `x`',
  '\n\n{"input": 5}': 'line 3: expected an object with a string `input`',
  '"a"': 'line 1: expected an object',
  '{"input": "a"} {}': 'line 1: expected an object.*Extra data',
  '{"a":' * 100_000: 'line 1: .*nested over 64 deep',
  '[' * 100_000: 'line 1: expected an object',
  '[{"input": "a"},\n{"input": 3}]': 'line 2: expected an object with',
  '[{"input": "a"},\n{"input": "b"}': 'line 2: expected an object a line, or',
  '[{"input": "a"}\n]\n{}': 'line 2: expected the end of the array',
  '[1': 'line 1: expected an object',
  '{"input": "a", "x": ' + '9' * 5000 + '}': 'line 1: expected an object',
}


@pytest.mark.parametrize('content', BAD, ids=lambda content: content[:40])
def test_bad_rows_are_named(tmp_path, content):
  with pytest.raises(ValueError, match=f'a.jsonl, {BAD[content]}') as e:
    rows(tmp_path, content, fields=('input',))
  assert len(str(e.value).removeprefix(str(tmp_path))) < 400
  assert e.value.args[0].encode()  # can be printed


@pytest.mark.parametrize('content, is_json', [
  ('{"prompt": "a"}\n', True),
  ('\n [\n {\n "input"', True),
  ('{"input": "a"}\n{"input": "b"}\n', True),
  ('{"input": "a"}\nno JSON\n', False),
  ('{not JSON}\n', False),
  ('[Verse 1]\n', False),
  ('1\n2\n', False),
])  # fmt: skip
def test_json_is_no_text(tmp_path, content, is_json):
  """Fault seen: lines of JSON given to the model as prompts."""
  path = tmp_path / 'a.txt'
  path.write_text(content)
  if is_json:
    with pytest.raises(ValueError, match='got JSON: give a file whose name'):
      list(text_reader.read_text_lines(str(path)))
  else:
    texts = [text for _, text in text_reader.read_text_lines(str(path))]
    assert texts == content.split('\n')[:-1]


def test_fields_alone_are_checked_where_others_are_not_kept():
  """Documents of a crawl have all kinds of fields, and NUL."""
  raw = rb'{"text": "a\u0000", "title": "\ud83d", "score": NaN}'
  assert text_reader.parse_object(raw, ('text',))['text'] == 'a\0'
  with pytest.raises(text_reader.BadRecord, match='`text`; got half of a'):
    text_reader.parse_object(rb'{"text": "\ud83d"}', ('text',))


def test_is_array(tmp_path):
  for content, expected in ((b'\n [', True), (b'{', False), (b'', False)):
    (tmp_path / 'a.json').write_bytes(content)
    assert text_reader.is_array(str(tmp_path / 'a.json')) == expected


TEXT = st.text(st.characters(codec='utf-8', exclude_characters='\0'))
VALUE = st.recursive(
  st.none() | st.booleans() | st.integers() | TEXT
  | st.floats(allow_nan=False, allow_infinity=False),
  lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
  max_leaves=5,
)  # fmt: skip


@given(
  rows=st.lists(st.dictionaries(TEXT, VALUE), min_size=1, max_size=4),
  ascii_only=st.booleans(),
  end=st.sampled_from(['\n', '\r\n', '\r', '\n\n \n']),
  form=st.sampled_from(['lines', 'array', 'indented']),
)
@settings(max_examples=25, deadline=None)
def test_what_json_writes_is_read(
  tmp_path_factory, rows, ascii_only, end, form
):
  """Also the texts that `str.splitlines` would break."""
  path = tmp_path_factory.getbasetemp() / 'rows.json'
  write = lambda value, **options: json.dumps(
    value, ensure_ascii=ascii_only, **options
  )
  if form == 'lines':
    text = end.join(map(write, rows))
  else:
    text = write(rows, indent=1 if form == 'indented' else None)
    text = text.replace('\n', end)
  path.write_bytes(text.encode())
  assert [row for _, row in text_reader.read_objects(str(path))] == rows
