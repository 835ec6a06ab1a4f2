"""Rows of tokens that a trained model's vocabulary gained."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from atm.checkpoint import new_rows
from atm.model.transformer import AlexaTM

import small_models
from conftest import tiny


def vocabulary(size, **languages):
  pieces = lambda ids: [f'token{i}' for i in ids]
  return types.SimpleNamespace(size=size, languages=languages, pieces=pieces)


OLD = vocabulary(90, en=7, de=8)
NEW = vocabulary(93, en=7, de=8, yo=92)


@pytest.mark.parametrize(
  'rows, tail',
  [
    # 90 to 95 are spare rows of the old table: new tokens take the first.
    (96, [-1, -1, 7, 93, 94, 95]),
    (98, [-1, -1, 7, 93, 94, 95, -1, -1]),
  ],
)
def test_which_row_a_new_one_begins_as(rows, tail):
  starts = new_rows.choose_starts(OLD, NEW, {'yo': 'en'}, 96, rows)
  assert starts.tolist() == [*range(90), *tail]


def test_rows_of_a_table_without_spare_ones():
  starts = new_rows.choose_starts(OLD, NEW, {'yo': 'de'}, 90, 93)
  assert starts.tolist() == [*range(90), -1, -1, 8]


def test_a_marker_begins_as_the_mean_of_the_vocabulary(rng, monkeypatch):
  """Spare rows, which no token had, are not in the mean."""
  monkeypatch.setattr(new_rows, 'SUMMED_AT_ONCE', 32)
  table = rng.standard_normal((96, 4)).astype(np.float32)
  starts = new_rows.choose_starts(OLD, NEW, {'yo': 'en'}, 96, 98)
  out = new_rows.extend_table(table, starts, OLD.size)
  assert out.dtype == np.float32 and out.shape == (98, 4)
  assert (out[:90] == table[:90]).all() and (out[93:96] == table[93:]).all()
  assert (out[92] == table[7]).all()
  np.testing.assert_allclose(out[90], table[:90].mean(0), rtol=1e-5)
  assert (out[[91, 96, 97]] == out[90]).all()
  bias = new_rows.extend_table(table[:, 0], starts, OLD.size)
  assert (bias == out[:, 0]).all()


def test_logits_of_old_ids_stay(rng, one_device):
  """To the bit, whatever is tied: the states do not depend on the new rows."""
  shape = dict(decoder_layers=1, encoder_layers=1, logits_bias=True)
  old, new = (tiny(vocab_size=V, **shape) for V in (96, 104))
  params = small_models.init(old)
  flat = traverse_util.flatten_dict(params)
  source = types.SimpleNamespace(
    config=old, vocabulary=OLD,
    parameter_reader=lambda: lambda path: np.asarray(flat[path]),
  )  # fmt: skip
  extended = new_rows.read_extended(source, new, NEW, {'yo': 'en'}, one_device)
  ids = jnp.asarray(rng.integers(3, 90, (2, 9)))
  before, after = (
    np.asarray(
      AlexaTM(config).apply({'params': p}, ids, ids, enable_dropout=False)
    )
    for config, p in ((old, params), (new, extended))
  )
  assert after.shape == (2, 9, 104)
  assert (after[..., :90] == before[..., :90]).all()
  assert (after[..., 92] == after[..., 7]).all()


def test_the_line_of_what_is_new():
  assert new_rows.describe_tokens(['[CLM]', 'yo'], 96, 104) == (
    'new tokens: [CLM] yo; the embedding grows from 96 to 104 rows'
  )
  assert 'spare rows' in new_rows.describe_tokens(['[CLM]'], 96, 96)
