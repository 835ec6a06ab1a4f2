"""Pairs to fine-tune on: where they lie, how they are framed, what is told."""

import gzip
import json
import shutil

import numpy as np
import pytest

import atm_tasks
from atm.data import (
  batches,
  cache,
  languages,
  objectives,
  packing,
  task_registry,
)
from atm.data.task_registry import Lengths
from atm.train import held_out_loss
from atm_tasks.pretraining import pair_text, pairs, tasks

LENGTHS = {'inputs': 24, 'targets': 16}
PAIRS = [
  (f'everyone {a} {b}', f'to life {b} {a}')
  for a in 'abcdefghijklmnopqrst'
  for b in 'abcdefghij'
]


def lines(rows) -> str:
  return ''.join(
    json.dumps({'input': a, 'target': b, 'more': 1}) + '\n' for a, b in rows
  )


def texts(source, split):
  return [
    tuple(json.loads(text))
    for shard in range(len(source.list_shards(split)))
    for text in source.texts(split, shard)
  ]


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  path.write_text(lines(PAIRS))
  return str(path)


def test_a_file_is_split_by_its_inputs(tmp_path, file):
  """Fault seen: CRCs of inputs so alike that a fifth of 200 is 15."""
  twice = tmp_path / 'twice.jsonl'
  twice.write_text(lines(PAIRS) + '\n' + lines((a, 'x') for a, _ in PAIRS))
  source = pairs.PairsSource(str(twice), 0.2)
  train, held = (texts(source, split) for split in ('train', 'validation'))
  assert len(train) + len(held) == 400
  assert 60 < len(held) < 100 and len({a for a, _ in held}) == len(held) // 2
  assert not {a for a, _ in train} & {a for a, _ in held}
  assert set(texts(pairs.PairsSource(file, 0.2), 'validation')) < set(held)


def test_a_folder_has_its_own_splits(tmp_path):
  for name, rows in (
    ('train-a.jsonl', PAIRS[:3]), ('train-b.jsonl.gz', PAIRS[3:5]),
    ('validation.jsonl', PAIRS[5:6]),
  ):  # fmt: skip
    write = gzip.open if name.endswith('gz') else open
    with write(tmp_path / name, 'wt') as f:
      f.write(lines(rows))
  source = pairs.PairsSource(str(tmp_path), 0.5)
  assert texts(source, 'train') == PAIRS[:5]
  assert texts(source, 'validation') == PAIRS[5:6]


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('a.csv', 'x', r'a.csv.: expected a .jsonl or .tsv file, or a folder'),
    ('a.jsonl', '{"input": "x"}\n', 'line 1: expected an object with a string '
     '`input` and `target`'),
    ('a.jsonl', lines(PAIRS[:2]) + 'x\n', 'line 3: expected an object'),
  ],
)  # fmt: skip
def test_what_is_no_pair_is_named(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=message):
    texts(pairs.PairsSource(str(tmp_path / name), 0.0), 'train')
  with pytest.raises(FileNotFoundError, match='PAIRS = .*none'):
    pairs.PairsSource(str(tmp_path / 'none'), 0.0)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='expected a .jsonl or .tsv file, or'):
    pairs.PairsSource(str(tmp_path / 'empty'), 0.0)


def build(words, directory, said=None):
  configure = atm_tasks.configure
  cache.build(
    'pairs', words.path, LENGTHS, str(directory), configure_tasks=configure,
    say=(said if said is not None else []).append, processes=1,
  )  # fmt: skip
  load = lambda split: batches.load_parts(
    'pairs', split, words, Lengths.of(LENGTHS), str(directory)
  )
  return load('train'), load('validation')


def test_rows_of_pairs_and_what_is_told_of_them(words, tmp_path):
  """Fault seen: the counts at a row's head taken for tokens by the unigram."""
  folder = tmp_path / 'pairs'
  folder.mkdir()
  strange = [('a ' * 40, 'long'), ('卍', '卐卐')]
  (folder / 'train.jsonl').write_text(lines(PAIRS + strange) + 'no JSON\n')
  (folder / 'validation.jsonl').write_text(lines(PAIRS[:5]))
  said = []
  atm_tasks.configure(words.path, pairs=str(folder), skip_bad=True)
  (train,), (held,) = build(words, tmp_path / 'rows', said)
  assert train.objective == objectives.Pairs() and train.language == 'all'
  told = '\n'.join(said)
  assert 'pairs (train): 1 pairs fill TASK_FEATURE_LENGTHS; what is' in told
  assert 'pairs (train): 2 tokens are <unk>' in told
  assert 'pairs (validation)' not in told
  assert 'pairs (train): 1 lines or records skipped' in told
  assert len(train.rows) < 202  # packed
  # Every target, and nothing else, counts for the unigram.
  counted = np.sort(held_out_loss._written(train))
  wanted = [[*words.encode(b), words.eos_id][:16] for _, b in PAIRS + strange]
  assert counted.tolist() == sorted(sum(wanted, []))


def test_other_pairs_are_not_mixed_in(words, tmp_path, file):
  """Faults seen: another text of the same size; a folder's rows for a file."""
  atm_tasks.configure(words.path, pairs=file)
  build(words, tmp_path / 'rows')
  (tmp_path / 'pairs.jsonl').write_text(lines(PAIRS).replace('life', 'lies'))
  atm_tasks.configure(words.path, pairs=file)
  with pytest.raises(ValueError, match='was made with pairs = .*Remove'):
    build(words, tmp_path / 'rows')
  made = lambda path: pairs.PairsSource(str(path), 0.05).made_from
  folder = tmp_path / 'folder'
  folder.mkdir()
  shutil.copy(file, folder / 'train.jsonl')
  shutil.copy(file, folder / 'validation.jsonl')
  assert made(folder)['held_out'] == 0 and made(file)['held_out'] == 0.05


@pytest.mark.parametrize('content', ['cut', 'none'])
def test_a_file_that_breaks_off(tmp_path, content):
  """Fault seen: a traceback of TensorFlow's, and nothing skipped."""
  path = tmp_path / 'pairs.jsonl.gz'
  whole = gzip.compress(lines(PAIRS * 20).encode())
  path.write_bytes(whole[:-100] if content == 'cut' else b'no gzip')
  with pytest.raises(ValueError, match='pairs.jsonl.gz, line .*: expected'):
    texts(pairs.PairsSource(str(path), 0.0), 'train')
  source = pairs.PairsSource(str(path), 0.0, skip_bad=True)
  found = texts(source, 'train')
  assert (len(found) > 1000) == (content == 'cut') and source.bad(0) == 1


def test_blank_lines_are_no_pairs_and_spaces_are_kept(tmp_path):
  """Faults seen: a pair of nothing for a line of U+3000; code on one line."""
  path = tmp_path / 'pairs.jsonl'
  code = ('code', 'def f(x):\n    return  x')
  path.write_text('\u3000\n' + lines([code]) + ' \u00a0 \n\n')
  assert texts(pairs.PairsSource(str(path), 0.0), 'train') == [code]


def test_a_bad_line_stops_the_build(words, tmp_path):
  """Fault seen: it was read by tf.data, which sometimes never ended then."""
  (tmp_path / 'a.jsonl').write_text(lines(PAIRS) + '{"input": 5}\n')
  atm_tasks.configure(words.path, pairs=str(tmp_path / 'a.jsonl'))
  with pytest.raises(ValueError, match='^/.*a.jsonl, line 201: expected an'):
    build(words, tmp_path / 'rows')


def test_too_few_to_hold_some_out(words, tmp_path):
  """One input stays in training, however many targets it has."""
  same = [PAIRS[0], (PAIRS[0][0], 'another target')]
  (tmp_path / 'a.jsonl').write_text(lines(same))
  atm_tasks.configure(words.path, pairs=str(tmp_path / 'a.jsonl'))
  said = []
  with pytest.raises(ValueError, match='at least 2 different inputs, or a f'):
    build(words, tmp_path / 'rows', said)
  assert 'training needs more than these rows: ' in said[-1]
  (tmp_path / 'a.jsonl').write_text(lines(PAIRS[:2]))
  atm_tasks.configure(words.path, pairs=str(tmp_path / 'a.jsonl'))
  (train,), (held,) = build(words, tmp_path / 'more')
  assert train.rows.counts['documents'] == held.rows.counts['documents'] == 1


def test_a_host_needs_the_rows_alone(words, tmp_path, file):
  atm_tasks.configure(words.path, pairs=file)
  (made,), _ = build(words, tmp_path / 'rows')
  tasks.unregister('pairs')
  with pytest.raises(ValueError, match='Set PAIRS, or CACHE_DIR of rows'):
    task_registry.find_task('pairs')
  atm_tasks.configure(words.path, cache_dir=str(tmp_path / 'rows'))
  (part,) = batches.load_parts(
    'pairs', 'train', words, Lengths.of(LENGTHS), str(tmp_path / 'rows')
  )
  assert len(part.rows) == len(made.rows)


def test_other_pieces_are_needed_by_text_alone(words):
  """A tokenizer without [CLM] and [DOC] is good for pairs."""

  class Bare:
    pad_id, bos_id, eos_id = words.pad_id, words.bos_id, words.eos_id
    special_ids, input_format = staticmethod(dict), words.input_format

  ids = packing.SpecialIds.of(Bare)
  assert list(objectives.Pairs().rows([([1], [2])], ids, 9))
  for objective in (objectives.Denoise(), objectives.CLM()):
    with pytest.raises(ValueError, match=r'no \[(DOC|CLM)\]'):
      list(objective.rows([[1, 2, 3]], ids, 9))


def test_sentences_with_the_names_of_their_languages():
  source = pairs.LanguagePairs()
  held, train = (texts(source, split) for split in ('validation', 'train'))
  assert {b for _, b in train} == set(languages.LANGUAGES.values())
  assert {b for _, b in held} == {b for _, b in train}
  assert not set(held) & set(train)
  assert ('Everyone has the right to life, liberty and the security of person.',
          'English') in held  # fmt: skip


def test_columns_of_tsv(tmp_path):
  """By place, by the header's names, and in templates; quotes are letters."""
  path = tmp_path / 'a.tsv'
  path.write_text('id\tde\ten\n1\tGut "so\tGood\n\n2\t Danke\tThanks\n')
  read = lambda columns: texts(
    pairs.PairsSource(
      str(path), 0.0, reader=pair_text.PairReader(columns=columns)
    ),
    'train',
  )
  rows = [('Gut "so', 'Good'), (' Danke', 'Thanks')]
  assert read(('de', 'en')) == rows
  assert read((2, 3)) == [('de', 'en'), *rows]
  assert read(None)[1] == ('1', 'Gut "so')
  assert read(('{id}: {de}', 'en'))[0] == ('1: Gut "so', 'Good')
  for columns, message in (
    (('de', 'fr'), "a.tsv, line 1: expected a column 'fr'; got .'id'"),
    ((2, 4), "line 1: expected a column '4'; got 3: "),
  ):
    with pytest.raises(ValueError, match=message):
      read(columns)
  path.write_text('id\tde\ten\n1\tGut\n')
  with pytest.raises(ValueError, match='line 2: expected 3 columns; got 2'):
    read(('de', 'en'))


def test_a_blank_line_or_header_says_nothing_of_languages(tmp_path):
  """Fault seen: pairs behind a blank line refused for want of languages."""
  path = tmp_path / 'a.jsonl'
  path.write_text('\n' + lines(PAIRS[:2]))
  assert pairs.PairsSource(str(path), 0.0).count_directions() == {}
  path = tmp_path / 'a.tsv'
  path.write_text('de\ten\nGut\tGood\n')
  reader = pair_text.PairReader(columns=('de', 'en'))
  source = pairs.PairsSource(str(path), 0.0, reader=reader)
  assert source.count_directions() == {}
  reader = pair_text.PairReader('de', 'en', columns=('de', 'en'))
  source = pairs.PairsSource(str(path), 0.0, reader=reader)
  assert source.count_directions() == {('de', 'en'): 1}


def test_fields_of_json_lines(tmp_path):
  path = tmp_path / 'a.jsonl'
  row = {'question': 'Who?', 'context': 'I {it}', 'answer': 'I'}
  path.write_text(json.dumps(row) + '\n')
  columns = ('{question} {context}', 'answer')
  reader = pair_text.PairReader('en', 'en', columns=columns)
  source = pairs.PairsSource(str(path), 0.0, reader=reader)
  assert texts(source, 'train') == [('Who? I {it}', 'I', 'en', 'en')]
  assert source.made_from['columns'] == list(columns)
  assert 'columns' not in pairs.PairsSource(str(path), 0.0).made_from
  reader = pair_text.PairReader(columns=('question', 'target'))
  with pytest.raises(ValueError, match='line 1: .*`question` and `target`'):
    texts(pairs.PairsSource(str(path), 0.0, reader=reader), 'train')


def test_two_files_line_by_line(tmp_path):
  """As Moses and OPUS have them; a line that one side lacks is left out."""
  for name, content in (
    ('a.de', 'Gut\nJa\n\nDanke\n'), ('a.en', 'Good\n\nNo\nThanks\n'),
  ):  # fmt: skip
    (tmp_path / name).write_text(content)
  paths = tuple(str(tmp_path / name) for name in ('a.de', 'a.en'))
  reader = pair_text.PairReader('de', 'en')
  source = pairs.PairsSource(paths, 0.0, reader=reader)
  rows = [('Gut', 'Good', 'de', 'en'), ('Danke', 'Thanks', 'de', 'en')]
  assert texts(source, 'train') == rows
  assert source.count_directions() == {('de', 'en'): 2}
  before = source.made_from['pairs']
  (tmp_path / 'a.en').write_text('Good\n\nNo\nThanks!\nMore\n')
  source = pairs.PairsSource(paths, 0.0, reader=reader)
  assert source.made_from['pairs'] != before
  with pytest.raises(ValueError, match='a.en has a line 5, and .*a.de has not'):
    texts(source, 'train')
  with pytest.raises(FileNotFoundError, match="no file '.*none'"):
    pairs.PairsSource((paths[0], str(tmp_path / 'none')), 0.0)


def test_a_folder_of_tsv(tmp_path):
  for name in ('train.tsv', 'validation.tsv'):
    (tmp_path / name).write_text('a\tb\n')
  source = pairs.PairsSource(str(tmp_path), 0.5)
  assert texts(source, 'train') == texts(source, 'validation') == [('a', 'b')]


@pytest.mark.parametrize(
  'settings, message',
  [
    (
      dict(pairs=('a',)),
      r"PAIRS = \('a',\): expected a file or folder, or two",
    ),
    (dict(pairs=('a', 5)), 'a path of PAIRS'),
    (dict(pairs_columns='ab'), "PAIRS_COLUMNS = 'ab': expected two names"),
    (dict(pairs_columns=(0, 1)), 'PAIRS_COLUMNS = .0, 1.: expected two names'),
    (dict(pairs_columns=('a', ' ')), 'expected two names, numbers from 1'),
  ],
)
def test_settings_of_pairs(settings, message):
  with pytest.raises(ValueError, match=message):
    atm_tasks.configure(**settings)
