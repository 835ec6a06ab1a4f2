"""Files of evaluation sets: found, missing, and as TFDS has them."""

import os
import shutil

import numpy as np
import pytest

from atm.evals.task import MissingData
from atm_tasks.evaluation import dataset_files, registry

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(HERE, 'testdata', 'evaluation')


def ask(name: str, data_dir=DATA, **options):
  (task,) = registry.suite(name, str(data_dir), **options)
  return task.make_questions(None)


def test_missing_data_names_place_and_source(tmp_path):
  (task,) = registry.suite('xnli_de', str(tmp_path), tfds_dir=str(tmp_path))
  assert task.source == ''
  with pytest.raises(MissingData) as e:
    task.make_questions(None)
  why, where = str(e.value).split('\n')
  assert f'{tmp_path}/xnli/XNLI-1.0/xnli.test.tsv' in why
  assert 'XNLI-1.0.zip' in where and f'{tmp_path}/xnli/' in where
  assert f'tfds build xnli --data_dir={tmp_path}' in where


def test_flores_200_is_taken_too(tmp_path):
  for split in ('dev', 'devtest'):
    for old, new in (('eng', 'eng_Latn'), ('deu', 'deu_Latn')):
      source = f'{DATA}/flores101/flores101_dataset/{split}/{old}.{split}'
      target = tmp_path / 'flores101' / split / f'{new}.{split}'
      target.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(source, target)
  assert ask('flores101_en_de', tmp_path) == ask('flores101_en_de')


def test_globs_take_folders_as_they_are_called(tmp_path):
  """Faults seen: [1] of a folder read as a glob; paths unsorted."""
  folder = tmp_path / 'data[1]'
  folder.mkdir()
  for name in ('b.xml', 'a.xml', 'c.txt'):
    (folder / name).touch()
  found = dataset_files.glob_paths(str(folder), '*.xml')
  assert found == [f'{folder}/a.xml', f'{folder}/b.xml']


def test_many_paths_are_shown_as_their_folder():
  paths = [f'/data/webnlg/en/{i}triples/x.xml' for i in range(4)]
  assert dataset_files.FoundSplit(paths[:3], list).places == paths[:3]
  assert dataset_files.FoundSplit(paths, list).places == ['/data/webnlg/en/...']


class Names:
  """A label of TFDS."""

  def int2str(self, value):
    return ('no', 'yes')[value]


def test_values_of_tfds_become_pythons():
  """Faults seen: an unlabelled example, -1, as the last label; NumPy's own."""
  value = {'a': b'\xc3\xa4', 'b': np.array([b'x', b'y'], object),
           'c': np.int64(3), 'd': {'label': 1}, 'e': -1}  # fmt: skip
  feature = {'d': {'label': Names()}, 'e': Names()}
  found = dataset_files._to_python(value, feature)
  assert found == {'a': 'ä', 'b': ['x', 'y'], 'c': 3, 'd': {'label': 'yes'},
                   'e': None}  # fmt: skip
  assert type(found['c']) is int


def test_a_name_that_is_nearly_right_is_hinted_at(tmp_path):
  """Fault seen: `missing`, with the file there in capitals."""
  (tmp_path / 'pairs').mkdir()
  (tmp_path / 'pairs' / 'Validation.jsonl').touch()
  (task,) = registry.suite('pairs', str(tmp_path))
  with pytest.raises(MissingData, match=r"\(is 'Validation.jsonl' meant\?\)"):
    task.make_questions(None)
