"""The table of languages is sound in itself."""

from atm.data import language_table, languages
from tests.data.language_codes_test import parse_rows


def test_a_code_and_a_name_mean_one_language():
  rows = parse_rows()
  assert len(rows) == 197 + 1  # NLLB's languages, and two of M2M-100's
  for part in (0, 2):
    every = [text.lower() for row in rows for text in row[part]]
    assert len(every) == len({*every})
  codes = {code: row for row in rows for code in row[0]}
  for row in rows:
    assert all(2 <= len(code) <= 3 and code.islower() for code in row[0])
    # Short names, such as Ewe, read as codes mean the same.
    for name in row[2]:
      assert codes.get(name.lower(), row) is row
  assert [codes[k][2][0] for k in languages.LANGUAGES] == [
    *languages.LANGUAGES.values()
  ]


def test_scripts_have_names_where_they_tell_texts_apart():
  for _, scripts, _ in parse_rows():
    assert all(len(s) == 4 and s.istitle() for s in scripts)
    if len(scripts) > 1:
      assert {*scripts} <= language_table.SCRIPT_NAMES.keys()
