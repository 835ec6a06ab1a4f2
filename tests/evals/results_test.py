"""results.json, written and read."""

import os

import pytest

from atm.evals import results

from synthetic import synthetic


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  return synthetic(tmp_path_factory.mktemp('a') / 'runs', n=4, languages=['en'])


def test_results_are_read_as_written(tmp_path, made):
  """Fault seen: nan, which JSON has not, and ASCII escapes are no matter; a
  partial file left in the folder is."""
  folder, found = str(tmp_path / 'new'), results.read_results(made)
  found['tasks'][0]['notes'] = ['हाँ']
  results.write_results(folder, found)
  assert results.read_results(folder) == found
  assert os.listdir(folder) == [results.RESULTS_FILE]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(results.distributed, 'is_main_process', lambda: False)
  results.write_results(str(tmp_path / 'new'), {})
  assert not os.listdir(tmp_path)


def test_a_folder_without_results_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='results.json, which'):
    results.read_results(str(tmp_path))


def test_every_byte_of_results_is_sealed(tmp_path, made):
  """Fault seen: a flipped digit of a score was shown and compared."""
  whole, folder = results.read_results(made), str(tmp_path)
  results.write_results(folder, whole)
  path = tmp_path / results.RESULTS_FILE
  content = path.read_bytes()
  for at in range(0, len(content), 31):
    path.write_bytes(
      content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    )
    try:
      found = results.read_results(folder)
    except ValueError as e:
      assert str(path) in str(e), at
    else:  # white space, or a letter of the seal's name
      assert {k: found[k] for k in whole} == whole, at
