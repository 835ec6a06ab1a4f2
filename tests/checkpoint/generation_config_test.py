"""Where a model's settings of generation are read, and that they are kept."""

import json

import pytest

from atm.checkpoint import generation_config
from atm.checkpoint.generation_config import FILE, read_generation_config


def test_the_file_counts_and_else_an_earlier_config(tmp_path):
  """Fault to come: what transformers' classes have taken for a model's own."""
  config = {
    'model_type': 'blenderbot', 'num_beams': 4, 'max_length': 20,
    'forced_eos_token_id': None, 'd_model': 8, 'length_penalty': 0.65,
  }  # fmt: skip
  path, content = read_generation_config(str(tmp_path), config)
  assert path == str(tmp_path / 'config.json')
  assert content == {'num_beams': 4, 'length_penalty': 0.65}
  released = {**config, 'model_type': 'alexatm'}
  assert read_generation_config(str(tmp_path), released)[1] == {}
  assert read_generation_config(str(tmp_path)) == (str(tmp_path / FILE), {})
  (tmp_path / FILE).write_text('{"num_beams": 5}')
  for hf_config in (config, released, None):
    path, content = read_generation_config(str(tmp_path), hf_config)
    assert path == str(tmp_path / FILE) and content == {'num_beams': 5}
  (tmp_path / FILE).write_text('[1]')
  with pytest.raises(ValueError, match=FILE):
    read_generation_config(str(tmp_path))


def test_the_file_is_handed_on_as_it_is(tmp_path):
  source, target = tmp_path / 'source', tmp_path / 'target'
  source.mkdir()
  target.mkdir()
  write = generation_config.write_generation_config
  write(str(source), str(target))
  write(str(source), str(target), {'model_type': 'mbart', 'max_length': 20})
  assert not list(target.iterdir())
  write(str(source), str(target), {'model_type': 'mbart', 'num_beams': 3})
  assert json.loads((target / FILE).read_text()) == {'num_beams': 3}
  text = '{ "max_length":  9,\n "unknown": null}'
  (source / FILE).write_text(text)
  write(str(source), str(target), {'model_type': 'mbart', 'num_beams': 3})
  assert (target / FILE).read_text() == text
