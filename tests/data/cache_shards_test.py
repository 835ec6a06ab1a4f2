"""Rows of other text, or made otherwise, are refused.

Fault seen: text that changed taken for the same.
"""

import types

import pytest

from atm.data import cache_shards, token_store

from row_caches import build, contents, write_shipped_texts


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_shipped_texts(tmp_path_factory.mktemp('text'))


@pytest.fixture
def configure(words):
  """Configures the tasks, and as they were again afterwards."""
  import atm_tasks

  yield lambda **named: atm_tasks.configure(vocabulary=words.path, **named)
  atm_tasks.configure(vocabulary=words.path)


def test_a_shard_is_told_by_its_name_and_size(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('x' * 100)
  describe = cache_shards.describe_shard
  assert describe(str(path)) == ('a.txt of 100 bytes', 100)
  # A part is told by how many there are: rows of earlier versions say so.
  assert describe(f'{path}#2/3') == ('3 of 100 bytes', 33)
  assert describe(f'{path}#0/200') == ('200 of 100 bytes', 1)
  assert describe('rows of a table') == ('rows of a table', 1)


def test_tasks_of_one_text_have_the_same_steps_before_the_cache():
  import seqio

  first, behind = (lambda dataset: dataset), (lambda dataset: dataset)
  task = types.SimpleNamespace(
    name='t',
    preprocessors=[first, seqio.CacheDatasetPlaceholder(), behind],
  )
  assert cache_shards.get_precache_steps(task) == [first]
  task.preprocessors.pop(1)
  with pytest.raises(ValueError, match="'t' has no seqio.CacheDataset"):
    cache_shards.get_precache_steps(task)


def test_text_that_changed_is_refused(words, configure, tmp_path):
  text = tmp_path / 'text'
  text.mkdir()
  (text / 'en.txt').write_text('a line\n' * 50)
  build(tmp_path / 'rows', words, configure, text)
  (text / 'en.txt').write_text('a line\n' * 51)
  with pytest.raises(ValueError, match='text = .*350 bytes.*has .*357 bytes'):
    build(tmp_path / 'rows', words, configure, text)
  (text / 'en.txt').write_text('a line\n' * 50)
  (text / 'en-more.txt').write_text('a line\n')
  with pytest.raises(ValueError, match='1 pieces of text, but there are 2 now'):
    build(tmp_path / 'rows', words, configure, text)


@pytest.mark.parametrize(
  'changes, tasks, message',
  [
    ({'lengths': {'inputs': 32, 'targets': 64}}, {}, r'lengths = \[64, 64\]'),
    ({'passes': 3}, {}, 'passes = 1, but this run has 3'),
    ({}, {'held_out': 0.5}, 'held_out = 0.01, but this run has 0.5'),
    ({}, {'paper_packing': False}, 'objective = .*packs=False.*packs=True'),
  ],
)
def test_rows_made_otherwise_are_refused(
  folder, words, configure, tmp_path, changes, tasks, message
):
  build(tmp_path, words, configure, folder, splits=('train',))
  before = contents(tmp_path)
  other = lambda **named: configure(**tasks, **named)
  with pytest.raises(ValueError, match=message):
    build(tmp_path, words, other, folder, splits=('train',), **changes)
  assert contents(tmp_path) == before


def test_every_byte_of_a_files_facts_is_sealed(words, configure, tmp_path):
  """Fault seen: counts, which decide rates, taken from a damaged file."""
  text = tmp_path / 'text'
  text.mkdir()
  (text / 'en.txt').write_text('a line\n' * 50)
  build(tmp_path / 'rows', words, configure, text, splits=('train',))
  [path, *_] = (tmp_path / 'rows').glob('*clm-train/rows-*.json')
  read = lambda: token_store.read_sealed(str(path), token_store.FACTS)
  whole, content = read(), path.read_bytes()
  refused = 0
  for at in range(len(content)):
    bit = 1 << at % 8
    flipped = bytes([content[at] ^ bit])
    path.write_bytes(content[:at] + flipped + content[at + 1 :])
    try:
      assert read() == whole, at  # white space
    except ValueError as e:
      assert str(e).startswith(f'{path} is damaged: '), at
      refused += 1
  assert refused > 300
  # A manifest is made of facts, so a build that goes on looks at them.
  (path.parent / 'manifest.json').unlink()
  path.write_bytes(content.replace(b'"documents": 50', b'"documents": 51'))
  with pytest.raises(ValueError, match='is damaged: it differs from its own'):
    build(tmp_path / 'rows', words, configure, text, splits=('train',))


def test_a_build_removes_what_was_half_written_and_nothing_else(
  words, configure, tmp_path
):
  """Fault seen: a file of a user with .partial- in its name."""
  text, rows = tmp_path / 'text', tmp_path / 'rows'
  text.mkdir()
  (text / 'en.txt').write_text('a line\n' * 50)
  build(rows, words, configure, text, splits=('train',))
  before = contents(rows)
  folder = rows / 'text_en_clm-train'
  (folder / 'rows-00000-of-00001.array_record.partial-7').touch()
  (folder / 'manifest.json.partial-77').touch()
  for name in ('notes.partial-2', 'rows.txt', 'rows-mine.partial-draft'):
    (folder / name).touch()
    before[f'{folder.name}/{name}'] = contents(folder)[name]
  build(rows, words, configure, text, splits=('train',))
  assert contents(rows) == before
