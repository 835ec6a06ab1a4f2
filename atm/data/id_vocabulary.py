"""A vocabulary for models without a tokenizer: its texts are token ids.

The text of ids 12, 7 and 9 is '12 7 9'. A folder with token_ids.json has one:

  {"size": 32000, "pad_id": 0, "eos_id": 1}
"""

import functools
import hashlib
import os
import types
from collections.abc import Mapping, Sequence

import numpy as np

from atm import fileio, storage
from atm.data.input_format import InputFormat
from atm.data.token_ids import check_ids
from atm.data.vocabulary_base import EOS_TOKEN, PAD_TOKEN, BaseVocabulary
from atm.messages import check_count, check_path, quote

IDS_FILE = 'token_ids.json'
_FORM = {'size': int, 'pad_id': int, 'eos_id': int}


class IdVocabulary(BaseVocabulary):
  """Token ids as text.

  Attributes:
    path: the file.
    size: number of ids, V.
    pad_id, eos_id: of padding and of the end, which stand for no text.
    bos_id, unk_id: None and -1: there are none.
    sha256: hash of the file, in hex.
    languages: ids of language codes, of which there are none.
  """

  languages: Mapping[str, int] = types.MappingProxyType({})
  bos_id, unk_id = None, -1

  def __init__(self, path: str | os.PathLike):
    """Reads a folder with token_ids.json.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or an id is not below its size.
    """
    self.path = os.path.join(check_path('vocabulary', path), IDS_FILE)
    content = fileio.read_json(self.path)
    fileio.check_json(content, _FORM, self.path)
    self.size = check_count(f'{self.path}: size', content['size'])
    ids = [content['pad_id'], content['eos_id']]
    self.pad_id, self.eos_id = check_ids(self.path, ids, self.size)
    self.files = {IDS_FILE: storage.read_bytes(self.path)}
    self.sha256 = hashlib.sha256(self.files[IDS_FILE]).hexdigest()

  def export_files(self) -> dict[str, bytes]:
    """Returns nothing: it is no tokenizer of a public model."""
    return {}

  def _special(self, token: str) -> int:
    known = {PAD_TOKEN: self.pad_id, EOS_TOKEN: self.eos_id}
    if token not in known:
      raise ValueError(f'vocabulary {self.path!r} has no piece {token!r}')
    return known[token]

  @functools.cached_property
  def input_format(self) -> InputFormat:
    """The frame of inputs and targets: `</s>` behind them."""
    return InputFormat('plain', self.eos_id)

  @functools.cached_property
  def _silent(self) -> np.ndarray:
    silent = np.zeros(self.size, bool)
    silent[[self.pad_id, self.eos_id]] = True
    return silent

  def is_byte(self, i: int) -> bool:
    """Tells whether an id stands for one byte of a character: none does."""
    check_ids('id', [i], self.size)
    return False

  def encode(self, text: str) -> list[int]:
    """Returns the ids that a text lists.

    Raises ValueError for any other text.
    """
    numbers = text.split() if isinstance(text, str) else [text]
    if not all(isinstance(x, str) and x.isdecimal() for x in numbers):
      raise ValueError(
        f'{quote(text, 60)}: expected token ids, such as "12 7 9": the model '
        'has no tokenizer, but token_ids.json'
      )
    return check_ids('text', [int(x[:12]) for x in numbers], self.size)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of each text as `encode` does, int32 [n]."""
    return [np.array(self.encode(text), np.int32) for text in texts]

  def inside(self, text: str) -> list[int]:
    """Returns the ids of a text behind others: the same."""
    return self.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids; special ones leave no trace."""
    return ''.join(self.surfaces(ids))

  def surfaces(self, ids: Sequence[int]) -> list[str]:
    """Returns [L] texts of [L] ids; joined, they are `decode(ids)`."""
    texts, begun = [], False
    for i in check_ids('ids', ids, self.size):
      silent = self._silent[i]
      texts.append('' if silent else f' {i}' if begun else str(i))
      begun |= not silent
    return texts

  def spelling(self) -> list[str]:
    """Returns [V] texts that ids add to a running text."""
    return ['' if x else f' {i}' for i, x in enumerate(self._silent)]

  def openings(self) -> list[str | None]:
    """Returns [V] texts of ids that begin a text; None of special ones."""
    return [None if x else str(i) for i, x in enumerate(self._silent)]

  def normalize(self, text: str) -> str:
    """Returns a text as it is."""
    return text

  def can_spell(self, text: str) -> bool:
    """Tells whether ids can spell a text."""
    return all(x.isdecimal() or x.isspace() for x in text)

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """Returns the names of ids: their numbers."""
    return [str(i) for i in check_ids('ids', ids, self.size)]
