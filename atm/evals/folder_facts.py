"""Checks what a folder of Hugging Face weights says of itself."""

import hashlib
import math
import os

import jax

from atm.checkpoint import hf_folder, pretrained
from atm.checkpoint.pretrained import PretrainedModel
from atm.evals.check_prompts import SENTENCES
from atm.evals.check_report import Report
from atm.messages import quote


def tell_folder(report: Report, source: PretrainedModel) -> str:
  """Checks config.json, weights, tokenizer and generation defaults.

  Reads no weights, but every key and shape.

  Returns:
    What the verdict says of the model.

  Raises:
    FileNotFoundError, ValueError: the weights are not those of config.json.
  """
  c, kind = source.config, source.meta['hf_config']['model_type']
  path = os.path.join(source.directory, 'config.json')
  report.tell(
    'config.json',
    f'{kind}: {c.encoder_layers} + {c.decoder_layers} layers, d_model '
    f'{c.d_model}, {c.vocab_size:,} entries', True,
  )  # fmt: skip
  shapes = pretrained.shapes_on_one_device(c)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  reader = hf_folder.WeightReader(
    source.directory, source.meta['hf_config'], shapes
  )
  dtypes = ', '.join(sorted({str(x) for x in reader.dtypes.values()}))
  size = sum(reader.sizes.values()) / 2**30
  text = f'{count:,} parameters, {dtypes}, {size:.2f} GiB'
  report.tell('weights', f'{text}: every key and shape', True)
  _tell_tokenizer(report, source)
  with open(path, 'rb') as f:
    digest = hashlib.file_digest(f, 'sha256').hexdigest()[:12]
  name = os.path.basename(os.path.abspath(source.directory))
  return (
    f'{quote(name, 60)}: {kind}, {count:,} parameters, {dtypes}, config.json '
    f'sha256 {digest}'
  )


def _tell_tokenizer(report: Report, source: PretrainedModel) -> None:
  """Tells of the tokenizer, and whether it reads what it writes."""
  if (vocabulary := source.vocabulary) is None:
    report.tell('tokenizer', 'none: the model takes and gives token ids')
    return
  form, languages = vocabulary.input_format, vocabulary.languages
  text = f'{form.name}: {vocabulary.size:,} entries'
  text += f', {len(languages)} languages' if languages else ''
  report.tell('tokenizer', text, True)
  same = [t for t in SENTENCES.values() if _is_stable(vocabulary, t)]
  report.tell(
    'text and back', f'{len(same)} of {len(SENTENCES)} sentences unchanged'
  )


def _is_stable(vocabulary, text: str) -> bool:
  """Tells whether a text's ids spell a text of the same ids."""
  ids = vocabulary.encode(text)
  return bool(ids) and vocabulary.encode(vocabulary.decode(ids)) == ids
