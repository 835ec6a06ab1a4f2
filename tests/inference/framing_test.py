"""Texts and ids as the model reads them."""

import numpy as np
import pytest

from atm.inference import prompts
from atm.inference.framing import Framing
from atm.model.config import ModelConfig


def test_padding_on_either_side_changes_nothing(model, rng):
  """Fault seen: only behind the ids."""
  pad = [model.config.pad_id]
  row = list(map(int, rng.integers(7, 2048, 9)))
  padded = [row, pad * 3 + row, row + pad * 4, pad + row + pad]
  alone = model.generate([row], max_tokens=12)
  assert model.generate(padded, max_tokens=12) == alone * 4
  total, _ = model.score(padded, [row] * 4)
  np.testing.assert_allclose(total, total[0], rtol=1e-6)


def test_modes_put_the_marker(model):
  v = model.vocabulary
  text = 'born free'
  assert model.encode(text, 'denoise') == [v.bos_id, *v.encode(text), v.eos_id]
  assert model.encode(text, 'clm')[:2] == [v.bos_id, v.clm_id]
  for mode in prompts.MODES:
    by_ids = model.generate([model.encode(text, mode)])[0]
    assert model.generate([text], mode=mode) == [v.decode(by_ids)]


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(inputs=['a'], mode='cml'), "Did you mean 'clm'"),
    (
      dict(inputs=['a'], max_tokens=0),
      'max_tokens = 0: expected a whole',
    ),
    (dict(inputs=[[1] * 65]), 'input 0 has 65 tokens'),
    (dict(inputs=[[1], []]), 'input 1 has 0 tokens'),
    (dict(inputs='one string'), 'expected a list of strings'),
  ],
)
def test_generate_errors(model, arguments, message):
  with pytest.raises(ValueError, match=message):
    model.generate(**arguments)


@pytest.fixture(scope='module')
def framing(words):
  return Framing(ModelConfig(vocab_size=words.size, positions=16), words)


def test_prefixes_follow_the_start_token(framing):
  """Fault seen: no start token before a prefix."""
  start, words = framing.config.start_id, framing.vocabulary
  assert framing.prefixes(None, 2) == [[start], [start]]
  prefixes = framing.prefixes(['Every', [7, 8]], 2)
  assert prefixes == [[start, *words.encode('Every')], [start, 7, 8]]


def test_a_text_is_banned_behind_a_space_and_without_one(framing):
  """Faults seen: only as behind a space; the end token banned alone."""
  words = framing.vocabulary
  banned = framing.banned(['has', [5, 6], [framing.config.end_id], []])
  assert banned == [words.encode('has'), words.inside('has'), [5, 6]]


def test_targets_keep_their_padding_and_end(framing):
  """Fault seen: padding of targets stripped."""
  pad, end = framing.config.pad_id, framing.config.end_id
  assert framing.inputs([[pad, 7, pad]], None) == [[pad, 7, pad]]
  assert framing.inputs([[pad, 7, pad], [pad, pad]], 'clm') == [[7], [pad]]
  assert framing.inputs(['has'], None)[0][-1] == end


def test_a_model_without_a_tokenizer_reads_ids_alone():
  bare = Framing(ModelConfig(vocab_size=96), None)
  assert bare.inputs([[3, 4]], 'clm') == [[3, 4]]
  assert bare.stop_table(()) is None
  for wrong, message in (
    (lambda: bare.inputs(['a'], 'clm'), 'no tokenizer: give input 0 as ids'),
    (lambda: bare.prefixes(['a'], 1), 'no tokenizer: give prefix as ids'),
    (lambda: bare.stop_table(['a']), 'no tokenizer: stop strings need one'),
    (lambda: bare.inputs([[3], [96]], 'clm'), 'input 1 has the id 96'),
  ):
    with pytest.raises(ValueError, match=message):
      wrong()
