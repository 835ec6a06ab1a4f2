"""Records of files of every kind, in parts."""

import gzip
import json

import pytest

from atm_tasks.pretraining import records


@pytest.mark.parametrize('name, expected', [
  ('a/en.txt', ('txt', '')),
  ('en.json', ('jsonl', '')),
  ('en.jsonl.gz', ('jsonl', 'gz')),
  ('en.txt.zst', ('txt', 'zst')),
  ('en.parquet', ('parquet', '')),
  ('en.tfrecord-00003-of-00012', ('tfrecord', '')),
  ('en.tfrecord.gz', ('tfrecord', 'gz')),
  ('en.parquet.gz', None),
  ('en.csv', None),
])  # fmt: skip
def test_formats_by_name(name, expected):
  assert records.detect_format(name) == expected


def test_parts_share_the_lines_of_a_file(tmp_path):
  """Faults seen: a line that two parts have; one that none has; numbers that
  begin anew in each part."""
  path = tmp_path / 'en.txt'
  path.write_text(''.join(f'{"x" * (i % 7)}{i}\n' for i in range(50)))
  parts = records.split_file(str(path), 60)
  assert len(parts) == -(-path.stat().st_size // 60) > 3
  found, number = [], 0
  for part in parts:
    for k, line in records.read_records(part, ''):
      number += 1
      assert records.describe_place(part, k) == f'{path}, line {number}'
      found.append(line)
  assert b'\n'.join([*found, b'']) == path.read_bytes()
  assert str(parts[1]) == f'{path}#1/{len(parts)}'


def test_a_compressed_file_is_one_part(tmp_path):
  path = tmp_path / 'en.jsonl.gz'
  rows = [{'text': f'Zeile {i}'} for i in range(9)]
  lines = '\n'.join(json.dumps(row) for row in rows).encode()
  path.write_bytes(gzip.compress(lines[:40]) + gzip.compress(lines[40:]))
  (part,) = records.split_file(str(path), 1)
  found = records.read_records(part, 'text')
  texts = [records.parse_record(part, line, 'text') for _, line in found]
  assert texts == [row['text'] for row in rows]


def test_a_record_without_its_field_is_bad():
  part = records.FilePart('en.jsonl')
  with pytest.raises(records.BadRecord, match='a string `text`'):
    records.parse_record(part, b'{"txt": "a"}', 'text')
  with pytest.raises(records.BadRecord, match='expected UTF-8'):
    records.parse_record(part, b'\xff', 'text')
  with pytest.raises(records.BadRecord, match='got null'):
    records.parse_record(records.FilePart('en.parquet'), None, 'text')
