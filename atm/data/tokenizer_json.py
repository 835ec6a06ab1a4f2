"""tokenizer.json as transformers 5 uses it.

By the class of a tokenizer, transformers 5 takes no more from the file than the
vocabulary, the merges and the table of the normaliser, and sets up the rest
itself. mBART-25's text is then not normalised, and where two spaces follow one
another, one is left in all others'.
"""

import json
from collections.abc import Mapping

from atm import fileio
from atm.data.added_tokens import AddedTokens
from atm.messages import MissingExtraError, missing_extra, one_line

METASPACE = {
  'type': 'Metaspace',
  'replacement': '\u2581',
  'prepend_scheme': 'always',
  'split': True,
}
BYTE_LEVEL = {
  'type': 'ByteLevel',
  'add_prefix_space': True,
  'trim_offsets': True,
  'use_regex': True,
}
ONE_SPACE = {'type': 'Replace', 'pattern': {'Regex': ' {2,}'}, 'content': ' '}
NO_NEWLINE = {'type': 'Replace', 'pattern': {'Regex': '\n'}, 'content': ' '}
MODELS = {
  'MBartTokenizer': 'Unigram',
  'MBart50Tokenizer': 'Unigram',
  'PegasusTokenizer': 'Unigram',
  'NllbTokenizer': 'BPE',
  'BlenderbotTokenizer': 'BPE',
}


def import_tokenizers(where: str):
  """Returns the module `tokenizers`; raises ImportError, names the extra."""
  try:
    import tokenizers
  except ImportError as e:
    what = f'the tokenizer of {where} needs tokenizers'
    raise MissingExtraError(missing_extra(what, 'tokenizers')) from e
  return tokenizers


def parse_tokenizer(text: str, where: str):
  """Returns a `tokenizers.Tokenizer`; raises ValueError where text is none."""
  tokenizers = import_tokenizers(where)
  try:
    return tokenizers.Tokenizer.from_str(text)
  except (
    BaseException
  ) as e:  # a damaged table is a panic, which is no Exception
    if not isinstance(e, Exception) and type(e).__name__ != 'PanicException':
      raise
    raise ValueError(
      f'{where}: tokenizer.json is damaged, or of another version: '
      f'{one_line(e, 150)}'
    ) from e


def rebuild_tokenizer(
  name: str, data: Mapping, settings: Mapping, tokens: AddedTokens, where: str
):
  """Returns the `tokenizers.Tokenizer` that transformers makes of a file.

  Args:
    name: the tokenizer's class; one that is not in MODELS takes it as it is.
    data, settings: tokenizer.json and tokenizer_config.json.
    tokens: that are added.
    where: what an error begins with, the folder.

  Raises:
    ImportError: tokenizers is not installed.
    ValueError: the file is damaged, or of another kind than its class.
  """
  data = {**data, 'post_processor': None}  # which frames a text
  if name in MODELS:
    form = {'model': {'type?': str, 'vocab': (dict, list)}}
    fileio.check_json(data, form, f'{where}: tokenizer.json')
    kind = data['model'].get('type', MODELS[name])
    if kind != MODELS[name]:
      raise ValueError(
        f'{where}: tokenizer.json has a {kind} model, where {name} has a '
        f'{MODELS[name]} model'
      )
    data |= _set_up(name, data, settings, tokens.named, where)
  tokenizer = parse_tokenizer(json.dumps(data), where)
  AddedToken = import_tokenizers(where).AddedToken
  tokenizer.add_tokens([AddedToken(**token) for token in tokens.added])
  return tokenizer


def _set_up(
  name: str, data: Mapping, settings: Mapping, named: Mapping, where: str
) -> dict:
  """Returns the parts of tokenizer.json that a class sets up."""
  vocab = data['model']['vocab']
  parts = {'added_tokens': [], 'pre_tokenizer': METASPACE, 'decoder': METASPACE}
  model = {'type': MODELS[name], 'vocab': vocab}
  if MODELS[name] == 'BPE':
    model |= {'merges': data['model'].get('merges', [])}
  else:
    model |= {'unk_id': 3, 'byte_fallback': False}
  if name == 'PegasusTokenizer':
    pieces = [pair[0] if pair else None for pair in vocab]
    if named['unk_token'] not in pieces:
      raise ValueError(
        f'{where}: tokenizer.json has no piece {named["unk_token"]!r}'
      )
    model['unk_id'] = pieces.index(named['unk_token'])
  elif name == 'NllbTokenizer':
    model |= {'unk_token': named['unk_token'], 'fuse_unk': True}
  elif name == 'BlenderbotTokenizer':
    model |= {'continuing_subword_prefix': '', 'end_of_word_suffix': ''}
    space = bool(settings.get('add_prefix_space', True))
    byte_level = {**BYTE_LEVEL, 'add_prefix_space': space}
    parts |= {'pre_tokenizer': byte_level, 'decoder': BYTE_LEVEL}
  elif name == 'MBartTokenizer':
    words = [{'type': 'WhitespaceSplit'}, METASPACE]
    parts['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': words}
  normalizer = _list_normalizers(name, data.get('normalizer'))
  parts['normalizer'] = normalizer and {
    'type': 'Sequence', 'normalizers': normalizer,
  }  # fmt: skip
  return {**parts, 'model': model}


def _list_normalizers(name: str, normalizer) -> list[dict] | None:
  """Returns the normalisers that a class sets up; None for none."""
  if name in ('MBartTokenizer', 'BlenderbotTokenizer'):
    return None
  listed = [normalizer]
  if isinstance(normalizer, dict) and normalizer.get('type') == 'Sequence':
    listed = normalizer.get('normalizers') or []
  tables = [
    {'type': 'Precompiled', 'precompiled_charsmap': x['precompiled_charsmap']}
    for x in listed
    if isinstance(x, dict) and x.get('precompiled_charsmap')
  ]
  if tables or name == 'MBart50Tokenizer':
    return [*tables[:1], ONE_SPACE]
  return [NO_NEWLINE, ONE_SPACE] if name == 'PegasusTokenizer' else None
