"""Errors of a model's sizes and choices."""

import numpy as np
import pytest

from conftest import tiny


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(d_model=30), 'encoder_heads = 4 does not divide Config.d_model'),
    (dict(vocab_size=0), 'vocab_size = 0: expected a whole number'),
    (dict(d_model=32.5), r'd_model = 32.5: expected .* Did you mean 32\?'),
    (dict(vocab_size=2**63), 'expected a whole number from 1 to 2147483647'),
    (dict(encoder_layers=2**31), 'from 1 to 10000. Did you mean 10000'),
    (dict(dropout='0.1'), "dropout = '0.1': expected a number"),
    (dict(norm_eps=float('nan')), 'norm_eps = nan: expected a number'),
    (dict(embed_scale='no'), "embed_scale = 'no': expected True or False"),
    (
      dict(dropout=1.5),
      'dropout = 1.5: expected a number of at least 0 and below 1',
    ),
    (dict(dtype='bfloat61'), "Did you mean 'bfloat16'"),
    (dict(remat='ful'), "Did you mean 'full'"),
    (dict(activation='Relu'), "Did you mean 'relu'"),
    (dict(position_embedding='sinusoid'), "Did you mean 'sinusoidal'"),
    (dict(encoder_position_offset=-1), 'encoder_position_offset = -1'),
    (
      dict(
        d_model=2,
        encoder_heads=1,
        decoder_heads=1,
        position_embedding='sinusoidal_fairseq',
      ),
      'd_model = 2: expected at least 4 where .*sinusoidal_fairseq',
    ),
    (dict(end_id=96), 'end_id = 96 is no id below'),
  ],
)
def test_config_errors(changes, message):
  """Faults seen: sizes that no int32 holds; TypeErrors of other types."""
  with pytest.raises(ValueError, match=message):
    tiny(**changes)


def test_a_whole_float_is_a_whole_number():
  """Fault seen: what was checked was not what was used."""
  config = tiny(d_model=np.float64(32.0), encoder_heads=np.int64(4))
  assert config == tiny(d_model=32, encoder_heads=4)
  assert type(config.d_model) is type(config.encoder_heads) is int
