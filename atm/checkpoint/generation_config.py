"""Finds and keeps a model's generation_config.json, as it is.

What is in it becomes settings in `atm.inference.generation_defaults`.
"""

import os
from collections.abc import Mapping

from atm import fileio, storage

FILE = 'generation_config.json'
# What earlier folders have of it in their config.json, as transformers reads
# them there.
FIELDS = (
  'max_length', 'max_new_tokens', 'min_length', 'min_new_tokens',
  'early_stopping', 'do_sample', 'num_beams', 'num_beam_groups',
  'diversity_penalty', 'temperature', 'top_k', 'top_p', 'min_p', 'typical_p',
  'epsilon_cutoff', 'eta_cutoff', 'repetition_penalty',
  'encoder_repetition_penalty', 'length_penalty', 'no_repeat_ngram_size',
  'encoder_no_repeat_ngram_size', 'bad_words_ids', 'renormalize_logits',
  'forced_bos_token_id', 'forced_eos_token_id', 'num_return_sequences',
  'exponential_decay_length_penalty', 'suppress_tokens',
  'begin_suppress_tokens', 'sequence_bias',
)  # fmt: skip
# A config.json that was written whole has this of a class, not of its model.
_CLASS_DEFAULTS = {'max_length': 20}


def read_generation_config(
  directory: str, hf_config: Mapping | None = None
) -> tuple[str, dict]:
  """Returns (path, content) of the file with a folder's generation settings.

  Args:
    directory: a MODEL_DIR, or a Hugging Face folder.
    hf_config: the config.json of a Hugging Face folder, which has the settings
      where there is no generation_config.json. The released AlexaTM's has none:
      its values are those of its class, and not the paper's.

  Raises:
    ValueError: the file is damaged.
  """
  path = os.path.join(directory, FILE)
  if storage.exists(path):
    return path, fileio.read_json(path)
  if hf_config is None or hf_config.get('model_type') == 'alexatm':
    return path, {}
  content = {
    name: hf_config[name]
    for name in FIELDS
    if hf_config.get(name) is not None
    and hf_config[name] != _CLASS_DEFAULTS.get(name)
  }
  return os.path.join(directory, 'config.json'), content


def write_generation_config(
  source: str, directory: str, hf_config: Mapping | None = None
) -> None:
  """Writes the generation settings of a folder, where it has any, to another.

  Arguments but `directory`, which gets the file, are those of
  `read_generation_config`.
  """
  path, content = read_generation_config(source, hf_config)
  target = os.path.join(directory, FILE)
  if os.path.basename(path) == FILE and content:
    fileio.write_atomically(target, storage.read_bytes(path))
  elif content:
    fileio.write_json(target, content)
