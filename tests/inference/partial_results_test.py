"""The .part file: seals, kills, files of others."""

import json
import os

import pytest

from atm.inference import partial_results


def results_in(tmp_path, rows=3) -> partial_results.PartialResults:
  return partial_results.PartialResults(str(tmp_path / 'out'), {'a': 1}, rows)


def test_every_byte_of_results_on_disk_is_sealed(tmp_path):
  """Fault seen: what a flip made of a text was taken for the model's."""
  made = {i: {'output': f'text {i}', 'p': -0.1 * i} for i in range(3)}
  results_in(tmp_path).add(made)
  part = tmp_path / 'out.part'
  whole = part.read_bytes()
  head = whole.index(b'\n')
  for at, byte in enumerate(whole):
    for bit in (1, 32):
      part.write_bytes(whole[:at] + bytes([byte ^ bit]) + whole[at + 1 :])
      try:
        done = results_in(tmp_path).done
      except ValueError as e:
        assert at <= head and 'out.part is of a run with other' in str(e)
        continue
      lost = 3 - len(done)
      assert done == {i: made[i] for i in done} and lost <= 2, at
      assert lost or at <= head, at


def test_a_kill_while_results_are_read_loses_none(tmp_path, monkeypatch):
  """Fault seen: the file emptied before its rows were written anew."""
  results_in(tmp_path).add({0: {'output': 'x'}, 1: {'output': 'y'}})
  whole = (tmp_path / 'out.part').read_bytes()

  def killed(path, *args, **named):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(os, 'fsync', killed)
    results_in(tmp_path)
  assert (tmp_path / 'out.part').read_bytes() == whole
  assert results_in(tmp_path).left == [2]


@pytest.mark.parametrize('content', ['notes of mine', '{"mine": 1}\n', '[1]'])
def test_a_part_file_of_a_user_is_not_replaced(tmp_path, content):
  """Fault seen: a file of one line emptied."""
  path = tmp_path / 'out.part'
  path.write_text(content)
  with pytest.raises(ValueError, match=f'{path} is of a run .*none of ours'):
    results_in(tmp_path)
  assert path.read_text() == content


def test_a_part_file_without_seals_goes_on(tmp_path):
  results_in(tmp_path).add({1: {'output': 'x'}})
  part = tmp_path / 'out.part'
  head, row = map(json.loads, part.read_text().splitlines())
  del head['sealed'], row['crc32']
  row['row'] = row.pop('row')  # in any order
  part.write_text(f'{json.dumps(head)}\n{json.dumps(row)}\n{{"row": 2, "ou')
  assert results_in(tmp_path).done == {1: {'output': 'x'}}
  part.write_text('')
  assert results_in(tmp_path).left == [0, 1, 2]
