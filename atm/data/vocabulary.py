"""Vocabularies: SentencePiece's here, with the special pieces of the paper.

`open_vocabulary` opens those of public models, too, see `hf_tokenizer`.

Special pieces are SentencePiece *control* symbols: no text encodes to them, so
a user's "[CLM]" cannot become a marker; code inserts their ids. `[PAD] <s>
</s> <unk> [MASK]` are those of the released tokenizer, `[CLM]` and `[DOC]`
those of the paper (section 3); `convert_xlmr` adds these to XLM-R's tokenizer.
No seqio and no TensorFlow here.
"""

import functools
import hashlib
import os
import types
from collections.abc import Mapping, Sequence

import numpy as np
import sentencepiece

from atm import fileio, storage
from atm.data import hf_tokenizer, tokenizer_folder
from atm.data.id_vocabulary import IDS_FILE, IdVocabulary
from atm.data.input_format import InputFormat
from atm.data.token_ids import check_ids
from atm.data.vocabulary_base import (  # noqa: F401, others have them here
  BOS_TOKEN,
  CLM_TOKEN,
  DOC_TOKEN,
  EOS_TOKEN,
  FORMAT_FILE,
  MASK_TOKEN,
  PAD_TOKEN,
  SPECIAL_TOKENS,
  UNK_TOKEN,
  BaseVocabulary,
  as_text,
)
from atm.messages import check_path

# XLM-R's names of what is otherwise the same.
OTHER_NAMES = {PAD_TOKEN: '<pad>', MASK_TOKEN: '<mask>'}
XLMR_FILE = 'sentencepiece.bpe.model'
MODEL_FILE = 'sentencepiece.model'


class Vocabulary(BaseVocabulary):
  """A SentencePiece model and the ids of its special pieces.

  Attributes:
    path: the model file.
    size: number of pieces, V.
    pad_id, bos_id, eos_id, unk_id, clm_id, doc_id: ids of special pieces.
    sha256: hash of the model file, in hex.
    languages: ids of language codes, of which there are none.
  """

  languages: Mapping[str, int] = types.MappingProxyType({})

  def __init__(self, path: str | os.PathLike):
    """Loads a model file, or `sentencepiece.model` in a folder, local or not.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a SentencePiece model, or lacks a special piece.
    """
    path = check_path('vocabulary', path)
    path = os.path.join(path, MODEL_FILE) if storage.is_folder(path) else path
    self.path = path
    if not storage.exists(path):
      raise FileNotFoundError(
        f'no vocabulary at {path!r}: expected a SentencePiece model or a '
        f'folder with {MODEL_FILE}; `atm vocab` trains one.'
      )
    fileio.check_regular(path)
    self.model = storage.read_bytes(path)
    self.sha256 = hashlib.sha256(self.model).hexdigest()
    self._sp = sentencepiece.SentencePieceProcessor()
    try:
      self._sp.LoadFromSerializedProto(self.model)
    except RuntimeError as e:
      raise ValueError(f'{path!r} is not a SentencePiece model') from e
    self.size = self._sp.GetPieceSize()
    self.pad_id, self.bos_id, self.eos_id, self.unk_id = map(
      self._special, (PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN)
    )

  @property
  def files(self) -> dict[str, bytes]:
    """Name -> contents of what a vocabulary folder holds of this one."""
    return {MODEL_FILE: self.model}

  def _special(self, piece: str) -> int:
    for name in (piece, OTHER_NAMES.get(piece, piece)):
      index = self._sp.PieceToId(name)
      if self._sp.IdToPiece(index) == name:
        return index
    raise ValueError(f'vocabulary {self.path!r} has no piece {piece!r}')

  @functools.cached_property
  def input_format(self) -> InputFormat:
    """The frame of inputs and targets."""
    clm_id = self.special_ids().get(CLM_TOKEN)
    return InputFormat('alexatm', self.eos_id, self.bos_id, clm_id)

  @functools.cached_property
  def _silent(self) -> np.ndarray:
    """[V] bool: pieces that stand for no text."""
    silent = np.array([self._sp.IsControl(i) for i in range(self.size)])
    special = self.special_ids()
    del special[UNK_TOKEN]  # which stands for unknown text
    silent[list(special.values())] = True
    return silent

  def is_byte(self, i: int) -> bool:
    """Tells whether an id stands for one byte of a character."""
    return self._sp.IsByte(check_ids('id', [i], self.size)[0])

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without special pieces.

    Raises:
      ValueError: it is no text that UTF-8 can hold.
    """
    return self._sp.EncodeAsIds(as_text(text))

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of each text as `encode` does, int32 [n].

    One call for many texts is a tenth faster than one for each.
    """
    texts = [as_text(text) for text in texts]
    return self._sp.Encode(texts, out_type='numpy', num_threads=1)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids; special pieces leave no trace.

    Raises ValueError where one is no id of the vocabulary.
    """
    ids = check_ids('ids', ids, self.size)
    return self._sp.DecodeIds([i for i in ids if not self._silent[i]])

  def surfaces(self, ids: Sequence[int]) -> list[str]:
    """Returns [L] texts of [L] ids; joined, they are `decode(ids)`."""
    # A special piece has none. SentencePiece gives a character of several byte
    # pieces to the last of them.
    ids = check_ids('ids', ids, self.size)
    plain = [i for i in ids if not self._silent[i]]
    surfaces = iter(self._sp.DecodeIdsAsProto(plain).pieces)
    return ['' if self._silent[i] else next(surfaces).surface for i in ids]

  def inside(self, text: str) -> list[int]:
    """Returns the ids of a text where no space is in front of it."""
    mark = self._sp.EncodeAsIds('_')
    whole = self._sp.EncodeAsIds('_' + as_text(text))
    return whole[len(mark) :] if whole[: len(mark)] == mark else []

  def spelling(self) -> list[str]:
    """Returns [V] texts that ids add to a running text.

    A byte of a longer character is a surrogate escape (PEP 383).
    """
    texts = []
    for i, piece in enumerate(self.pieces(range(self.size))):
      if self._silent[i]:
        piece = ''
      elif self._sp.IsByte(i):  # such as <0x41>
        piece = bytes([int(piece[3:-1], 16)]).decode('utf-8', 'surrogateescape')
      elif i == self.unk_id:
        piece = self._sp.DecodeIds([i])
      texts.append(piece.replace('\u2581', ' '))
    return texts

  def openings(self) -> list[str | None]:
    """Returns [V] texts of ids that begin a text; None: it has not begun yet.

    Spaces that pieces begin with are dropped there.
    """
    texts = []
    for i, text in enumerate(self.spelling()):
      if text and not self._sp.IsByte(i):
        blank = text.isspace() and not self._sp.DecodeIds([i, i])
        text = None if blank else self._sp.DecodeIds([i])
      texts.append(None if self._silent[i] else text)
    return texts

  @functools.cached_property
  def _normalizer(self) -> sentencepiece.SentencePieceNormalizer:
    return sentencepiece.SentencePieceNormalizer(
      model_proto=self.model,
      add_dummy_prefix=False,
      escape_whitespaces=False,
      remove_extra_whitespaces=False,
    )

  def normalize(self, text: str) -> str:
    """Returns a text as it is before it is cut into pieces, all spaces kept."""
    return self._normalizer.Normalize(as_text(text))

  @functools.cached_property
  def _characters(self) -> frozenset[str]:
    return frozenset(''.join(self.spelling()))

  @functools.cached_property
  def _has_bytes(self) -> bool:
    return any(map(self._sp.IsByte, range(self.size)))

  def can_spell(self, text: str) -> bool:
    """Tells whether pieces can spell a text, as it is."""
    return self._has_bytes or self._characters.issuperset(as_text(text))

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """Returns the pieces of ids, special ones included."""
    return [self._sp.IdToPiece(i) for i in check_ids('ids', ids, self.size)]


def open_vocabulary(path: str | os.PathLike) -> BaseVocabulary:
  """Opens a vocabulary: SentencePiece's, or a public model's tokenizer.

  Args:
    path: a SentencePiece model, a folder with `sentencepiece.model`, a folder
      that `copy_vocabulary` wrote, that of a public model, or one with
      token_ids.json, see `id_vocabulary`.

  Raises:
    FileNotFoundError: there is none.
    ImportError: the tokenizer needs an extra; names it.
    ValueError: it is damaged, or of a kind that is not known.
  """
  path = check_path('vocabulary', path)
  folder, name = os.path.split(path.rstrip('/'))
  files = FORMAT_FILE, IDS_FILE, tokenizer_folder.TOKENIZER_FILE
  if name not in files:
    folder = path
  has = lambda name: storage.exists(os.path.join(folder, name))
  if storage.is_folder(folder) and not has(MODEL_FILE):
    if has(FORMAT_FILE) or tokenizer_folder.open_folder(folder):
      return hf_tokenizer.HFTokenizer(folder)
    if has(IDS_FILE):
      return IdVocabulary(folder)
  return Vocabulary(path)


def has_vocabulary(directory: str) -> bool:
  """Tells whether a folder holds a vocabulary that `copy_vocabulary` wrote."""
  names = MODEL_FILE, FORMAT_FILE, IDS_FILE
  return any(storage.exists(os.path.join(directory, name)) for name in names)


def copy_vocabulary(vocabulary, directory: str) -> BaseVocabulary:
  """Writes a vocabulary's files into a folder, see `store_files`."""
  return store_files(vocabulary.files, directory)


def store_files(files: Mapping[str, bytes], directory: str) -> BaseVocabulary:
  """Writes the files of a vocabulary into a folder; returns the one there.

  Raises ValueError if another is there: models may have been trained with it.
  """
  _write_once(files, directory)
  return open_vocabulary(directory)


def write_vocabulary(model: bytes, directory: str) -> Vocabulary:
  """Writes a SentencePiece model into a folder, whole or not at all.

  Raises ValueError if another is there: models may have been trained with it.
  """
  _write_once({MODEL_FILE: model}, directory)
  return Vocabulary(directory)


def _write_once(files: Mapping[str, bytes], directory: str) -> None:
  """Writes files, the last of which makes them a vocabulary, all or none."""
  storage.make_folder(directory)
  names = MODEL_FILE, FORMAT_FILE, IDS_FILE
  marks = [os.path.join(directory, name) for name in names]
  there = list(filter(storage.exists, marks))
  for name, content in files.items():
    path = os.path.join(directory, name)
    if not there:
      fileio.write_atomically(path, content)
    elif not storage.exists(path) or storage.read_bytes(path) != content:
      raise ValueError(
        f'{there[0]} is another vocabulary, which models may have been trained '
        'with: use another folder, or move it away'
      )


def convert_xlmr(path: str | os.PathLike, directory: str) -> Vocabulary:
  """Converts XLM-R's tokenizer, to ids as Hugging Face numbers them.

  XLM-R's file begins `<unk> <s> </s>`, and Hugging Face shifts its ids when it
  encodes. Here the pieces stand where those ids point: `<s> <pad> </s> <unk>`,
  all ordinary pieces in order, `<mask>`; then, ours, `[CLM] [DOC]`. Unlike
  there, a `<mask>` in a text is text.

  Args:
    path: `sentencepiece.bpe.model`, or a folder that holds it.
    directory: gets `sentencepiece.model`; written whole or not at all.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not a SentencePiece model, or not one of XLM-R's.
  """
  from google.protobuf.message import DecodeError
  from sentencepiece import sentencepiece_model_pb2

  path = os.fspath(path)
  path = os.path.join(path, XLMR_FILE) if storage.is_folder(path) else path
  if not storage.exists(path):
    raise FileNotFoundError(f'no tokenizer at {path!r}: expected {XLMR_FILE}')
  try:
    fileio.check_regular(path)
    serialized = storage.read_bytes(path)
    model = sentencepiece_model_pb2.ModelProto.FromString(serialized)
  except DecodeError as e:
    raise ValueError(f'{path!r} is not a SentencePiece model') from e
  names = [piece.piece for piece in model.pieces]
  if names[:3] != [UNK_TOKEN, BOS_TOKEN, EOS_TOKEN]:
    raise ValueError(
      f"{path!r} is not XLM-R's: its pieces begin {' '.join(names[:3])}, "
      f'expected {UNK_TOKEN} {BOS_TOKEN} {EOS_TOKEN}'
    )
  pad, mask = OTHER_NAMES[PAD_TOKEN], OTHER_NAMES[MASK_TOKEN]
  if added := {pad, mask, CLM_TOKEN, DOC_TOKEN}.intersection(names):
    raise ValueError(
      f"{path!r} is not XLM-R's: it has {', '.join(sorted(added))} already"
    )
  _reorder(model, pad, [mask, CLM_TOKEN, DOC_TOKEN])
  serialized = model.SerializeToString(deterministic=True)
  return write_vocabulary(serialized, directory)


def _reorder(model, pad: str, behind: Sequence[str]) -> None:
  """Turns `<unk> <s> </s> ...` to `<s> <pad> </s> <unk> ...` and controls."""
  Piece = type(model).SentencePiece
  control = lambda name: Piece(piece=name, score=0.0, type=Piece.CONTROL)
  unk, bos, eos, *rest = model.pieces
  pieces = [bos, control(pad), eos, unk, *rest, *map(control, behind)]
  pieces = [Piece.FromString(piece.SerializeToString()) for piece in pieces]
  del model.pieces[:]
  model.pieces.extend(pieces)
  # Libraries look special ids up by these names, some by these numbers.
  spec = model.trainer_spec
  spec.bos_id, spec.pad_id, spec.eos_id, spec.unk_id = range(4)
  spec.bos_piece, spec.pad_piece = BOS_TOKEN, pad
  spec.eos_piece, spec.unk_piece = EOS_TOKEN, UNK_TOKEN
  spec.control_symbols.extend(behind)
  spec.vocab_size = len(model.pieces)
