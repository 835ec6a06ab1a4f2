"""Gin text becomes statements, within bounds; values are of known kinds."""

import pytest

from atm.cli import gin_text
from atm.cli.gin_text import Reference, UserError, parse_text


def bound(text, where='x.gin'):
  """Returns (name, value) of each binding of a text."""
  return [(s.name, s.value) for s, _ in parse_text(text, where)]


def test_statements_and_where_they_are():
  text = (
    "import atm_tasks\n\ninclude 'a.gin'  # sizes\nSEED = 1\n"
    'model.Config:\n  d_model = %SEED  # wide\n  ties = "all"\n'
  )
  parsed = parse_text(text, 'x.gin')
  assert [where for _, where in parsed] == [
    f'x.gin, line {n}' for n in (1, 3, 4, 6, 7)
  ]
  assert parsed[0][0].module == 'atm_tasks'
  assert parsed[1][0].filename == 'a.gin'
  assert [(s.name, s.value) for s, _ in parsed[2:]] == [
    ('SEED', 1),
    ('model.Config.d_model', Reference('SEED', is_macro=True)),
    ('model.Config.ties', 'all'),
  ]


@pytest.mark.parametrize('newline', ['\n', '\r\n', '\r'])
def test_newlines_of_any_kind(newline):
  text = 'SEED = 1\nX = (2,\n 3)\n# \\\nT = """a\nb"""\n'
  assert bound(text.replace('\n', newline)) == [
    ('SEED', 1), ('X', (2, 3)), ('T', 'a\nb'),
  ]  # fmt: skip


@pytest.mark.parametrize('value, text', [
  (Reference('a/SEED', is_macro=True), '%a/SEED'),
  (Reference('model.Config'), '@model.Config'),
  (Reference('a/model.Config', evaluate=True), '@a/model.Config()'),
])  # fmt: skip
def test_a_reference_reads_as_it_is_written(value, text):
  assert bound(f'X = [{text}]') == [('X', [value])]
  assert str(value) == text and value.selector == text.strip('@%()a/')


def test_values_are_walked():
  value = {'a': [1, (Reference('A'), {2: Reference('B')})]}
  assert gin_text.find_references(value) == [Reference('A'), Reference('B')]
  assert gin_text.nesting(value) == 4
  assert gin_text.count_items(value) == 9
  assert gin_text.replace_references(value, lambda r: r.name) == {
    'a': [1, ('A', {2: 'B'})]
  }
  assert gin_text.count_items(1) == 1 and gin_text.nesting(()) == 1


@pytest.mark.parametrize('text, message', [
  ('SEED = 1 2\n', 'x.gin, line 1: not gin: Expected newline'),
  ('\n\nSEED = \n', 'x.gin, line 3: not gin: Unable to parse'),
  ('SEED = {[]: 1}\n', 'unhashable'),
  ('SEED = 1\0', 'NUL'),
  ('SEED = 1 # \ud800', 'character 11 is half of a surrogate pair'),
  ('SEED = ' + '[' * 33 + ']' * 33, 'brackets nested over 32 deep'),
  ('SEED = ' + '1' * 65, 'a number of over 64 digits'),
  ('SEED = 1e400', 'too large for a float'),
  ("X = b''", 'expected a text, number'),
  ('X = {(1, 2): 3}', 'key (1, 2): expected a text'),
  ("X = '" + 'a' * 4097 + "'", 'a text of over 4,096 characters'),
  ('X = (' + '1,' * 10_000 + ')', 'over 20,000 words and signs'),
  ('X = (' + "'a' " * 2000 + ')', 'too many or too long texts'),
  ('#' * 131_073, 'over 131,072 characters'),
])  # fmt: skip
def test_what_is_refused(text, message):
  with pytest.raises(UserError) as error:
    parse_text(text, 'x.gin')
  assert message in str(error.value)


@pytest.mark.parametrize('text', [
  'SEED = ' + '[' * 32 + ']' * 32, 'SEED = -' + '1' * 64,
  "X = '" + 'a' * 4096 + "'", 'X = (' + '1,' * 9997 + ')',
  'X = (' + "'aaa' " * 900 + ')', '#' * 131_072, 'X = {1: 2, None: 3, "a": 4}',
])  # fmt: skip
def test_what_is_within_bounds(text):
  parse_text(text, 'x.gin')


def test_bounds_are_of_all_texts_together():
  """Fault seen: many files, each within the bounds."""
  budget = gin_text.Budget()
  with pytest.raises(UserError, match='over 131,072 characters'):
    for _ in range(5):
      parse_text('#' * 60_000, 'x.gin', budget)


def test_an_error_is_one_short_line():
  """Fault seen: a name of a file that coloured the terminal."""
  text = str(UserError('a\n b \x1b[31m \udcff' + 'c' * 9999))
  assert text.startswith('a b \\x1b[31m \\udcff') and text.isprintable()
  assert len(text) < 470


def test_a_key_that_a_dict_has_twice_is_refused():
  """Fault seen: the first of two sets of pairs was left out without a word."""
  with pytest.raises(UserError, match="x.gin: key 'a' is there twice"):
    parse_text("X = {'a': {'b': 1}, 'c': 2, 'a': 3}", 'x.gin')
  same = {'a': {'a': [{'a': 1}, {'a': 2}]}, 'b': {'a': 3}}
  assert bound(f'X = {same}') == [('X', same)]
