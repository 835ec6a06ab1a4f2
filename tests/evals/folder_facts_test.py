"""What `atm check` tells of a folder before it computes."""

import shutil

import pytest

from atm.checkpoint import pretrained
from atm.checkpoint.hf_keys import WeightsError
from atm.evals import folder_facts
from atm.evals.check_report import Report

from goldens import HERE

FOLDER = f'{HERE}/blenderbot_generate'


def tell(folder):
  lines = []
  about = folder_facts.tell_folder(
    Report(lines.append), pretrained.open_pretrained(str(folder))
  )
  return about, lines


def test_config_weights_and_tokenizer_are_told(tmp_path):
  about, lines = tell(shutil.copytree(FOLDER, tmp_path / 'mine'))
  assert about.startswith("'mine': blenderbot, 48,608 parameters, float32, ")
  assert len(about.split('sha256 ')[1]) == 12
  config, weights, tokenizer = lines
  assert config.split()[:2] == ['config.json', 'blenderbot:']
  assert config.endswith('ok') and weights.endswith('ok')
  assert 'none: the model takes and gives token ids' in tokenizer


def test_weights_of_another_model_are_refused(tmp_path):
  folder = shutil.copytree(FOLDER, tmp_path / 'mine')
  path = folder / 'config.json'
  text = path.read_text()
  assert '"encoder_layers": 2' in text
  path.write_text(text.replace('"encoder_layers": 2', '"encoder_layers": 3'))
  with pytest.raises(WeightsError, match='lacks .*layers.2'):
    tell(folder)
