"""config.json of Hugging Face classes, to Config and back."""

import re

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


# Fields of the downloaded folders that are not those of a tiny one.
NOTES = {
  'add_bias_logits': False, 'add_final_layer_norm': True,
  'classif_dropout': 0.0, 'gradient_checkpointing': False,
  'normalize_before': True, 'output_past': True, 'torch_dtype': 'float32',
  'use_cache': True, 'num_beams': 5, 'max_length': 200,
  'id2label': {'0': 'LABEL_0'},
  'task_specific_params': {'translation_en_to_ro': {'num_beams': 5}},
}  # fmt: skip
PUBLISHED = {
  'mbart25': {
    **NOTES, 'normalize_embedding': True, 'static_position_embeddings': False,
    'num_hidden_layers': 1,
  },
  'mbart50': {**NOTES, 'normalize_embedding': True, 'num_hidden_layers': 2},
  'm2m_100': {'num_hidden_layers': 2, 'early_stopping': True},
  'pegasus': {
    **NOTES, 'normalize_embedding': False, 'static_position_embeddings': True,
    'extra_pos_embeddings': 1, 'force_bos_token_to_be_generated': False,
    'bos_token_id': 0, 'length_penalty': 0.6,
  },
}  # fmt: skip


def read_public(name, **changes):
  hf = hf_folder.read_json_object(f'{HERE}/public/{name}/config.json')
  return config_json.config_from_hf({**hf, **changes})


def test_public_models_are_told_apart():
  """Faults seen: mBART's rows not shifted; M2M-100's always by 2."""
  fields = lambda config: (
    config.activation, config.embedding_norm, config.position_embedding,
    config.encoder_position_offset, config.position_offset, config.embed_scale,
    config.logits_bias, config.start_id, config.ties,
  )  # fmt: skip
  assert fields(read_public('mbart25')) == (
    'gelu', True, 'learned', 2, 2, True, True, 0, 'all'
  )  # fmt: skip
  assert fields(read_public('mbart50')) == (
    'relu', True, 'learned', 2, 2, False, True, 2, 'all'
  )  # fmt: skip
  assert fields(read_public('nllb', pad_token_id=4)) == (
    'relu', False, 'sinusoidal_fairseq', 5, 5, False, False, 2, 'all'
  )  # fmt: skip
  assert fields(read_public('pegasus')) == (
    'relu', False, 'sinusoidal', 0, 0, True, True, 0, 'all'
  )  # fmt: skip


@pytest.mark.parametrize('name', PUBLISHED)
def test_fields_of_published_folders_change_nothing(name):
  """And what is not said is what the class has by default."""
  plain = read_public(name)
  assert read_public(name, **PUBLISHED[name]) == plain
  hf = hf_folder.read_json_object(f'{HERE}/public/{name}/config.json')
  silent = {
    'mbart25': ('activation_function', 'decoder_start_token_id'),
    'm2m_100': ('activation_function', 'scale_embedding', 'dropout'),
    'pegasus': ('pad_token_id', 'eos_token_id', 'decoder_start_token_id'),
  }
  for key in silent.get(name, ()):
    del hf[key]
  assert config_json.config_from_hf(hf) == plain


@pytest.mark.parametrize(
  'name, change, match',
  [
    ('mbart50', {'normalize_before': False}, 'normalize_before = False: only'),
    ('mbart50', {'normalize_embedding': False}, 'normalize_embedding = False'),
    ('pegasus', {'static_position_embeddings': False}, 'static_position_embed'),
    ('m2m_100', {'add_final_layer_norm': False}, 'add_final_layer_norm = F'),
    ('nllb', {'activation_function': 'swish'}, "'swish': only 'gelu' and 'rel"),
    ('mbart25', {'num_hidden_layers': 5}, 'num_hidden_layers = 5, but enco'),
    ('mbart25', {'is_encoder_decoder': False}, 'is_encoder_decoder = False'),
    ('pegasus', {'scale_embedding': 1}, 'scale_embedding is 1: expected'),
    ('nllb', {'eos_token_id': [2, 3]}, 'eos_token_id is .*: expected a whole'),
    ('nllb', {'model_type': 'nllb-moe'}, 'mixture of experts.* take a dense'),
    ('nllb', {'model_type': 'bart'}, "'bart' is none .*Known: alexatm, blend"),
    ('nllb', {'model_type': 'marian'}, "'marian' is none that is read here"),
  ],
)  # fmt: skip
def test_what_no_class_computes_is_refused_by_name(name, change, match):
  with pytest.raises(hf_keys.WeightsError, match=match):
    read_public(name, **change)


FAIRSEQ = {
  'position_embedding': 'sinusoidal_fairseq', 'position_offset': 4,
  'encoder_position_offset': 4, 'pad_id': 3,
}  # fmt: skip
SHIFTED = {
  'embedding_norm': True, 'position_offset': 2, 'encoder_position_offset': 2,
}  # fmt: skip


@pytest.mark.parametrize(
  'kind, fields',
  [
    ('blenderbot', {'activation': 'relu'}),
    ('mbart', {**SHIFTED, 'activation': 'relu', 'ties': 'none'}),
    ('mbart', {**SHIFTED, 'embed_scale': True, 'ties': 'all'}),
    ('m2m_100', {**FAIRSEQ, 'activation': 'relu', 'ties': 'encoder_head'}),
    ('pegasus', {'position_embedding': 'sinusoidal', 'ties': 'all'}),
  ],
)
def test_a_model_is_written_as_the_class_that_computes_it(kind, fields):
  config = tiny(
    logits_bias=kind != 'm2m_100', dropout=0.25, init_std=0.02, start_id=4,
    end_id=5, **fields,
  )  # fmt: skip
  written = config_json.config_to_hf(config)
  assert written['model_type'] == kind
  assert config_json.config_from_hf(written) == config


@pytest.mark.parametrize(
  'fields, match',
  [
    ({**SHIFTED, 'position_offset': 0}, 'position_offset = 0: .*MBart .*has 2'),
    ({**FAIRSEQ, 'pad_id': 0}, 'position_offset = 4: .* M2M100 .* has 1'),
    ({**FAIRSEQ, 'logits_bias': True}, 'logits_bias = True: .* M2M100 is'),
    ({'position_embedding': 'sinusoidal', 'embedding_norm': True},
     'embedding_norm = True: .* Pegasus is, which has False'),
    ({'norm': 'uncentred', 'activation': 'relu'}, "'relu': of norm 'uncentred"),
  ],
)  # fmt: skip
def test_a_model_between_the_classes_is_told_what_to_change(fields, match):
  assert re.search(match, config_json.explain_no_format(tiny(**fields)))


def test_rows_that_were_added_are_written():
  hf = hf_folder.read_json_object(f'{HERE}/public/mbart50/config.json')
  config = read_public('mbart50', vocab_size=700, max_position_embeddings=50)
  grown = config_json.update_sizes(hf, config)
  assert config_json.config_from_hf(grown) == config
  assert grown['architectures'] == hf['architectures']
