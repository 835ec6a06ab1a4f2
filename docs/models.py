"""Writes the table of docs/models.md: sizes of public models, by our Config.

python docs/models.py

The fields are those of each model's published config.json; parameters are
counted as `atm.load` would make them, nothing is downloaded.
"""

import math
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# --- config.json of families, then what a size changes


def fields(
  kind: str, d_model: int, ff: int, layers: tuple[int, int], heads: int,
  vocab: int, **rest,
) -> dict:  # fmt: skip
  """Returns a config.json of a model's sizes."""
  return {
    'model_type': kind, 'd_model': d_model, 'vocab_size': vocab,
    'encoder_layers': layers[0], 'decoder_layers': layers[1],
    'encoder_ffn_dim': ff, 'decoder_ffn_dim': ff,
    'encoder_attention_heads': heads, 'decoder_attention_heads': heads,
    'scale_embedding': True, 'tie_word_embeddings': True,
    'activation_function': 'relu', 'max_position_embeddings': 1024,
    'pad_token_id': 1, 'bos_token_id': 0, 'eos_token_id': 2,
    'decoder_start_token_id': 2, **rest,
  }  # fmt: skip


MBART25 = {'activation_function': 'gelu'}
PEGASUS = {
  'pad_token_id': 0, 'bos_token_id': None, 'eos_token_id': 1,
  'decoder_start_token_id': 0,
}  # fmt: skip
BLENDERBOT = {
  'activation_function': 'gelu', 'max_position_embeddings': 128,
  'pad_token_id': 0, 'bos_token_id': 1, 'decoder_start_token_id': 1,
}  # fmt: skip
DENSE = {'M2M-100': 128112, 'NLLB-200': 256206}
MODELS = {
  'mBART': {
    'facebook/mbart-large-cc25': fields(
      'mbart', 1024, 4096, (12, 12), 16, 250027, **MBART25
    ),
    'facebook/mbart-large-50, -many-to-many-mmt, -one-to-many-mmt, '
    '-many-to-one-mmt': fields('mbart', 1024, 4096, (12, 12), 16, 250054),
  },
  'M2M-100': {
    'facebook/m2m100_418M': fields(
      'm2m_100', 1024, 4096, (12, 12), 16, DENSE['M2M-100']
    ),
    'facebook/m2m100_1.2B': fields(
      'm2m_100', 1024, 8192, (24, 24), 16, DENSE['M2M-100']
    ),
    'facebook/m2m100-12B-last-ckpt, -avg-5-ckpt, -avg-10-ckpt': fields(
      'm2m_100', 4096, 16384, (24, 24), 16, DENSE['M2M-100']
    ),
  },
  'NLLB-200': {
    'facebook/nllb-200-distilled-600M': fields(
      'm2m_100', 1024, 4096, (12, 12), 16, DENSE['NLLB-200']
    ),
    'facebook/nllb-200-distilled-1.3B, nllb-200-1.3B': fields(
      'm2m_100', 1024, 8192, (24, 24), 16, DENSE['NLLB-200']
    ),
    'facebook/nllb-200-3.3B': fields(
      'm2m_100', 2048, 8192, (24, 24), 16, DENSE['NLLB-200']
    ),
  },
  'Pegasus': {
    'google/pegasus-large, pegasus-xsum, pegasus-cnn_dailymail': fields(
      'pegasus', 1024, 4096, (16, 16), 16, 96103, **PEGASUS
    ),
  },
  'Blenderbot': {
    'facebook/blenderbot-400M-distill': fields(
      'blenderbot', 1280, 5120, (2, 12), 32, 8008, **BLENDERBOT
    ),
    'facebook/blenderbot-1B-distill': fields(
      'blenderbot', 2560, 10240, (2, 12), 32, 8008, **BLENDERBOT
    ),
    'facebook/blenderbot-3B': fields(
      'blenderbot', 2560, 10240, (2, 24), 32, 8008, **BLENDERBOT
    ),
  },
}


def list_shapes(fields_of_config: dict) -> dict:
  """Returns the parameters of a model with this config.json, without arrays."""
  from atm.checkpoint import config_json, pretrained

  config = config_json.config_from_hf(fields_of_config)
  return pretrained.shapes_on_one_device(config)


def count_parameters(fields_of_config: dict) -> int:
  """Counts the parameters of a model with this config.json."""
  import jax

  shapes = jax.tree.leaves(list_shapes(fields_of_config))
  return sum(math.prod(x.shape) for x in shapes)


def count_int8_bytes(fields_of_config: dict) -> int:
  """Returns the bytes of such a model with int8 weights."""
  from atm.model import quantized
  from atm.parallel.device_memory import device_bytes

  shapes = list_shapes(fields_of_config)
  return device_bytes(quantized.abstract_quantized(shapes))


def format_table() -> str:
  """Returns the table of all models, with memory for parameters alone."""
  lines = [
    '| model | parameters | layers | d_model | entries | float32 | bfloat16 '
    '| int8 |',
    '| --- | --- | --- | --- | --- | --- | --- | --- |',
  ]
  for family, models in MODELS.items():
    lines.append(f'| **{family}** | | | | | | | |')
    for name, config in models.items():
      count, int8_bytes = count_parameters(config), count_int8_bytes(config)
      layers = f'{config["encoder_layers"]} + {config["decoder_layers"]}'
      sizes = ' | '.join(
        f'{n / 1e9:.1f} GB' for n in (4 * count, 2 * count, int8_bytes)
      )
      lines.append(
        f'| {name} | {count:,} | {layers} | {config["d_model"]:,} | '
        f'{config["vocab_size"]:,} | {sizes} |'
      )
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.path.insert(0, ROOT)
  print(format_table())
