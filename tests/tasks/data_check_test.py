"""Reports on evaluation data: found, missing and broken files."""

import os
import shutil

import pytest

from atm_tasks.evaluation import data_check, registry

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(HERE, 'testdata', 'evaluation')


def test_check_says_what_is_there_and_what_is_not(tmp_path):
  shutil.copytree(f'{DATA}/xnli', tmp_path / 'xnli')
  names = ['xnli_*', 'flores101_en_de', 'udhr_next_en']
  sources = registry.select_sources(
    names, str(tmp_path), tfds_dir=str(tmp_path)
  )
  rows = data_check.check_files(sources)
  found = [
    (r.set, os.path.basename(r.file), r.examples, r.problem) for r in rows
  ]
  assert found == [
    ('xnli', 'xnli.test.tsv', 3, ''),  # the most, in German
    ('flores101', 'eng.devtest', None, 'missing'),
    ('flores101', 'deu.devtest', None, 'missing'),
    ('flores101', 'eng.dev', None, 'missing'),
    ('flores101', 'deu.dev', None, 'missing'),
    ('udhr_next', 'en.tsv', 7, ''),
  ]
  table, count = data_check.data_table(
    names, str(tmp_path), tfds_dir=str(tmp_path)
  )
  assert count == 4
  text = table.splitlines()
  assert text[0].split() == ['set', 'examples', 'file']
  assert text[2].endswith('eng.devtest  missing')
  assert len([line for line in text if 'flores101_dataset.tar.gz' in line]) == 1
  assert not any('None' in line for line in text)


@pytest.mark.parametrize('source, message', [
  ('\n', "example 0: field 'sentence'"),
  (None, 'is a folder'),
])  # fmt: skip
def test_check_finds_what_a_run_would(tmp_path, source, message):
  """Faults seen: a blank sentence that ended the run; a folder, the check."""
  shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'flores101/flores101_dataset/devtest/eng.devtest'
  lines = path.read_text().count('\n')
  path.unlink()
  if source is None:
    path.mkdir()
  else:
    path.write_text(source * lines)
  sources = registry.select_sources('flores101_en_de', str(tmp_path))
  (problem,) = {row.problem for row in data_check.check_files(sources)} - {''}
  assert message in problem and str(path) in problem
  (task,) = registry.suite('flores101_en_de', str(tmp_path))
  with pytest.raises((ValueError, OSError), match=message):
    task.make_questions(None)
