"""Hugging Face's names for our parameters, and config.json to Config."""

import pytest

from atm.checkpoint import hf_folder, hf_keys
from atm.model.config import CONFIG_CHOICES

from conftest import tiny
from goldens import HERE


def test_the_float32_casts_are_honoured():
  described = hf_folder.read_json_object(f'{HERE}/untied.config.json')
  plain = hf_keys.config_from_hf(described)
  assert not plain.norm_float32 and not plain.scores_float32
  cast = hf_keys.config_from_hf(
    {**described, 'fp32_cast_layer_norm': True, 'fp32_cast_query_key': 'fp32'}
  )
  assert cast.norm_float32 and cast.scores_float32
  assert hf_keys.config_from_hf(hf_keys.config_to_hf(cast)) == cast


@pytest.mark.parametrize('ties', ['none', 'embeddings', 'decoder_head', 'all'])
def test_config_json_is_read_as_it_was_written(ties):
  """Faults seen: the two ties swapped; start_id taken from pad_token_id."""
  config = tiny(
    ties=ties, norm='uncentred', position_offset=2, logits_bias=True, pad_id=3,
    start_id=4, end_id=5, token_types=2, dropout=0.25, attention_dropout=0.5,
    encoder_layers=3, init_std=0.02,
  )  # fmt: skip
  written = hf_keys.config_to_hf(config)
  assert hf_keys.config_from_hf(written) == config
  tied = written['share_embeddings'], written['tie_word_embeddings']
  assert tied == (
    ties in ('embeddings', 'all'),
    ties in ('decoder_head', 'all'),
  )
  assert written['num_hidden_layers'] == 3 == written['encoder_layers']


def test_ties_that_the_format_has_not_are_refused():
  with pytest.raises(ValueError, match="ties = 'encoder_head': of norm 'unce"):
    hf_keys.config_to_hf(tiny(ties='encoder_head', norm='uncentred'))


@pytest.mark.parametrize('ties', CONFIG_CHOICES['ties'])
def test_a_standard_norm_is_written_as_blenderbot(ties):
  config = tiny(
    ties=ties, logits_bias=True, start_id=4, end_id=5, dropout=0.25,
    embed_scale=True, init_std=0.02,
  )  # fmt: skip
  written = hf_keys.config_to_hf(config)
  assert hf_keys.config_from_hf(written) == config
  assert written['tie_word_embeddings'] == (ties == 'all')
  for wrong in ('all', 'x', 3):
    with pytest.raises(hf_keys.WeightsError, match='atm_ties'):
      hf_keys.config_from_hf({**written, 'atm_ties': wrong})


def test_a_stacked_parameter_has_a_key_a_layer():
  """Fault seen: the layer's number left out."""
  keys = hf_keys.ALEXATM.keys
  path = ('decoder', 'layers', 'self_attention', 'query', 'kernel')
  assert keys(path, (2, 8, 8)) == [
    f'model.decoder.layers.{i}.self_attn.q_proj.weight' for i in range(2)
  ]
  assert keys(('encoder', 'norm', 'bias'), (8,)) == [
    'model.encoder.pre_ln_encoder.layer_norm.bias'
  ]
  assert keys(('logits_bias',), (8,)) == ['final_logits_bias']


def test_heads_of_an_xlmr_are_ignored():
  """Fault seen: the prefix of a model with a head not seen."""
  bare = ['encoder.LayerNorm.weight', 'pooler.dense.bias']
  headed = [f'roberta.{key}' for key in bare] + ['lm_head.bias']
  layout = hf_keys.make_xlmr_layout(bare)
  assert layout.ignored == ('pooler.dense.bias',)
  layout = hf_keys.make_xlmr_layout(headed)
  assert set(layout.ignored) == {'roberta.pooler.dense.bias', 'lm_head.bias'}
  assert layout.stacks['encoder'].norm == 'roberta.encoder.LayerNorm'
