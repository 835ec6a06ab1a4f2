"""Lines of text files: their ends, compression and encoding."""

import bz2
import gzip
import io
import lzma
import os
import types

import pytest
import zstandard

from atm.data import text_lines

PACK = {
  'gz': gzip.compress,
  'zst': zstandard.ZstdCompressor().compress,
  'bz2': bz2.compress,
  'xz': lzma.compress,
}


def lines(tmp_path, content: bytes, name: str = 'a.txt'):
  (tmp_path / name).write_bytes(content)
  return list(text_lines.read_lines(str(tmp_path / name)))


@pytest.mark.parametrize('name, expected', [
  ('a.txt', ('txt', '')),
  ('a.b.JSONL', ('jsonl', '')),
  ('a.json', ('jsonl', '')),
  ('x/a.ndjson.GZ', ('jsonl', 'gz')),
  ('a.tsv.zst', ('tsv', 'zst')),
  ('a.gz', ('', 'gz')),
  ('txt', ('', '')),
  ('a.jsonl.bak', ('', '')),
  ('-', ('', '')),
])  # fmt: skip
def test_formats_by_name(name, expected):
  assert text_lines.detect_text_format(name) == expected


def test_a_name_without_its_endings():
  """Fault seen: the output of in.jsonl.gz named in.jsonl.out.jsonl."""
  for name in ('a/b.jsonl', 'a/b.jsonl.gz', 'a/b.TXT.zst', 'a/b'):
    assert text_lines.strip_endings(name) == 'a/b'


@pytest.mark.parametrize('content, expected', [
  (b'', []),
  (b'a', [b'a']),
  (b'a\n\nb\n', [b'a', b'', b'b']),
  (b'a\r\nb\r\n', [b'a', b'b']),
  (b'a\rb\r', [b'a', b'b']),
  (b'a\rb\nc\n', [b'a\rb', b'c']),  # \r alone only where there is no \n
  (b'\xef\xbb\xbfa\n\xef\xbb\xbfb', [b'a', b'\xef\xbb\xbfb']),
  ('a\x0bb\x0cc\x85d\u2028e\n'.encode(), ['a\x0bb\x0cc\x85d\u2028e'.encode()]),
])  # fmt: skip
def test_ends_of_lines(tmp_path, content, expected):
  assert lines(tmp_path, content) == expected
  for ending, pack in PACK.items():
    assert lines(tmp_path, pack(content), f'a.txt.{ending}') == expected


@pytest.mark.parametrize('content, message', [
  ('a'.encode('utf-16'), 'got UTF-16'),
  ('a'.encode('utf-32'), 'got UTF-32'),
  (b'\xfe\xff\0a', 'got UTF-16'),
  (gzip.compress(b'a', mtime=0), 'got .gz data'),
  (zstandard.ZstdCompressor().compress(b'a'), 'got .zst data'),
  (b'PK\x03\x04', 'got a .zip archive'),
])  # fmt: skip
def test_other_files_are_named(tmp_path, content, message):
  with pytest.raises(ValueError, match=f'a.txt, line 1: expected .*{message}'):
    lines(tmp_path, content)


@pytest.mark.parametrize('ending', PACK)
def test_broken_compression_is_named(tmp_path, ending):
  whole = PACK[ending](os.urandom(9999))
  for content in (whole[:-9], b'no such data', b''):
    with pytest.raises(text_lines.BadRecord, match=f'.{ending} data to its'):
      lines(tmp_path, content, f'a.txt.{ending}')


def test_a_pipe_is_refused_and_standard_input_read(tmp_path, monkeypatch):
  """Fault seen: a FIFO as INPUT waited for ever."""
  os.mkfifo(tmp_path / 'fifo')
  with pytest.raises(ValueError, match='expected a file, not a pipe'):
    list(text_lines.read_lines(str(tmp_path / 'fifo')))
  for path in text_lines.STDIN:
    stdin = types.SimpleNamespace(buffer=io.BytesIO(b'a\r\nb'))
    monkeypatch.setattr('sys.stdin', stdin)
    assert list(text_lines.read_lines(path)) == [b'a', b'b']
  monkeypatch.setattr('sys.stdin', None)
  with pytest.raises(ValueError, match='standard input is closed'):
    list(text_lines.read_lines('-'))


@pytest.mark.parametrize('raw, message', [
  (b'ab\xff', r"expected UTF-8; got b'ab\\xff', byte 3"),
  ('é'.encode('latin-1'), 'byte 1'),
  (b'a\0b', 'expected UTF-8 without NUL'),
  (b'\xed\xa0\xbd', 'expected UTF-8'),  # a surrogate, as CESU-8 writes it
])  # fmt: skip
def test_bytes_that_are_no_text(raw, message):
  with pytest.raises(text_lines.BadRecord, match=message):
    text_lines.decode(raw)
