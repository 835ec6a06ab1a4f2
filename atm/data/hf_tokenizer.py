"""Tokenizers of public models, with the interface of `Vocabulary`.

`tokenizers` encodes, which is imported when such a tokenizer is opened; of
M2M-100 SentencePiece does. Outputs are decoded here, one way for whole texts,
streams and stop strings: by tokens with U+2581 for a space, or by bytes.
"""

import codecs
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from atm import fileio, storage
from atm.data import tokenizer_folder
from atm.data.input_format import FORMATS, InputFormat
from atm.data.text_encoders import SPACE, JsonEncoder, PieceEncoder
from atm.data.token_ids import check_ids
from atm.data.tokenizer_folder import (
  SENTENCEPIECE_FILE,
  TOKENIZER_FILE,
  VOCAB_FILE,
)
from atm.data.vocabulary_base import (
  BOS_TOKEN,
  CLM_TOKEN,
  DOC_TOKEN,
  EOS_TOKEN,
  FORMAT_FILE,
  MASK_TOKEN,
  PAD_TOKEN,
  UNK_TOKEN,
  BaseVocabulary,
  as_text,
)
from atm.messages import check_path

NAMES = {
  PAD_TOKEN: 'pad_token', BOS_TOKEN: 'bos_token', EOS_TOKEN: 'eos_token',
  UNK_TOKEN: 'unk_token', MASK_TOKEN: 'mask_token', CLM_TOKEN: 'clm_token',
  DOC_TOKEN: 'doc_token',
}  # fmt: skip
FORMAT_FORM = {
  'input_format': str,
  'languages': {str: int},
  'special': {str: int},
  'source': (str, None),
  'target': (str, None),
  'clean_up': bool,
  'tokenizer_class?': str,
  'added?': [{'content': str, 'id': int}],
  'silent?': [int],
}
# What transformers' clean_up_tokenization_spaces replaces, in this order.
CLEAN_UPS = (
  (' .', '.'), (' ?', '?'), (' !', '!'), (' ,', ','), (" ' ", "'"),
  (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"),
  (" 're", "'re"),
)  # fmt: skip
# Texts that may stand in front of another without joining it in a token.
ANCHORS = ('_', '.', ',', '-', "'", 'x', '1', '|')


class HFTokenizer(BaseVocabulary):
  """A public model's tokenizer and the ids of its special tokens.

  Attributes:
    path: its folder.
    files: what is kept of it beside a model, name -> bytes.
    size: the number of ids, V.
    pad_id, bos_id, eos_id, unk_id: ids of special tokens; bos_id is None where
      there is no `<s>`.
    languages: the model's own codes of languages and their ids.
    input_format: the frame of inputs and targets.
    sha256: hash of `files`, in hex.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the folder of a public model, or one that `copy_vocabulary` wrote.

    Raises:
      FileNotFoundError: there is no tokenizer.
      ImportError: an extra is missing; names it.
      ValueError: it is damaged, or of a kind that is not known.
    """
    self.path = check_path('vocabulary', path)
    kept = storage.exists(os.path.join(self.path, FORMAT_FILE))
    read = _read_kept if kept else tokenizer_folder.read_folder
    self._files = read(self.path)
    self.sha256 = _hash_files(self._files)
    self._settings = _parse_format(self._files, self.path)
    self._special_ids = self._settings['special']
    backend = PieceEncoder if SENTENCEPIECE_FILE in self._files else JsonEncoder
    self._backend = backend(self._files, self._settings, self.path)
    self._tokens = self._backend.tokens
    self.size = len(self._tokens)
    self.languages = dict(self._settings['languages'])
    self._check_ids()
    self.pad_id, self.eos_id, self.unk_id = map(
      self._special, (PAD_TOKEN, EOS_TOKEN, UNK_TOKEN)
    )
    self.bos_id = self.special_ids().get(BOS_TOKEN)

  @property
  def files(self) -> dict[str, bytes]:
    """What is kept of it beside a model: name of a file -> bytes."""
    return dict(self._files)

  def _check_ids(self) -> None:
    """Raises ValueError where an id is none of the tokenizer's."""
    named = {**self._special_ids, **self.languages}
    for name, i in named.items():
      if not 0 <= i < self.size:
        raise ValueError(
          f'{self.path}: {name} has the id {i}, and the tokenizer {self.size} '
          'ids'
        )

  def _special(self, piece: str) -> int:
    if (i := self._special_ids.get(NAMES[piece])) is None:
      raise ValueError(f'vocabulary {self.path!r} has no {NAMES[piece]}')
    return i

  @functools.cached_property
  def input_format(self) -> InputFormat:
    """The frame of inputs and targets."""
    settings, ids = self._settings, self.special_ids()
    return InputFormat(
      settings['input_format'], self.eos_id, ids.get(BOS_TOKEN),
      ids.get(CLM_TOKEN), self.languages, settings['source'],
      settings['target'],
    )  # fmt: skip

  @functools.cached_property
  def _silent(self) -> np.ndarray:
    """[V] bool: tokens that stand for no text; `<unk>` is one."""
    silent = np.array([token is None for token in self._tokens])
    silent[list(self._backend.silent)] = True
    return silent

  def export_files(self) -> dict[str, bytes]:
    """Returns `files` with tokenizer_config.json, by which transformers reads.

    transformers frames a text by the class that is named there.
    """
    form = self._settings
    config = {
      'tokenizer_class': form.get('tokenizer_class') or self._guess_class(),
      'src_lang': form['source'],
      'tgt_lang': form['target'],
      'clean_up_tokenization_spaces': form['clean_up'],
      **{key: self._tokens[i] for key, i in form['special'].items()},
      **self._backend.export_settings(),
    }
    if form['input_format'] == 'nllb_legacy':
      config['legacy_behaviour'] = True
    text = json.dumps(config, indent=1, ensure_ascii=False)
    return {**self._files, 'tokenizer_config.json': text.encode()}

  def _guess_class(self) -> str:
    """Returns the class of a tokenizer that was kept without its name."""
    family = self._settings['input_format'].removesuffix('_legacy')
    plain = 'pegasus' if self._bytes is None else 'blenderbot'
    return tokenizer_folder.CLASSES.get(family, tokenizer_folder.CLASSES[plain])

  @property
  def least_rows(self) -> int:
    """How many rows the embedding of a model has at least.

    Blenderbot's has none for `<mask>`, which stands behind all others.
    """
    text = np.flatnonzero(~self._silent).max(initial=0)
    used = self.pad_id, self.eos_id, self.unk_id, *self.languages.values()
    return 1 + max(int(text), self.bos_id or 0, *used)

  # --- Encoding

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without a frame.

    Special tokens in a text are ids where transformers takes them for such.

    Raises:
      ValueError: it is no text that UTF-8 can hold.
    """
    return self._backend.encode(as_text(text))

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of each text, int32 [n], as rows are made of them.

    A special token that is spelled in a text is text there, unlike in `encode`:
    no text to train on may end a document or begin the next.
    """
    return self._backend.encode_plain([as_text(text) for text in texts])

  def inside(self, text: str) -> list[int]:
    """Returns the ids of a text where no space is in front of it."""
    for anchor in ANCHORS:
      mark, whole = self.encode(anchor), self.encode(anchor + as_text(text))
      if self.unk_id not in mark and whole[: len(mark)] == mark:
        return whole[len(mark) :]
    return []

  def normalize(self, text: str) -> str:
    """Returns a text as it is before it is cut into tokens, all spaces kept."""
    return self._backend.normalize(as_text(text))

  # --- Decoding

  @functools.cached_property
  def _bytes(self) -> list[bytes] | None:
    """[V] bytes of the tokens of byte-level BPE; None for other tokenizers."""
    if self._backend.decoding != 'bytes':
      return None
    letters = _byte_letters()

    def spell(token: str | None) -> bytes:
      token = token or ''
      if letters.keys() >= {*token}:
        return bytes(letters[x] for x in token)
      return token.encode()

    return [spell(token) for token in self._tokens]

  def is_byte(self, i: int) -> bool:
    """Tells whether an id stands for a part of a character."""
    (i,) = check_ids('id', [i], self.size)
    if self._bytes is None or self._silent[i]:
      return False
    return '\ufffd' in self._bytes[i].decode(errors='replace')

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids; special tokens leave no trace.

    Raises ValueError where one is no id of the vocabulary.
    """
    return ''.join(self.surfaces(ids))

  def surfaces(self, ids: Sequence[int]) -> list[str]:
    """Returns [L] texts of [L] ids; joined, they are `decode(ids)`."""
    ids = check_ids('ids', ids, self.size)
    texts = [''] * len(ids)
    plain = [at for at, i in enumerate(ids) if not self._silent[i]]
    if not plain:
      return texts
    if self._bytes is not None:
      decoder = codecs.getincrementaldecoder('utf-8')('replace')
      for at in plain:
        texts[at] = decoder.decode(self._bytes[ids[at]])
      texts[plain[-1]] += decoder.decode(b'', final=True)
      return texts
    for at in plain:
      texts[at] = self._tokens[ids[at]].replace(SPACE, ' ')
    if self._backend.decoding == 'strip':
      _strip(texts, plain)
    elif self._backend.decoding == 'metaspace':
      texts[plain[0]] = self._tokens[ids[plain[0]]].replace(SPACE, '')
    return _clean_up(texts) if self._settings['clean_up'] else texts

  @property
  def revised(self) -> tuple[str, ...]:
    """Texts that `decode` replaces once they are whole."""
    if not self._settings['clean_up']:
      return ()
    return tuple(before for before, _ in CLEAN_UPS)

  def spelling(self) -> list[str]:
    """Returns [V] texts that ids add to a running text.

    A byte of a longer character is a surrogate escape (PEP 383).
    """
    if self._bytes is not None:
      texts = [x.decode('utf-8', 'surrogateescape') for x in self._bytes]
    else:
      texts = [(token or '').replace(SPACE, ' ') for token in self._tokens]
    return ['' if self._silent[i] else x for i, x in enumerate(texts)]

  def openings(self) -> list[str | None]:
    """Returns [V] texts of ids that begin a text; None: it has not begun yet.

    Spaces that tokens begin with are dropped there, but by byte-level BPE.
    """
    texts = []
    for i, text in enumerate(self.spelling()):
      if self._backend.decoding == 'metaspace':
        text = (self._tokens[i] or '').replace(SPACE, '')
      elif self._backend.decoding == 'strip':
        text = text.lstrip() or None
      texts.append(None if self._silent[i] else text)
    return texts

  @functools.cached_property
  def _characters(self) -> frozenset:
    texts = self._bytes or self.spelling()
    return frozenset().union(
      *(text for i, text in enumerate(texts) if not self._silent[i])
    )

  def can_spell(self, text: str) -> bool:
    """Tells whether tokens can spell a text, as it is."""
    text = as_text(text)
    return self._characters.issuperset(text.encode() if self._bytes else text)

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """Returns the tokens of ids, special ones included."""
    return [self._tokens[i] or '' for i in check_ids('ids', ids, self.size)]


# --- The kept form


def _read_kept(path: str) -> dict[str, bytes]:
  """Returns the files of a tokenizer that was kept beside a model."""
  other = TOKENIZER_FILE, SENTENCEPIECE_FILE, VOCAB_FILE
  names = [name for name in other if storage.exists(os.path.join(path, name))]
  read = lambda name: tokenizer_folder.read_tokenizer_file(
    os.path.join(path, name)
  )
  return {name: read(name) for name in (*names, FORMAT_FILE)}


def _hash_files(files: Mapping[str, bytes]) -> str:
  """Returns one SHA-256 of named files, in hex."""
  hashes = {x: hashlib.sha256(text).hexdigest() for x, text in files.items()}
  return fileio.hash_json(hashes)


def _parse_format(files: Mapping[str, bytes], path: str) -> dict:
  """Returns what format.json holds, checked."""
  where = os.path.join(path, FORMAT_FILE)
  settings = tokenizer_folder.parse_settings(files[FORMAT_FILE], where)
  fileio.check_json(settings, FORMAT_FORM, where)
  if settings['input_format'] not in FORMATS:
    raise ValueError(
      f'{where}: input_format = {settings["input_format"]!r}: expected one of '
      f'{", ".join(FORMATS)}'
    )
  return settings


# --- Texts of tokens


@functools.cache
def _byte_letters() -> dict[str, int]:
  """Returns the letters that stand for bytes: printable ones, or U+0100 on.

  GPT-2's table (Radford et al. 2019), which all such tokenizers use.
  """
  seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in seen]
  letters = {chr(byte): byte for byte in seen}
  return letters | {chr(256 + n): byte for n, byte in enumerate(others)}


def _strip(texts: list[str], plain: Sequence[int]) -> None:
  """Drops white space at both ends of a text in parts."""
  for at in plain:
    texts[at] = texts[at].lstrip()
    if texts[at]:
      break
  for at in reversed(plain):
    texts[at] = texts[at].rstrip()
    if texts[at]:
      break


def _clean_up(texts: Sequence[str]) -> list[str]:
  """Returns parts of a text without the spaces in front of punctuation."""
  text = ''.join(texts)
  owners = [at for at, part in enumerate(texts) for _ in part]
  for before, after in CLEAN_UPS:
    shift = before.index(after)  # letters that go in front
    start = 0
    while (start := text.find(before, start)) >= 0:
      end = start + len(before)
      owners[start:end] = owners[start + shift : start + shift + len(after)]
      text = text[:start] + after + text[end:]
      start += len(after)
  cleaned = [''] * len(texts)
  for at, letter in zip(owners, text):
    cleaned[at] += letter
  return cleaned
