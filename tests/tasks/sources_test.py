"""The same text, whatever it is stored as and however it is cut."""

import collections
import gzip
import json
import pickle
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core.dataset_builders import adhoc_builder

from atm_tasks.pretraining import records as records_lib
from atm_tasks.pretraining import sources, text_folders, text_source

DOCUMENTS = [
  f'{word}  {i}\t{i * i}' + ' and more' * (i % 50)
  for i in range(200)
  for word in ('English', 'größer', '日本語', 'हिन्दी', '🙂')
] + ['', '   ']
TEXTS = [' '.join(d.split()) for d in DOCUMENTS if d.strip()]
HELD_OUT = 0.1
BOM = b'\xef\xbb\xbf'


def expected(split):
  share = lambda text: zlib.crc32(text.encode()) / 2**32
  held = split == 'validation'
  return [t for t in TEXTS if (share(t) < HELD_OUT) == held]


def lines(documents=DOCUMENTS):
  return ''.join(f'{d}\n' for d in documents).encode()


def objects(documents=DOCUMENTS):
  rows = ({'id': i, 'text': d} for i, d in enumerate(documents))
  return ''.join(
    json.dumps(r, ensure_ascii=False) + '\n' for r in rows
  ).encode()


def zst(data, **options):
  return zstandard.ZstdCompressor(**options).compress(data)


def example(**features):
  made = {
    name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    for name, value in features.items()
  }
  return tf.train.Example(
    features=tf.train.Features(feature=made)
  ).SerializeToString()


def write_records(path, records, compression=''):
  with tf.io.TFRecordWriter(str(path), compression) as writer:
    for record in records:
      writer.write(record)


def write(path, documents=DOCUMENTS):
  """Writes the documents in the format that the path names."""
  name = path.name
  if name.endswith('.parquet'):
    table = pa.table({'id': list(range(len(documents))), 'text': documents})
    pq.write_table(table, path, row_group_size=64)
  elif '.tfrecord' in name:
    made = [example(url=b'u', text=d.encode()) for d in documents]
    write_records(path, made, 'GZIP' if '.gz' in name else '')
  else:
    data = objects(documents) if '.json' in name else lines(documents)
    pack = {'gz': gzip.compress, 'zst': zst}.get(name.split('.')[-1], bytes)
    path.write_bytes(pack(data))


def glued(source, split):
  shards = range(len(source.list_shards(split)))
  return [text for i in shards for text in source.texts(split, i)]


def folder_source(folder, **options):
  options = {'held_out': HELD_OUT, **options}
  return sources.FolderSource(str(folder), 'en', **options)


FORMATS = (
  'txt', 'txt.gz', 'txt.zst', 'jsonl', 'jsonl.gz', 'jsonl.zst', 'json',
  'json.gz', 'parquet', 'tfrecord', 'tfrecord.gz', 'tfrecord-00000-of-00001',
)  # fmt: skip


@pytest.mark.parametrize('split', text_source.SPLITS)
@pytest.mark.parametrize('ext', FORMATS)
def test_a_format_changes_nothing(tmp_path, ext, split):
  write(tmp_path / f'en.{ext}')
  source = folder_source(tmp_path)
  assert 50 < len(expected('validation')) < 150
  assert list(source.texts(split, 0)) == expected(split)
  assert source.list_shards(split) == [str(tmp_path / f'en.{ext}')]


# --- Units


PLAIN = st.text('aé ', max_size=12).map(str.encode)


@given(
  rows=st.lists(
    st.tuples(PLAIN, st.sampled_from([b'\n', b'\r\n'])), max_size=9
  ),
  last=PLAIN,
  piece_bytes=st.integers(1, 40),
)
@settings(max_examples=300)
def test_every_line_is_in_one_piece(tmp_path_factory, rows, last, piece_bytes):
  path = tmp_path_factory.mktemp('pieces') / 'en.txt'
  path.write_bytes(b''.join(a + b for a, b in rows) + last)
  source = folder_source(path.parent, held_out=0, piece_bytes=piece_bytes)
  units = source.list_shards('train')
  assert len(units) == max(1, -(-path.stat().st_size // piece_bytes))
  if len(units) > 1:
    assert units[-1] == f'{path}#{len(units) - 1}/{len(units)}'
  assert glued(source, 'train') == [
    ' '.join(line.split())
    for line in path.read_text().split('\n')
    if line.strip()
  ]


@pytest.mark.parametrize('split', text_source.SPLITS)
@pytest.mark.parametrize('ext', ['txt', 'jsonl', 'parquet'])
@pytest.mark.parametrize('piece_bytes', [700, 10_000, 1 << 30])
def test_pieces_together_are_the_file(tmp_path, ext, split, piece_bytes):
  write(tmp_path / f'en.{ext}')
  source = folder_source(tmp_path, piece_bytes=piece_bytes)
  assert (len(source.units) > 1) == (piece_bytes < 1 << 20)
  assert source.list_shards('train') == source.list_shards('validation')
  assert glued(source, split) == expected(split)
  if ext == 'parquet' and piece_bytes == 700:
    # The units are the row groups, of 64 rows.
    assert [
      len(list(records_lib.read_records(u, 'text'))) for u in source.units
    ] == ([64] * 15 + [42])


@pytest.mark.parametrize('pack', [gzip.compress, zst], ids=['gz', 'zst'])
def test_members_end_to_end(tmp_path, pack):
  """A line may go on in the next member; zeros pad, zstd frames may be mute."""
  data = lines()
  parts = [pack(data[:5000]), pack(data[5000:5001]), pack(data[5001:])]
  skipped = b''
  if pack is zst:
    skipped = b'\x50\x2a\x4d\x18\x03\x00\x00\x00abc'
  path = tmp_path / f'en.txt.{"zst" if pack is zst else "gz"}'
  path.write_bytes(skipped.join(parts) + skipped + bytes(100_000))
  assert glued(folder_source(tmp_path, held_out=0), 'train') == TEXTS


def test_long_lines_of_compressed_files(tmp_path):
  texts = ['a' * 300_000, 'b', 'c' * 70_000]
  (tmp_path / 'en.txt.gz').write_bytes(gzip.compress('\n'.join(texts).encode()))
  assert glued(folder_source(tmp_path, held_out=0), 'train') == texts


def test_bytes_that_are_easily_lost(tmp_path):
  content = BOM + 'first\n\u2028sep\u2028arated\n\ufeff\n'.encode()
  (tmp_path / 'en.txt').write_bytes(content)
  (tmp_path / 'en-2.jsonl').write_text(r'{"text": "zero\u0000"}')
  source = folder_source(tmp_path, held_out=0)
  assert list(source.texts('train', 0)) == ['zero\0']
  expected = ['first', 'sep arated', '\ufeff']
  assert list(source.texts('train', 1)) == expected
  made = source.get_dataset('train').as_numpy_iterator()
  assert [e['text'].decode() for e in made] == ['zero\0', *expected]


def test_names(tmp_path):
  names = [
    'en.txt', 'en-1.jsonl', 'en.c4.json.gz', 'en/a/b.parquet', 'en/x.txt',
    'en.tfrecord-00000-of-01024', 'en.tfrecord.gz-00000-of-00002', 'fr.txt',
    'pt_BR.txt', 'hi_Deva-2.jsonl.zst',
  ]  # fmt: skip
  others = [
    'README.md', 'en.txt.part', 'english.txt', 'en/.cache/x.txt', 'en.csv',
    'en-2/x.txt', 'en.parquet.gz', 'data/x.txt',
  ]  # fmt: skip
  for name in names + others:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('a\n')
  (tmp_path / 'en.d.txt').mkdir()
  assert text_folders.list_languages(str(tmp_path)) == [
    'en',
    'fr',
    'hi_Deva',
    'pt_BR',
  ]
  mine = [str(tmp_path / n) for n in names if n.startswith('en')]
  assert folder_source(tmp_path).files == sorted(mine)


# --- tf.data and seqio


@pytest.fixture
def several(tmp_path):
  """Five files of different formats, ten units or more."""
  for k, ext in enumerate(
    ['txt', 'jsonl.gz', 'parquet', 'tfrecord', 'txt.zst']
  ):
    write(tmp_path / f'en-{k}.{ext}', DOCUMENTS[k::5])
  return folder_source(tmp_path, piece_bytes=3000)


def read(dataset):
  return [e['text'].decode() for e in dataset.as_numpy_iterator()]


@pytest.mark.parametrize('split', text_source.SPLITS)
def test_get_dataset_is_texts(several, split):
  texts = glued(several, split)
  assert sorted(texts) == sorted(expected(split)) and len(several.units) > 9
  assert read(several.get_dataset(split)) == texts
  assert read(several.get_dataset(split, num_epochs=2)) == 2 * texts


@pytest.mark.parametrize('shards', [1, 2, 3])
def test_hosts_share_the_units(several, shards):
  for index in range(shards):
    info = seqio.ShardInfo(index, shards)
    mine = range(index, len(several.units), shards)
    texts = [t for i in mine for t in several.texts('train', i)]
    assert read(several.get_dataset('train', shard_info=info)) == texts
  with pytest.raises(ValueError, match='num_shards = 99: expected at most'):
    several.get_dataset('train', shard_info=seqio.ShardInfo(0, 99))


def test_shuffle_is_a_function_of_its_seed(several):
  one, again, other = (
    read(several.get_dataset('train', shuffle=True, seed=s)) for s in (1, 1, 2)
  )
  assert one == again != other
  plain = glued(several, 'train')
  assert sorted(one) == sorted(plain)
  place = {text: i for i, text in enumerate(plain)}
  order = np.corrcoef([place[t] for t in one], np.arange(len(one)))[0, 1]
  assert abs(order) < 0.1


@pytest.mark.parametrize('shards', [1, 3, 40])
def test_seqio_reads_it(several, shards):
  """Also where hosts outnumber the units; seqio then shares out examples."""
  name = 'sources_test'
  feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=False)
  seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    source=several,
    preprocessors=[lambda ds: ds.map(lambda e: {'inputs': e['text']}),
                   seqio.preprocessors.tokenize],
    output_features={'inputs': feature},
  )  # fmt: skip
  made = []
  for index in range(shards):
    dataset = seqio.get_dataset(
      name, {'inputs': 4096}, dataset_split='train', shuffle=False,
      shard_info=seqio.ShardInfo(index, shards),
      feature_converter=seqio.PassThroughFeatureConverter(),
    )  # fmt: skip
    made += [e['inputs_pretokenized'] for e in dataset.as_numpy_iterator()]
  assert sorted(m.decode() for m in made) == sorted(expected('train'))


def test_sources_are_pickled(several, wikipedia):
  for source in (several, wikipedia['tfrecord']):
    assert glued(pickle.loads(pickle.dumps(source)), 'train') == glued(
      source, 'train'
    )


# --- Bad input


def bad_parquet(path):
  cells = pa.array([b'a', b'\xff\xfe', None, b'b'], pa.binary())
  cells = pa.Array.from_buffers(pa.string(), 4, cells.buffers())
  pq.write_table(pa.table({'text': cells}), path)


def bad_examples(path):
  number = tf.train.Feature(int64_list=tf.train.Int64List(value=[3]))
  number = tf.train.Features(feature={'text': number})
  number = tf.train.Example(features=number).SerializeToString()
  other = [example(url=b'x'), number, b'no proto', example(text=b'\xff')]
  write_records(path, [example(text=b'a'), *other, example(text=b'b')])


HALF_A_PAIR = rb'{"text": "\ud800"}'
DEEP = b'[' * 100_000
BAD = {
  'utf8.txt': (b'a\n\xff\xfe\nb', 1, 'line 2: expected UTF-8; got'),
  'utf8.jsonl': (
    b'{"text": "a"}\n{"text": "\xff"}\n{"text": "b"}', 1,
    'line 2: expected UTF-8',
  ),
  'kinds.jsonl': (
    b'{"text": "a"}\n{"text": "cut\n[3]\n3\nnull\n{"text": 3}\n{"txt": "x"}\n'
    b'"text"\n' + HALF_A_PAIR + b'\n' + DEEP + b'\n{"text": "b"}', 9,
    'line 2: expected an object with a string `text`; got \'{"text": "cut',
  ),
  'cells.parquet': (bad_parquet, 2, 'record 2: expected UTF-8; got'),
  'examples.tfrecord': (
    bad_examples, 4,
    r"record 2: expected a tf.train.Example with a bytes feature `text`; "
    r"got features \['url'\]",
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD)
def test_bad_records_are_named_or_skipped(tmp_path, name):
  content, count, message = BAD[name]
  path = tmp_path / f'en.{name}'
  content(path) if callable(content) else path.write_bytes(content)
  with pytest.raises(ValueError, match=f'{path}, {message}'):
    glued(folder_source(tmp_path, held_out=0), 'train')
  source = folder_source(tmp_path, held_out=0, skip_bad=True)
  for _ in range(2):  # is not counted twice
    assert glued(source, 'train') == ['a', 'b']
    assert source.skipped == collections.Counter({str(path): count})


def test_each_bad_object_is_refused(tmp_path):
  for line in BAD['kinds.jsonl'][0].split(b'\n')[1:-1]:
    (tmp_path / 'en.jsonl').write_bytes(line)
    with pytest.raises(ValueError, match='line 1: expected an object'):
      glued(folder_source(tmp_path), 'train')


@pytest.mark.parametrize('piece_bytes', [3, 10, 64])
def test_lines_and_records_are_numbered_in_the_file(tmp_path, piece_bytes):
  (tmp_path / 'en.txt').write_bytes(b'a\n\nlong line\nb\n\xff\nc\n')
  with pytest.raises(ValueError, match='en.txt, line 5: expected UTF-8'):
    glued(folder_source(tmp_path, piece_bytes=piece_bytes), 'train')
  (tmp_path / 'en.txt').unlink()
  table = pa.table({'text': ['a'] * 7 + [None, 'b']})
  pq.write_table(table, tmp_path / 'en.parquet', row_group_size=3)
  with pytest.raises(ValueError, match='en.parquet, record 8: .* got null'):
    glued(folder_source(tmp_path, piece_bytes=piece_bytes), 'train')


def broken(path, how):
  """Breaks a file in the middle."""
  data = bytearray(path.read_bytes())
  if how == 'cut':
    del data[len(data) * 2 // 3 :]
  elif how == 'flipped':
    data[len(data) * 2 // 3] ^= 0x24
  elif how == 'empty':
    data.clear()
  elif how == 'trailed':
    data += b'garbage that is no member'
  path.write_bytes(data)


def many():
  """Documents that stay long when compressed, for several buffers of bytes."""
  words = np.random.default_rng(0).integers(0, 10**9, (3000, 8))
  return [' '.join(map(str, row)) for row in words]


@pytest.mark.parametrize(
  'ext, how, least',
  [
    ('txt.gz', 'cut', 1000),
    ('txt.gz', 'flipped', 1000),
    ('txt.gz', 'empty', 0),
    ('txt.gz', 'trailed', 3000),
    ('jsonl.zst', 'cut', 500),
    ('jsonl.zst', 'flipped', 0),
    ('jsonl.zst', 'empty', 0),
    ('jsonl.zst', 'trailed', 3000),
    ('tfrecord', 'cut', 1990),
    ('tfrecord', 'flipped', 1990),
    ('tfrecord.gz', 'cut', 1000),
    ('tfrecord.gz', 'flipped', 1000),
    ('tfrecord.gz', 'empty', 0),
    ('parquet', 'cut', 0),
    ('parquet', 'flipped', 1500),
    ('parquet', 'empty', 0),
  ],
)
def test_broken_files_are_named_or_kept_to_the_break(tmp_path, ext, how, least):
  documents, path = many(), tmp_path / f'en.{ext}'
  if ext == 'parquet':
    table = pa.table({'text': documents})
    pq.write_table(
      table, path, row_group_size=500, write_page_checksum=True,
      use_dictionary=False,
    )  # fmt: skip
  elif ext.endswith('.zst'):
    path.write_bytes(zst(objects(documents), write_checksum=True))
  else:
    write(path, documents)
  broken(path, how)
  with pytest.raises(ValueError, match=rf'{path}, \w+ \d+: expected .*; got .'):
    glued(folder_source(tmp_path, held_out=0), 'train')
  source = folder_source(tmp_path, held_out=0, skip_bad=True)
  kept = glued(source, 'train')
  assert least <= len(kept) and kept == documents[: len(kept)]
  assert source.skipped == {str(path): 1}


def test_a_cut_behind_a_whole_record_is_seen(tmp_path):
  path = tmp_path / 'en.tfrecord.gz'
  write_records(path, [example(text=b'a'), example(text=b'b')], 'GZIP')
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(ValueError, match='record 3: expected .gz data to its'):
    glued(folder_source(tmp_path, held_out=0), 'train')


@pytest.mark.parametrize(
  'column, message',
  [
    ({'body': ['a']}, r"expected a column 'text' of strings; got .*'body'"),
    ({'text': [3]}, "expected a column 'text' of strings; got of int64"),
  ],
)
def test_parquet_of_something_else(tmp_path, column, message):
  pq.write_table(pa.table(column), tmp_path / 'en.parquet')
  with pytest.raises(ValueError, match=message):
    glued(folder_source(tmp_path), 'train')


@pytest.mark.parametrize(
  'kind',
  [pa.string(), pa.large_string(), pa.binary(), pa.string_view(),
   pa.dictionary(pa.int32(), pa.string())],
)  # fmt: skip
def test_parquet_strings_of_every_kind(tmp_path, kind):
  texts = ['a', 'é', 'b']
  values = texts if kind != pa.binary() else [t.encode() for t in texts]
  table = pa.table({'body': pa.array(values, kind)})
  pq.write_table(table, tmp_path / 'en.parquet')
  source = folder_source(tmp_path, held_out=0, text_field='body')
  assert glued(source, 'train') == texts


def test_wrong_arguments_are_named(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match='TEXT_DIR = .*: no LANG.txt, LANG.json'):
    text_folders.list_languages(str(tmp_path / 'nowhere'))
  write(tmp_path / 'en.txt.zst')
  source = folder_source(tmp_path)
  for call, message in [
    (
      lambda: sources.FolderSource(str(tmp_path), 'fr'),
      "'fr' there. Known: en",
    ),
    (lambda: folder_source(tmp_path, held_out=1), r'held_out = 1: expected a'),
    (lambda: folder_source(tmp_path, piece_bytes=0), 'piece_bytes = 0: expect'),
    (lambda: source.texts('test', 0), "split = 'test'. Known: train, val"),
    (lambda: source.texts('train', 1), 'shard = 1: expected 0 to 0'),
  ]:
    with pytest.raises(ValueError, match=message):
      call()
  monkeypatch.setitem(sys.modules, 'zstandard', None)
  with pytest.raises(ImportError, match=r"pip install 'atm-jax\[zstd\]'"):
    folder_source(tmp_path)


# --- TFDS


WIKIPEDIA = 'wikipedia/20230601.{language}'


class Prepared(adhoc_builder.AdhocBuilder, skip_registration=True):
  url_infos = None  # there is nothing to download


def prepare(
  folder, name, splits, features, version='1.0.0', text='text', **options
):
  """Writes a TFDS data set of up to 3 shards a split, as `tfds build` does."""
  name, config = name.split('/')
  made = {
    split: [(i, dict.fromkeys(features, '-') | {text: d})
            for i, d in enumerate(documents)]
    for split, documents in splits.items()
  }  # fmt: skip
  features = {f: tfds.features.Text() for f in features}
  builder = Prepared(
    name=name,
    config=config,
    version=version,
    features=tfds.features.FeaturesDict(features),
    split_datasets=made,
    data_dir=str(folder),
    **options,
  )
  shards = min(3, *map(len, splits.values()))
  shards = tfds.download.DownloadConfig(num_shards=shards)
  builder.download_and_prepare(download_config=shards)


@pytest.fixture(scope='module')
def wikipedia(tmp_path_factory):
  """file format -> a source of the documents."""
  made = {}
  for form in ('tfrecord', 'array_record'):
    folder = tmp_path_factory.mktemp(form)
    name = WIKIPEDIA.format(language='en')
    prepare(folder, name, {'train': DOCUMENTS}, ('title', 'text'),
            file_format=form)  # fmt: skip
    made[form] = sources.TfdsSource(WIKIPEDIA, 'en', HELD_OUT, str(folder))
  return made


@pytest.mark.parametrize('split', text_source.SPLITS)
@pytest.mark.parametrize('form', ['tfrecord', 'array_record'])
def test_tfds_changes_nothing(wikipedia, form, split):
  source = wikipedia[form]
  units = source.list_shards(split)
  assert len(units) == 3 and f'wikipedia-train.{form}-00001-of-' in units[1]
  texts = glued(source, split)
  # TFDS stores the documents in an order of its own.
  assert sorted(texts) == sorted(expected(split))
  assert read(source.get_dataset(split)) == texts
  info = seqio.ShardInfo(1, 3)
  assert read(source.get_dataset(split, shard_info=info)) == list(
    source.texts(split, 1)
  )
  # What TFDS itself reads, a file after the other.
  whole = tfds.builder_from_directory(str(source._builder.data_dir))
  if form == 'tfrecord' and split == 'train':
    one = tfds.ReadConfig(interleave_cycle_length=1)
    raw = whole.as_dataset(split='train', read_config=one).as_numpy_iterator()
    raw = [' '.join(e['text'].decode().split()) for e in raw]
    assert [t for t in raw if t in set(texts)] == texts


def test_tfds_in_order_is_the_same_list(tmp_path):
  prepare(tmp_path, 'wikipedia/20230601.en', {'train': DOCUMENTS},
          ('title', 'text'), disable_shuffling=True)  # fmt: skip
  source = sources.TfdsSource(WIKIPEDIA, 'en', HELD_OUT, str(tmp_path))
  for split in text_source.SPLITS:
    assert glued(source, split) == expected(split)


C4 = ('content-length', 'content-type', 'text', 'timestamp', 'url')


@pytest.fixture(scope='module')
def c4(tmp_path_factory):
  folder = tmp_path_factory.mktemp('c4')
  splits = {
    'en': DOCUMENTS,
    'en-validation': ['held  out', 'two', 'three'],
    'fr': ['un', 'deux', 'trois'],
    'fr-validation': ['quatre', 'cinq', 'six'],
  }
  prepare(folder, 'c4/multilingual', splits, C4, version='3.1.0')
  return str(folder)


def test_splits_stored_apart_are_taken_whole(c4):
  source = sources.TfdsSource('c4/multilingual', 'en', 0.5, c4)
  assert sorted(glued(source, 'train')) == sorted(TEXTS)
  assert sorted(glued(source, 'validation')) == ['held out', 'three', 'two']
  units = source.list_shards('validation')
  assert len(units) == 3 and all('en-validation' in u for u in units)
  french = sources.TfdsSource('c4/multilingual', 'fr', 0.5, c4)
  assert sorted(read(french.get_dataset('validation'))) == [
    'cinq', 'quatre', 'six',
  ]  # fmt: skip


def test_an_empty_tfds_file_is_no_unit(tmp_path):
  prepare(tmp_path, 'c4/multilingual', {'fr': ['un', 'deux', 'trois']}, C4)
  source = sources.TfdsSource('c4/multilingual', 'fr', 0, str(tmp_path))
  first, empty, last = source.list_shards('train')
  first, last = (list(source.texts('train', i)) for i in (0, 2))
  open(empty, 'w').close()
  path = next(tmp_path.rglob('dataset_info.json'))
  info = json.loads(path.read_text())
  info['splits'][0]['shardLengths'] = ['1', '0', '1']
  path.write_text(json.dumps(info))
  source = sources.TfdsSource('c4/multilingual', 'fr', 0, str(tmp_path))
  assert len(source.list_shards('train')) == 2
  assert empty not in source.list_shards('train')
  assert glued(source, 'train') == first + last
  assert read(source.get_dataset('train')) == first + last


def test_the_newest_version_unless_named(tmp_path):
  for version, text in [('1.9.0', 'old'), ('1.10.0', 'new')]:
    prepare(tmp_path, 'wikipedia/20230601.en', {'train': [text]},
            ('title', 'text'), version=version)  # fmt: skip
  for name, text in [(WIKIPEDIA, 'new'), (f'{WIKIPEDIA}:1.9.0', 'old')]:
    source = sources.TfdsSource(name, 'en', 0, str(tmp_path))
    assert glued(source, 'train') == [text]


@pytest.mark.parametrize(
  'name, language, message',
  [
    ('c4/multilingual', 'de', "no split 'de'. Known: en, en-validation, fr"),
    (WIKIPEDIA, 'en', r'not prepared, looked for {c4}/wikipedia/20230601.en/'
     r'.*`tfds build wikipedia/20230601.en --data_dir={c4}`'),
    ('c4/multilingual:9.9.9', 'en', 'not prepared, looked for .*9.9.9'),
  ],
)  # fmt: skip
def test_missing_data_sets_are_named(c4, name, language, message):
  with pytest.raises(ValueError, match=message.replace('{c4}', c4)):
    sources.TfdsSource(name, language, data_dir=c4).list_shards('train')


def test_the_folder_of_data_sets_may_come_from_the_environment(c4, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', c4)
  assert sources.TfdsSource('c4/multilingual', 'fr').list_shards('train')


def test_a_data_set_without_text_is_named(tmp_path):
  prepare(tmp_path, 'other/en', {'en': ['a']}, ('body',), text='body')
  with pytest.raises(ValueError, match=r"`text`; got tfrecord with \['body'\]"):
    source = sources.TfdsSource('other/en', 'en', data_dir=str(tmp_path))
    source.list_shards('train')


@pytest.mark.parametrize('form', ['tfrecord', 'array_record'])
@pytest.mark.parametrize('how', ['cut', 'empty', 'gone'])
def test_a_broken_tfds_file_is_named(tmp_path, form, how):
  prepare(tmp_path, 'wikipedia/20230601.en', {'train': many()[:300]},
          ('title', 'text'), file_format=form)  # fmt: skip
  source = sources.TfdsSource(WIKIPEDIA, 'en', 0, str(tmp_path))
  path = next(tmp_path.rglob('*-00001-of-00003'))
  broken(path, how)
  if how == 'gone':
    path.unlink()
  list(source.texts('train', 0))
  with pytest.raises(
    ValueError, match=rf'{path}, record \d+: expected .*; got'
  ):
    list(source.texts('train', 1))
