"""Adds tokens to a vocabulary: markers of pre-training, and languages.

New tokens stand behind the last id, so that every id there was stays. They are
special: no text that is trained on encodes to them. Which tokens are added, in
which order, follows from the vocabulary and the settings alone, and so do the
bytes: rows and runs that add the same have the same vocabulary.
"""

import json
import re
from collections.abc import Mapping

from atm.data import hf_tokenizer, tokenizer_folder
from atm.data.language_codes import find_language
from atm.data.tokenizer_json import parse_tokenizer
from atm.data.vocabulary import (
  CLM_TOKEN,
  DOC_TOKEN,
  MASK_TOKEN,
  MODEL_FILE,
  Vocabulary,
)
from atm.messages import check_text, quote

MARKERS = (MASK_TOKEN, CLM_TOKEN, DOC_TOKEN)
# A code of each input format that has any, for messages.
EXAMPLES = {
  'mbart': 'yo_NG', 'mbart50': 'yo_NG', 'm2m_100': 'yo', 'nllb': 'yor_Latn',
  'nllb_legacy': 'yor_Latn',
}  # fmt: skip


def check_new_languages(languages) -> dict[str, str] | None:
  """Returns NEW_LANGUAGES: new code -> code whose row it begins as, or None."""
  if languages is None:
    return None
  if not isinstance(languages, dict) or not languages:
    raise ValueError(
      f'NEW_LANGUAGES = {quote(languages)}: expected new codes and the codes '
      "whose rows they begin as, such as {'yor_Latn': 'eng_Latn'}, or None"
    )
  return {
    check_text('a code of NEW_LANGUAGES', code, empty=False): check_text(
      f'NEW_LANGUAGES[{quote(code)}]', begins_as, empty=False
    )
    for code, begins_as in languages.items()
  }


def find_begins_as(
  vocabulary: Vocabulary, languages: Mapping[str, str] | None
) -> dict[str, str]:
  """Returns NEW_LANGUAGES by the vocabulary's own codes, without old ones.

  Raises ValueError where the vocabulary has no languages, or not the one that
  a new one is to begin as, or a new code is not written as its codes are.
  """
  found, form = {}, vocabulary.input_format.name
  for code, begins_as in (languages or {}).items():
    pattern = tokenizer_folder.LANGUAGE_TOKENS.get(form)
    if pattern is None:
      raise ValueError(
        f'NEW_LANGUAGES = {quote(languages)}: this model reads no language '
        'codes: leave it out'
      )
    if not re.fullmatch(pattern, _write_language(form, code)):
      raise ValueError(
        f'NEW_LANGUAGES: {quote(code)} is not written as the codes of this '
        f'model are: expected one such as {EXAMPLES[form]!r}'
      )
    name = f'NEW_LANGUAGES[{quote(code)}]'
    found[code] = find_language(name, begins_as, vocabulary.languages)
  return {k: x for k, x in found.items() if k not in vocabulary.languages}


def _write_language(form: str, code: str) -> str:
  """Returns the token of a language."""
  return f'__{code}__' if form == 'm2m_100' else code


def list_new_tokens(
  vocabulary: Vocabulary,
  markers: bool,
  languages: Mapping[str, str] | None = None,
) -> list[str]:
  """Lists what `extend_files` adds: markers that are missing, then languages.

  Args:
    vocabulary: what is extended.
    markers: whether `[CLM]` and `[DOC]` are needed; where either is missing,
      `[MASK]` is added, too, unless the vocabulary has one.
    languages: NEW_LANGUAGES; those that the vocabulary has are not new.
  """
  special, tokens = vocabulary.special_ids(), []
  if markers and not {CLM_TOKEN, DOC_TOKEN} <= special.keys():
    tokens = [token for token in MARKERS if token not in special]
  return [*tokens, *find_begins_as(vocabulary, languages)]


def extend_files(
  vocabulary: Vocabulary,
  markers: bool,
  languages: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
  """Returns the files of a vocabulary with the tokens of `list_new_tokens`.

  Raises ValueError for what no token can be added to.
  """
  tokens = list_new_tokens(vocabulary, markers, languages)
  files = dict(vocabulary.files)
  if not tokens:
    return files
  if MODEL_FILE in files:
    return {MODEL_FILE: _extend_sentencepiece(files[MODEL_FILE], tokens)}
  return files | _extend_public(vocabulary, files, tokens)


def _extend_sentencepiece(model: bytes, tokens: list[str]) -> bytes:
  """Returns a SentencePiece model with control pieces behind its last."""
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  taken = {piece.piece for piece in proto.pieces}.intersection(tokens)
  if taken:
    raise ValueError(
      f'the vocabulary has the piece {min(taken)!r} for text already: it '
      'cannot be a marker, too'
    )
  for token in tokens:
    control = sentencepiece_model_pb2.ModelProto.SentencePiece.CONTROL
    proto.pieces.add(piece=token, score=0.0, type=control)
  proto.trainer_spec.control_symbols.extend(tokens)
  proto.trainer_spec.vocab_size = len(proto.pieces)
  return proto.SerializeToString(deterministic=True)


def _extend_public(
  vocabulary: Vocabulary, files: Mapping[str, bytes], tokens: list[str]
) -> dict[str, bytes]:
  """Returns tokenizer.json, where there is one, and format.json, extended."""
  form = vocabulary.input_format.name
  names = {
    token: token if token in MARKERS else _write_language(form, token)
    for token in tokens
  }
  ids = {token: vocabulary.size + n for n, token in enumerate(tokens)}
  made = {}
  if tokenizer_folder.TOKENIZER_FILE in files:
    text = files[tokenizer_folder.TOKENIZER_FILE].decode()
    tokenizer = parse_tokenizer(text, vocabulary.path)
    _add_special(tokenizer, vocabulary, {names[x]: i for x, i in ids.items()})
    made[tokenizer_folder.TOKENIZER_FILE] = tokenizer.to_str().encode()
  settings = json.loads(files[tokenizer_folder.FORMAT_FILE])
  for token, i in ids.items():
    if token in MARKERS:
      settings['special'][hf_tokenizer.NAMES[token]] = i
      # What is read without a language is text to go on with, from here on.
      settings |= {'source': None, 'target': None}
    else:
      settings['languages'][token] = i
    if 'added' in settings:  # there is no tokenizer.json
      settings['added'].append({'content': names[token], 'id': i})
      settings['silent'].append(i)
  text = json.dumps(settings, indent=1, ensure_ascii=False) + '\n'
  return {**made, tokenizer_folder.FORMAT_FILE: text.encode()}


def _add_special(tokenizer, vocabulary: Vocabulary, ids: dict) -> None:
  """Adds special tokens to a `tokenizers.Tokenizer`, at these ids."""
  import tokenizers

  for token, i in ids.items():
    there = tokenizer.token_to_id(token)
    added = tokenizers.AddedToken(token, special=True, normalized=False)
    tokenizer.add_special_tokens([added])
    if there is not None or tokenizer.token_to_id(token) != i:
      raise ValueError(
        f'{token!r} cannot be added to {vocabulary.path}: '
        + (f'it is token {there}' if there is not None else 'ids have gaps')
      )
