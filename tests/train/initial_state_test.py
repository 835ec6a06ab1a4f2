"""The state that a run goes on from."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest

from atm.checkpoint import pretrained

import goldens
from tiny_runs import (
  EIGHT,
  ONE,
  Stop,
  metrics_at,
  parameters,
  small_model,
)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(seed=5), 'SEED = 5, but this MODEL_DIR was trained with 0'),
    (dict(batch_size=8), 'BATCH_SIZE = 8, but this MODEL_DIR'),
    (dict(d_model=64), 'is of another model.*config.gin'),
  ],
)
def test_resuming_something_else_is_refused(train, tmp_path, changes, message):
  run = shutil.copytree(train.whole(8), tmp_path / 'run')
  if 'd_model' in changes:
    changes = dict(model_config=small_model(**changes))
  with pytest.raises(ValueError, match=message):
    train(run, 9, **changes)


def test_training_goes_on_from_exported_and_imported_weights(train, tmp_path):
  from atm.checkpoint import convert

  config = small_model(
    norm='uncentred', position_offset=2, token_types=1, logits_bias=True
  )
  a, b, folder = (str(tmp_path / name) for name in ('a', 'b', 'folder'))
  before = train(a, 2, model_config=config)
  convert.export_weights(a, folder, say=lambda text: None)
  convert.import_weights(folder, b, ONE, say=lambda text: None)
  with pytest.raises(ValueError, match='has weights to start from: leave out'):
    train(b, 1, model_config=config, vocabulary=None, init_from=a)
  after = train(b, 1, model_config=config, vocabulary=None)
  assert any('starting from the weights in' in line for line in after.lines)
  last, first = before.history[-1], after.history[0]
  assert first['step'] == 0
  for name in ('denoise', 'clm/en'):
    assert first[f'eval/loss/{name}'] == last[f'eval/loss/{name}']
  shutil.rmtree(f'{b}/vocabulary')
  with pytest.raises(ValueError, match='has weights but no vocabulary'):
    train(b, 1, model_config=config, vocabulary=None)
  # And from the folder itself, whose config.json it keeps for the next export.
  c = str(tmp_path / 'c')
  tuned = train(c, 1, model_config=config, vocabulary=None, init_from=folder)
  assert metrics_at(tuned, 0) == metrics_at(before, 2)
  convert.export_weights(c, f'{folder}-2', say=lambda text: None)


def test_a_model_to_train_on(train, tmp_path):
  """Fault seen: the fresh parameters were kept."""
  source = str(tmp_path / 'source')
  before = train(source, 4)
  settings = dict(init_from=source, vocabulary=None)
  whole = train(tmp_path / 'whole', 4, **settings)
  assert f'starting from {source}, trained for 4 steps' in whole.lines
  assert metrics_at(whole, 0) == metrics_at(before, 4)
  assert metrics_at(whole, 4) != metrics_at(whole, 0)
  train(tmp_path / 'parts', 3, **settings)
  found, saved = pretrained.open_pretrained(source), parameters(source, 4)
  sharded = found.read_params(EIGHT(), as_saved=False)
  for path, value in jax.tree_util.tree_flatten_with_path(sharded)[0]:
    assert len(value.sharding.device_set) == 8 and value.dtype == np.float32
    assert (np.asarray(value) == saved[jax.tree_util.keystr(path)]).all()
  shutil.rmtree(source)
  train(tmp_path / 'parts', 4, **settings)
  mine, wanted = (parameters(tmp_path / x, 4) for x in ('parts', 'whole'))
  for name, value in wanted.items():
    assert mine[name].tobytes() == value.tobytes(), name


def test_a_public_model_goes_on_with_markers(train, tmp_path):
  """Its rows stay, and a stopped run ends with the same bytes.

  The vocabulary has 597 ids and the embedding 603 rows: two of the spare ones
  become those of [CLM] and [DOC].
  """
  source = os.path.join(goldens.HERE, 'public', 'mbart50')
  there = pretrained.open_pretrained(source)
  settings = dict(
    mixture='udhr_en_clm', init_from=source, vocabulary=None, batch_size=4,
    model_config=dataclasses.replace(there.config, dropout=0.1, vocab_size=606),
    save_every=1, eval_every=9,
  )  # fmt: skip
  with pytest.raises(ValueError, match="NEW_LANGUAGES: .* has 'de_DE' alr"):
    train(tmp_path / 'no', 3, new_languages={'de_DE': 'en_XX'}, **settings)
  run = train(tmp_path / 'whole', 3, **settings)
  line = 'new tokens: [CLM] [DOC]; the embedding grows from 603 to 606 rows'
  assert line in run.lines
  assert there.generation_config['forced_bos_token_id'] == 547
  assert not (tmp_path / 'whole' / 'generation_config.json').exists()
  assert run.vocabulary.clm_id == 597 == run.vocabulary.size - 2
  with pytest.raises(Stop):
    train(tmp_path / 'parts', 3, stop_at=1, **settings)
  train(tmp_path / 'parts', 3, **settings)
  mine, wanted = (parameters(tmp_path / x, 3) for x in ('parts', 'whole'))
  for name, value in wanted.items():
    assert mine[name].tobytes() == value.tobytes(), name
  table = there.parameter_reader()(('encoder_embedding',))
  assert table.shape[0] == 603
  (trained,) = (v for k, v in wanted.items() if 'encoder_embedding' in k)
  assert trained.shape[0] == 606
  # A row of an id that no text has moves by weight decay alone.
  np.testing.assert_allclose(trained[560], table[560], atol=1e-2)


def test_an_encoder_to_start_from_frozen(train, tmp_path):
  """INIT_ENCODER with FREEZE_ENCODER_STEPS: the encoder stays the source's."""
  a, b = str(tmp_path / 'a'), str(tmp_path / 'b')
  train(a, 2)
  run = train(b, 2, init_encoder=a, freeze_encoder_steps=2, seed=9)
  assert any('rows' in line for line in run.lines)
  first, second = parameters(a, 2), parameters(b, 2)
  for name in first:
    same = (first[name] == second[name]).all()
    assert same == name.startswith(("['encoder']", "['encoder_")), name
  with pytest.raises(FileNotFoundError):
    train(str(tmp_path / 'c'), 1, init_encoder=str(tmp_path / 'none'))
  assert not (tmp_path / 'c' / 'config.gin').exists()
