"""config.json of Hugging Face classes, to Config and back."""

import pytest

from atm.checkpoint import config_json, hf_folder, hf_keys
from atm.model.config import CONFIG_CHOICES

from conftest import tiny
from goldens import HERE


def test_the_float32_casts_are_honoured():
  described = hf_folder.read_json_object(f'{HERE}/untied.config.json')
  plain = config_json.config_from_hf(described)
  assert not plain.norm_float32 and not plain.scores_float32
  cast = config_json.config_from_hf(
    {**described, 'fp32_cast_layer_norm': True, 'fp32_cast_query_key': 'fp32'}
  )
  assert cast.norm_float32 and cast.scores_float32
  assert config_json.config_from_hf(config_json.config_to_hf(cast)) == cast


@pytest.mark.parametrize('ties', ['none', 'embeddings', 'decoder_head', 'all'])
def test_config_json_is_read_as_it_was_written(ties):
  """Faults seen: the two ties swapped; start_id taken from pad_token_id."""
  config = tiny(
    ties=ties, norm='uncentred', position_offset=2, logits_bias=True, pad_id=3,
    start_id=4, end_id=5, token_types=2, dropout=0.25, attention_dropout=0.5,
    encoder_layers=3, init_std=0.02,
  )  # fmt: skip
  written = config_json.config_to_hf(config)
  assert config_json.config_from_hf(written) == config
  tied = written['share_embeddings'], written['tie_word_embeddings']
  assert tied == (
    ties in ('embeddings', 'all'),
    ties in ('decoder_head', 'all'),
  )
  assert written['num_hidden_layers'] == 3 == written['encoder_layers']


def test_ties_that_the_format_has_not_are_refused():
  with pytest.raises(ValueError, match="ties = 'encoder_head': of norm 'unce"):
    config_json.config_to_hf(tiny(ties='encoder_head', norm='uncentred'))


@pytest.mark.parametrize('ties', CONFIG_CHOICES['ties'])
def test_a_standard_norm_is_written_as_blenderbot(ties):
  config = tiny(
    ties=ties, logits_bias=True, start_id=4, end_id=5, dropout=0.25,
    embed_scale=True, init_std=0.02,
  )  # fmt: skip
  written = config_json.config_to_hf(config)
  assert config_json.config_from_hf(written) == config
  assert written['tie_word_embeddings'] == (ties == 'all')
  for wrong in ('all', 'x', 3):
    with pytest.raises(hf_keys.WeightsError, match='atm_ties'):
      config_json.config_from_hf({**written, 'atm_ties': wrong})
