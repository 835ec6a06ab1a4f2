"""The model of decode.py and serve.py: ours, and in CTranslate2's format.

d512, 6 + 6 layers, ff 2048, 8 heads, a vocabulary of 32,000, tied embeddings.
Random parameters that both share, so that their ids can be compared.
"""

import os

from train_step import D, F, H, L, V

START, END, POSITIONS = 1, 2, 512


def make_params(seed: int = 0) -> dict:
  """Returns random parameters of the model, as numpy arrays by name."""
  import numpy as np

  draw = np.random.default_rng(seed)
  normal = lambda *shape: (0.02 * draw.standard_normal(shape)).astype('f')
  dense = lambda a, b: {'kernel': normal(L, a, b), 'bias': normal(L, b)}
  norm = lambda *n: {'scale': 1 + normal(*n, D), 'bias': normal(*n, D)}
  attention = lambda: {x: dense(D, D) for x in ('query', 'key', 'value', 'out')}
  feed = lambda: {'up': dense(D, F), 'down': dense(F, D)}
  encoder = dict(attention_norm=norm(L), attention=attention())
  decoder = dict(self_attention_norm=norm(L), self_attention=attention())
  decoder |= dict(cross_attention_norm=norm(L), cross_attention=attention())
  for layers in encoder, decoder:
    layers |= dict(feed_forward_norm=norm(L), feed_forward=feed())
  return dict(
    encoder_embedding=normal(V, D),
    encoder_positions=normal(POSITIONS, D),
    decoder_positions=normal(POSITIONS, D),
    encoder=dict(layers=encoder, norm=norm()),
    decoder=dict(layers=decoder, norm=norm()),
  )


def load_model():
  """Returns our `Model` with the parameters of `make_params`."""
  import jax

  from atm.inference import api
  from atm.model import config as config_lib
  from atm.parallel import distributed, sharding, xla_options
  from atm.parallel import mesh as mesh_lib

  xla_options.set_flags()
  xla_options.set_compilation_cache()
  distributed.start_jax(cpu_devices=1)
  config = config_lib.ModelConfig(
    vocab_size=V, d_model=D, encoder_layers=L, decoder_layers=L,
    encoder_heads=H, decoder_heads=H, encoder_ff=F, decoder_ff=F,
    positions=POSITIONS, dtype='float32', ties='all', unroll=L,
    pad_id=0, start_id=START, end_id=END,
  )  # fmt: skip
  mesh = mesh_lib.make_mesh()
  params = jax.tree.map(jax.numpy.asarray, make_params())
  return api.Model(config, params, None, mesh, sharding.Rules(), 0)


# --- CTranslate2


def open_translator(folder: str, inter: int, intra: int, dtype='float32'):
  """Returns CTranslate2's translator of the model.

  Args:
    folder: gets the converted model, if it is not there yet.
    inter: batches at a time.
    intra: threads of each batch.
    dtype: CTranslate2's compute type.
  """
  import ctranslate2

  path = os.path.join(folder, 'ctranslate2')
  if not os.path.exists(path):
    _convert(path)
  return ctranslate2.Translator(
    path, compute_type=dtype, inter_threads=inter, intra_threads=intra
  )


def list_words():
  """Returns the words of the converted model, by id."""
  import numpy as np

  return np.array([str(i) for i in range(V)], object)


def _set_norm(to, norm, *i) -> None:
  to.gamma, to.beta = norm['scale'][i], norm['bias'][i]


def _set_linear(to, i: int, *parts) -> None:
  import numpy as np

  to.weight = np.concatenate([x['kernel'][i].T for x in parts])
  to.bias = np.concatenate([x['bias'][i] for x in parts])


def _set_attention(to, x, i: int, crosses=False) -> None:
  inward = [x[name] for name in ('query', 'key', 'value')]
  for at, parts in enumerate(
    (inward[:1], inward[1:]) if crosses else (inward,)
  ):
    _set_linear(to.linear[at], i, *parts)
  _set_linear(to.linear[-1], i, x['out'])


def _set_layers(to, layers: dict, decodes: bool) -> None:
  own = 'self_attention' if decodes else 'attention'
  for i, layer in enumerate(to):
    _set_attention(layer.self_attention, layers[own], i)
    _set_norm(layer.self_attention.layer_norm, layers[f'{own}_norm'], i)
    if decodes:
      _set_attention(layer.attention, layers['cross_attention'], i, True)
      norm = layers['cross_attention_norm']
      _set_norm(layer.attention.layer_norm, norm, i)
    _set_linear(layer.ffn.linear_0, i, layers['feed_forward']['up'])
    _set_linear(layer.ffn.linear_1, i, layers['feed_forward']['down'])
    _set_norm(layer.ffn.layer_norm, layers['feed_forward_norm'], i)


def _convert(folder: str) -> None:
  """Writes the parameters in CTranslate2's format of this architecture."""
  from ctranslate2.specs import common_spec, transformer_spec

  params = make_params()
  spec = transformer_spec.TransformerSpec.from_config(
    (L, L), H, pre_norm=True, activation=common_spec.Activation.GELU
  )
  for name in ('encoder', 'decoder'):
    to, stack = getattr(spec, name), params[name]
    embeddings = to.embeddings
    for one in embeddings if isinstance(embeddings, list) else [embeddings]:
      one.weight = params['encoder_embedding']
    to.position_encodings.encodings = params[f'{name}_positions']
    to.scale_embeddings = False
    _set_norm(to.layer_norm, stack['norm'])
    _set_layers(to.layer, stack['layers'], decodes=name == 'decoder')
  spec.decoder.projection.weight = params['encoder_embedding']
  words = list_words().tolist()
  spec.register_source_vocabulary(words)
  spec.register_target_vocabulary(words)
  config = spec.config
  config.bos_token = config.decoder_start_token = str(START)
  config.eos_token, config.unk_token = str(END), '0'
  spec.validate()
  spec.optimize()
  os.makedirs(folder)
  spec.save(folder)
