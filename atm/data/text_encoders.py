"""What encodes a text: `tokenizers`, or SentencePiece of M2M-100.

Both tell the tokens of all ids, and how tokens are decoded.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import sentencepiece

from atm import fileio
from atm.data.tokenizer_folder import (
  M2M_CODES,
  SENTENCEPIECE_FILE,
  TOKENIZER_FILE,
  VOCAB_FILE,
  parse_settings,
)
from atm.data.tokenizer_json import parse_tokenizer
from atm.messages import one_line

SPACE = '\u2581'


class JsonEncoder:
  """Encodes with `tokenizers`.

  Attributes:
    tokens: [V] tokens; None where there is no such id.
    silent: ids that leave no trace in a text.
    decoding: 'metaspace': U+2581 is a space, but in the first token of a text;
      'bytes': letters stand for bytes.
  """

  def __init__(self, files: Mapping[str, bytes], settings: dict, path: str):
    where = os.path.join(path, TOKENIZER_FILE)
    text = files.get(TOKENIZER_FILE, b'').decode(errors='replace')
    self._tokenizer = parse_tokenizer(text, path)
    self.decoding = _name_decoding(self._tokenizer.decoder, where)
    ids = self._tokenizer.get_vocab(with_added_tokens=True)
    self.tokens = [None] * (max(ids.values(), default=-1) + 1)
    for token, i in ids.items():
      self.tokens[i] = token
    special = {
      token.content
      for token in self._tokenizer.get_added_tokens_decoder().values()
      if token.special
    }
    self.silent = {i for token, i in ids.items() if token in special}

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_plain(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of texts in which special tokens are text."""
    self._tokenizer.encode_special_tokens = True  # encode them as text
    try:
      rows = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    finally:
      self._tokenizer.encode_special_tokens = False
    return [np.array(row.ids, np.int32) for row in rows]

  def export_settings(self) -> dict:
    """Returns what tokenizer_config.json says of encoding."""
    splitter = self._tokenizer.pre_tokenizer
    settings = {} if splitter is None else json.loads(splitter.__getstate__())
    space = settings.get('add_prefix_space')
    return {} if space is None else {'add_prefix_space': space}

  @functools.cached_property
  def _normalizers(self) -> list:
    normalizer = self._tokenizer.normalizer
    with contextlib.suppress(TypeError):
      return list(normalizer)
    return [] if normalizer is None else [normalizer]

  def normalize(self, text: str) -> str:
    for normalizer in self._normalizers:
      if type(normalizer).__name__ not in ('Replace', 'Strip'):  # of spaces
        text = normalizer.normalize_str(text)
    return text


def _name_decoding(decoder, where: str) -> str:
  settings = {} if decoder is None else json.loads(decoder.__getstate__())
  kind = settings.get('type')
  if kind == 'ByteLevel':
    return 'bytes'
  if kind == 'Metaspace' and settings['replacement'] == SPACE:
    never = settings['prepend_scheme'] == 'never'
    return 'spaces' if never else 'metaspace'
  raise ValueError(
    f'{where} has the decoder {one_line(str(kind), 60)}: expected ByteLevel, '
    'or Metaspace with U+2581'
  )


class PieceEncoder:
  """Encodes with SentencePiece, and looks pieces up in vocab.json."""

  decoding = 'strip'

  def __init__(self, files: Mapping[str, bytes], settings: dict, path: str):
    self._sp = sentencepiece.SentencePieceProcessor()
    self._model = files[SENTENCEPIECE_FILE]
    try:
      self._sp.LoadFromSerializedProto(self._model)
    except RuntimeError as e:
      where = os.path.join(path, SENTENCEPIECE_FILE)
      raise ValueError(f'{where!r} is not a SentencePiece model') from e
    where = os.path.join(path, VOCAB_FILE)
    vocab = parse_settings(files.get(VOCAB_FILE, b''), where)
    fileio.check_json(vocab, {str: int}, where)
    self._added = {token['content']: token for token in settings['added']}
    added = {content: token['id'] for content, token in self._added.items()}
    named = {f'__{code}__': i for code, i in settings['languages'].items()}
    self._ids = {**named, **vocab, **added}
    self._unk_id = settings['special'].get('unk_token')
    if not 0 <= min(self._ids.values()) <= max(self._ids.values()) < 2**24:
      raise ValueError(f'{where}: expected ids from 0')
    self.tokens = [None] * (max(self._ids.values()) + 1)
    for token, i in self._ids.items():
      self.tokens[i] = token
    self.silent = {*settings['silent'], *named.values()}
    self._settings = settings
    longest = sorted(self._added, key=len, reverse=True)
    self._split = re.compile(f'({"|".join(map(re.escape, longest))})')

  def encode(self, text: str) -> list[int]:
    parts = self._split.split(text) if self._added else [text]
    for at in range(1, len(parts), 2):
      token = self._added[parts[at]]
      if token.get('lstrip'):
        parts[at - 1] = parts[at - 1].rstrip()
      if token.get('rstrip'):
        parts[at + 1] = parts[at + 1].lstrip()
    ids = []
    for at, part in enumerate(parts):
      if at % 2:
        ids.append(self._ids[part])
      elif part:
        ids += self._look_up(self._sp.encode(part, out_type=str))
    return ids

  def export_settings(self) -> dict:
    """Returns what tokenizer_config.json says of languages and added tokens."""
    languages = (*self._settings['languages'],)
    known = (name for name, x in M2M_CODES.items() if x == languages)
    flags = ('lstrip', 'rstrip', 'normalized', 'special')
    return {
      'language_codes': next(known, 'm2m100'),
      'extra_special_tokens': [
        self.tokens[i] for i in self._settings['silent']
      ],
      'added_tokens_decoder': {
        str(token['id']): {
          'content': token['content'], 'single_word': False,
          **{flag: token.get(flag, False) for flag in flags},
        }
        for token in self._added.values()
      },
    }  # fmt: skip

  def _look_up(self, pieces: Iterable[str]) -> list[int]:
    return [self._ids.get(piece, self._unk_id) for piece in pieces]

  @functools.cached_property
  def _by_piece(self) -> np.ndarray:
    """[pieces of SentencePiece] int32: ids in vocab.json."""
    size = self._sp.get_piece_size()
    pieces = map(self._sp.id_to_piece, range(size))
    return np.array(self._look_up(pieces), np.int32)

  def encode_plain(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of texts in which special tokens are text."""
    rows = self._sp.encode(list(texts), out_type='numpy', num_threads=1)
    made = []
    for text, row in zip(texts, rows):
      ids = self._by_piece[row]
      if (row == self._sp.unk_id()).any():  # vocab.json may have that text
        ids = self._look_up(self._sp.encode(text, out_type=str))
      made.append(np.asarray(ids, np.int32))
    return made

  @functools.cached_property
  def _normalizer(self) -> sentencepiece.SentencePieceNormalizer:
    return sentencepiece.SentencePieceNormalizer(
      model_proto=self._model,
      add_dummy_prefix=False,
      escape_whitespaces=False,
      remove_extra_whitespaces=False,
    )

  def normalize(self, text: str) -> str:
    return self._normalizer.Normalize(text)
