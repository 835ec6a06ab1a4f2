"""Which files of a folder are read, refused or said."""

import json
import os

import pytest

from atm_tasks.pretraining import (
  pairs,
  sources,
  text_folders,
  text_source,
)


def make(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('one\n')
  return str(folder)


def test_capitals_of_an_ending_make_no_difference(tmp_path):
  """Fault seen: es.TXT left out without a word."""
  folder = make(tmp_path, 'es.TXT', 'it.txt', 'fr.Txt')
  assert text_folders.list_languages(folder) == ['es', 'fr', 'it']
  source = sources.FolderSource(folder, 'es', held_out=0)
  assert list(source.texts('train', 0)) == ['one']


@pytest.mark.parametrize('name, nearest', [
  ('EN.txt', 'en.txt'), ('De-2.jsonl.gz', 'de-2.jsonl.gz'), ('FR/a.txt', 'fr'),
  ('PT_BR.txt', None), ('FAQ.txt', None), ('EN.md', None), ('TODO', None),
])  # fmt: skip
def test_languages_in_capitals_are_named(tmp_path, name, nearest, capsys):
  """Fault seen: EN.txt left out without a word."""
  folder = make(tmp_path, 'it.txt', name)
  if nearest:
    with pytest.raises(ValueError, match=f"Did you mean '{nearest}'"):
      text_folders.list_languages(folder)
  else:
    assert text_folders.list_languages(folder) == ['it']
    assert f'TEXT_DIR = {folder!r}: not read: {name}' in capsys.readouterr().err
    assert text_folders.list_languages(folder) == ['it']
    assert not capsys.readouterr().err  # once


def test_many_names_are_said_on_one_line(tmp_path, capsys):
  names = [f'{"x" * 200}{i}.md' for i in range(9)]
  folder = make(tmp_path, 'it.txt', '.hidden', *names)
  text_folders.list_languages(folder)
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and said.endswith(' and 4 more\n')
  assert len(said) < 500 and 'hidden' not in said
  with pytest.raises(ValueError, match='no LANG.txt.*; there are README'):
    text_folders.list_languages(make(tmp_path / 'none', 'README'))


@pytest.mark.parametrize('name', ['it.txt.gz', 'it.TXT', 'it.txt.zst'])
def test_one_text_is_not_read_twice(tmp_path, name):
  """Fault seen: it.txt and it.txt.gz read, one after the other."""
  folder = make(tmp_path, 'it.txt', name, 'it-2.txt', 'it/it.txt', 'it.jsonl')
  with pytest.raises(ValueError, match='TEXT_DIR = .* and .* read twice'):
    sources.FolderSource(folder, 'it')
  os.remove(tmp_path / name)
  assert len(sources.FolderSource(folder, 'it').files) == 4


def test_files_of_pairs(tmp_path, capsys):
  """Faults seen: Train.jsonl and notes left out without a word."""
  line = json.dumps({'input': 'a', 'target': 'b'}) + '\n'
  for name in (
    'train.JSONL',
    'train-2.json',
    'validation.ndjson',
    'test.jsonl',
  ):
    (tmp_path / name).write_text(line)
  source = pairs.PairsSource(str(tmp_path), 0.0)
  assert [len(source.parts(split)) for split in text_source.SPLITS] == [2, 1]
  assert 'not read: test.jsonl\n' in capsys.readouterr().err
  (tmp_path / 'Train-3.jsonl').touch()
  with pytest.raises(ValueError, match="Did you mean 'train-3.jsonl'"):
    pairs.PairsSource(str(tmp_path), 0.0)
  os.rename(tmp_path / 'Train-3.jsonl', tmp_path / 'train.jsonl.gz')
  with pytest.raises(ValueError, match='PAIRS = .* read twice'):
    pairs.PairsSource(str(tmp_path), 0.0)
  os.mkfifo(tmp_path / 'fifo.jsonl')
  with pytest.raises(ValueError, match='not a pipe'):
    pairs.PairsSource(str(tmp_path / 'fifo.jsonl'), 0.0)
