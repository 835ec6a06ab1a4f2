"""Held-out texts are chosen by content; of few texts, a number of them."""

import gzip
import pickle
import zlib

import pytest

from atm_tasks.pretraining import sources


def write(path, documents):
  """Writes a document a line; packed where the name ends in .gz."""
  data = ''.join(f'{text}\n' for text in documents).encode()
  path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


def folder_source(folder, **options):
  return sources.FolderSource(str(folder), 'en', **options)


def glued(source, split):
  shards = range(len(source.list_shards(split)))
  return [text for i in shards for text in source.texts(split, i)]


@pytest.mark.parametrize(
  'count, held',
  [(1, 0), (2, 1), (5, 1), (19, 1), (25, 2), (60, 4), (200, 4), (2000, 0)],
)
def test_of_few_texts_a_number_is_held_out(tmp_path, count, held):
  """Those of the least hashes; whatever the format, the pieces or the process.

  Fault seen: nothing held out of 60 lines, so that nothing could be trained.
  """
  documents = [f'document {i} of a few' for i in range(count)] * 2
  hashes = {text: zlib.crc32(text.encode()) for text in documents}
  share = sum(h / 2**32 < 0.01 for h in hashes.values())
  chosen = sorted(hashes, key=hashes.get)[: max(held, share * (count > 9))]
  assert (share >= 4) == (count == 2000)
  for ext, piece_bytes in (('txt', 1 << 20), ('txt', 100), ('txt.gz', 1)):
    folder = tmp_path / f'{ext}-{piece_bytes}'
    folder.mkdir()
    write(folder / f'en.{ext}', documents)
    source = folder_source(folder, held_out=0.01, piece_bytes=piece_bytes)
    for each in (source, pickle.loads(pickle.dumps(source))):
      assert {*glued(each, 'validation')} == {*chosen}
      assert {*glued(each, 'train')} == {*documents} - {*chosen}
    assert source.holds_out() == (count > 1)
  assert not list(folder_source(folder, held_out=0).texts('validation', 0))


def test_a_language_is_never_held_out_whole(tmp_path):
  write(tmp_path / 'en.txt', ['one', 'two', 'three'])
  source = folder_source(tmp_path, held_out=1 - 1e-9)
  assert len(glued(source, 'train')) == 1
  assert len(glued(source, 'validation')) == 2


def test_few_texts_are_read_to_know_that_there_are_many(tmp_path):
  write(tmp_path / 'en.txt', [f'document {i}' for i in range(5000)])
  source = folder_source(tmp_path, held_out=0.1)
  read, documents = [], source.documents
  source.documents = lambda *of: (read.append(d) or d for d in documents(*of))
  assert source.bound == 0.1 and len(read) < 100
