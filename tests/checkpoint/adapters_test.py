"""Adapters: what a LoRA run says of itself, and what is made of it."""

import json

import pytest

from atm.checkpoint import adapters
from atm.model.lora import LoraConfig

CONFIG = LoraConfig(4, 8.0, 0.1, ('query/kernel', 'lm_head'), True)
BASE = adapters.BaseModel('runs/base', 7, 'ab' * 32)


def test_a_description_is_read_as_it_was_written(tmp_path):
  assert adapters.read_description(str(tmp_path)) is None
  adapters.write_description(str(tmp_path), CONFIG, BASE)
  assert adapters.read_description(str(tmp_path)) == (CONFIG, BASE)


@pytest.mark.parametrize(
  'part, key, value', [
    ('lora', 'rank', 0), ('lora', 'targets', ['(']), ('base', 'path', None),
    ('lora', 'rank', 'x'),
  ],
)  # fmt: skip
def test_a_damaged_description_is_refused(tmp_path, part, key, value):
  adapters.write_description(str(tmp_path), CONFIG, BASE)
  path = tmp_path / adapters.ADAPTER_FILE
  described = json.loads(path.read_text())
  described[part][key] = value
  path.write_text(json.dumps(described))
  with pytest.raises(ValueError, match=f'(?i){path}: .*{key}') as e:
    adapters.read_description(str(tmp_path))
  assert '\n' not in str(e.value)
