"""The same bytes mean the same at every door through which text comes in."""

import bz2
import gzip
import json
import lzma
import re

import pytest
import zstandard

from atm.inference import input_rows
from atm_tasks.evaluation import readers
from atm_tasks.pretraining import decontaminate, pairs, sources

PACK = {
  'gz': gzip.compress, 'zst': zstandard.ZstdCompressor().compress,
  'bz2': bz2.compress, 'xz': lzma.compress,
}  # fmt: skip


def infer(path):
  rows, _ = input_rows.read_inputs(path, ('input',), ('prefix',))
  return [row['input'] for row in rows]


def score(path):
  rows, _ = input_rows.read_inputs(path, ('input', 'target'))
  return [row['input'] for row in rows]


def finetune(path):
  texts = pairs.PairsSource(path, 0.0).texts('train', 0)
  return [json.loads(text)[0] for text in texts]


def evaluate(path):
  return [row['input'] for row in readers.read_pairs([path])]


def pretrain(path):
  folder, _, _ = path.rpartition('/')
  return list(sources.FolderSource(folder, 'en', 0.0).texts('train', 0))


def decontaminated(path):
  texts = list(decontaminate.read_file_texts(path))
  return texts[::3] if '.txt' not in path.lower() else texts


def translate(path):
  return [row['source'] for row in readers.read_sentence_pairs([path, path])]


OBJECTS = (infer, score, finetune, evaluate, pretrain, decontaminated)
LINES = (infer, pretrain, decontaminated, translate)


def row(text: str, **fields) -> str:
  return json.dumps({'input': text, 'target': 'b', 'text': text, **fields},
                    ensure_ascii=False)  # fmt: skip


def check(door, path, content: bytes, expected):
  """Compares what a door reads with texts, or with the error's line and text.

  Which white space a text keeps is each door's own.
  """
  path.write_bytes(content)
  words = lambda texts: [' '.join(text.split()) for text in texts]
  if isinstance(expected, list):
    assert words(door(str(path))) == words(expected)
  else:
    line, message = expected
    with pytest.raises(ValueError) as e:
      door(str(path))
    text = str(e.value)
    assert re.match(rf'{re.escape(str(path))}, line {line}: expected ', text)
    assert message in text and len(text) - len(str(path)) < 400
    assert '\n' not in text and text.encode()


TWO = [row('one ⁨two'), row('é\u2028\x85\x0c z')]
TEXTS = ['one ⁨two', 'é\u2028\x85\x0c z']
SURROGATE = row('X').replace('X', '\\ud83d')
JSON = {  # content -> texts, or the line and what is said
  'lines': ('\n'.join(TWO), TEXTS),
  'mark': ('\ufeff' + '\r\n'.join(TWO) + '\r\n', TEXTS),
  'blank': ('\n \n' + '\n\n'.join(TWO) + '\n\n', TEXTS),
  'old mac': ('\r'.join(TWO) + '\r', TEXTS),
  'array': ('[' + ', '.join(TWO) + ']', TEXTS),
  'array in lines': (' [\n' + '\n,\n'.join(TWO) + '\n]\n', TEXTS),
  'long': (row('x' * 300_000), ['x' * 300_000]),
  'other fields': (row('a', z=[{'y': [None, 1e9]}]), ['a']),
  'surrogate': (f'{TWO[0]}\n{SURROGATE}', (2, 'half of a surrogate')),
  'surrogate in array': (f'[{TWO[0]},\n{SURROGATE}]', (2, 'half of a surro')),
  'no object': (f'{TWO[0]}\n\n"text', (3, '')),
  'cut': (f'{TWO[0]}\n' + TWO[1][:-5], (2, '')),
  'two on a line': (f'{TWO[0]}\n{TWO[0]} {TWO[1]}', (2, 'Extra data')),
  'deep': ('{"a":' * 100_000, (1, 'nested over 64 deep')),
  'a bit deep': (row('a', x=eval('[' * 70 + ']' * 70)), (1, 'over 64 deep')),
  'twice': (row('a')[:-1] + ', "input": "b"}', (1, "'input' twice")),
  'latin': (TWO[0].encode() + b'\n{"input": "\xe9"}', (2, 'UTF-8; got b')),
  'utf-16': ('\n'.join(TWO).encode('utf-16'), (1, 'UTF-16, by its byte')),
  'utf-16, no mark': ('\n'.join(TWO).encode('utf-16-le'), (1, 'UTF-8')),
  'utf-32': ('\n'.join(TWO).encode('utf-32'), (1, 'UTF-32')),
  'nul': (TWO[0] + '\n\0', (2, 'NUL')),
  'gzip': (gzip.compress(b'x', mtime=0), (1, '.gz data')),
  'array cut': ('[' + ',\n'.join(TWO), (2, '')),
  'long number': (row('a', x=1)[:-2] + '9' * 5000 + '}', (1, '')),
}


@pytest.mark.parametrize('door', OBJECTS, ids=lambda door: door.__name__)
@pytest.mark.parametrize('name', JSON)
def test_json_at_every_door(tmp_path, door, name):
  """Faults seen: four readers of JSON Lines, four behaviours."""
  content, expected = JSON[name]
  content = content.encode() if isinstance(content, str) else content
  check(door, tmp_path / 'en.jsonl', content, expected)


TEXT = {
  'lines': ('a\nb\u2028c\x85\x0bd', ['a', 'b\u2028c\x85\x0bd']),
  'mark': ('\ufeffa\r\nb\r\n', ['a', 'b']),
  'old mac': ('a\rb\r', ['a', 'b']),
  'json in part': ('a\n{"input": "b"}', ['a', '{"input": "b"}']),
  'one bracket': ('[a\nb', ['[a', 'b']),
  'latin': (b'a\n\xe9', (2, 'UTF-8; got b')),
  'utf-16': ('a\nb'.encode('utf-16'), (1, 'UTF-16, by its byte')),
  'utf-16, no mark': ('a\nb'.encode('utf-16-le'), (1, 'NUL')),
  'nul': ('a\nb\0', (2, 'NUL')),
  'zstd': (PACK['zst'](b'a'), (1, '.zst data')),
  'json': ('\n'.join(TWO), (1, 'got JSON: give a file')),
  'array': ('[\n' + ',\n'.join(TWO) + ']', (1, 'got JSON: give a file')),
}


@pytest.mark.parametrize('door', LINES, ids=lambda door: door.__name__)
@pytest.mark.parametrize('name', TEXT)
def test_text_at_every_door(tmp_path, door, name):
  content, expected = TEXT[name]
  content = content.encode() if isinstance(content, str) else content
  check(door, tmp_path / 'en.txt', content, expected)


@pytest.mark.parametrize('door', OBJECTS, ids=lambda door: door.__name__)
@pytest.mark.parametrize('ending', ['json', 'JSONL', 'ndjson', *PACK])
def test_endings_at_every_door(tmp_path, door, ending):
  """Faults seen: .json and .JSONL read as text, line by line."""
  content = '\n'.join(TWO).encode()
  if ending in PACK:
    path = tmp_path / f'en.jsonl.{ending.upper()}'
    check(door, path, PACK[ending](content), TEXTS)
    check(door, path, content, (1, f'.{ending} data to its end'))
    whole = PACK[ending](content)
    check(door, path, whole[:-3], (r'\d', f'.{ending} data to its end'))
  else:
    check(door, tmp_path / f'en.{ending}', content, TEXTS)
