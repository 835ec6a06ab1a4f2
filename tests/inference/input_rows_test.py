"""Rows of text files and of JSON Lines, with their line numbers."""

import pytest

from atm.inference import input_rows


def test_reading_inputs(tmp_path):
  text, objects = tmp_path / 'a.txt', tmp_path / 'a.jsonl'
  text.write_text('one\n\nthree\n')
  rows, lines = input_rows.read_inputs(str(text))
  assert [row['input'] for row in rows] == ['one', '', 'three']
  assert lines == [1, 2, 3]
  objects.write_text('{"input": "x", "id": 3}\n\n{"text": "y"}\n')
  rows, lines = input_rows.read_inputs(str(objects))
  assert rows == [{'input': 'x', 'id': 3}, {'text': 'y', 'input': 'y'}]
  assert lines == [1, 3]
  objects.write_text('{"input": "x"}\n{"input": 3}\n')
  with pytest.raises(ValueError, match='a.jsonl, line 2: expected JSON with'):
    input_rows.read_inputs(str(objects))
  with pytest.raises(FileNotFoundError, match="INPUT = 'none'"):
    input_rows.read_inputs('none')
