"""Errors of a model's sizes and choices."""

import pytest

from conftest import tiny


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(d_model=30), 'encoder_heads = 4 does not divide Config.d_model'),
    (dict(vocab_size=0), 'vocab_size = 0: expected a whole number'),
    (dict(d_model=32.0), 'd_model = 32.0'),
    (dict(dropout=1.5), r'dropout = 1.5: expected \[0, 1\)'),
    (dict(dtype='bfloat61'), "Did you mean 'bfloat16'"),
    (dict(remat='ful'), "Did you mean 'full'"),
    (dict(end_id=96), 'end_id = 96 is no id below'),
  ],
)
def test_config_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny(**changes)
