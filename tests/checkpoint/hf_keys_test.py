"""Hugging Face's names for our parameters."""

from atm.checkpoint import hf_keys


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
