"""What vocabularies of all kinds share: the special tokens, parts of texts."""

import contextlib
from collections.abc import Sequence

import numpy as np

from atm.data.token_ids import check_ids
from atm.messages import check_text

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = '[PAD]', '<s>', '</s>', '<unk>'
MASK_TOKEN, CLM_TOKEN, DOC_TOKEN = '[MASK]', '[CLM]', '[DOC]'
SPECIAL_TOKENS = (
  PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN, MASK_TOKEN, CLM_TOKEN, DOC_TOKEN,
)  # fmt: skip
FORMAT_FILE = 'format.json'  # beside a public model's tokenizer that is kept


class BaseVocabulary:
  """Methods of a vocabulary that has `_special`, `_silent` and `surfaces`."""

  size: int
  # Texts that `decode` replaces once they are whole.
  revised: tuple[str, ...] = ()
  files: dict[str, bytes]
  _silent: np.ndarray  # [V] bool: tokens that stand for no text

  def _special(self, token: str) -> int:
    """Returns the id of one of SPECIAL_TOKENS; raises ValueError without."""
    raise NotImplementedError

  def surfaces(self, ids: Sequence[int]) -> list[str]:
    """Returns [L] texts of [L] ids."""
    raise NotImplementedError

  def export_files(self) -> dict[str, bytes]:
    """Returns what a Hugging Face folder holds of it: name -> bytes."""
    return self.files

  @property
  def least_rows(self) -> int:
    """How many rows the embedding of a model has at least."""
    return self.size

  def special_ids(self) -> dict[str, int]:
    """Returns the ids of SPECIAL_TOKENS that there are, `<pad>` as `[PAD]`."""
    ids = {}
    for piece in SPECIAL_TOKENS:
      with contextlib.suppress(ValueError):
        ids[piece] = self._special(piece)
    return ids

  @property
  def clm_id(self) -> int:
    """Raises ValueError where the vocabulary has no `[CLM]`."""
    return self._special(CLM_TOKEN)

  @property
  def doc_id(self) -> int:
    """Raises ValueError where the vocabulary has no `[DOC]`."""
    return self._special(DOC_TOKEN)

  def is_special(self, i: int) -> bool:
    """Tells whether an id stands for no text."""
    return bool(self._silent[check_ids('id', [i], self.size)[0]])

  def encode_any(self, content: str | Sequence[int]) -> list[int]:
    """Returns the ids of a text, or ids as they are given.

    Raises ValueError where one is no id of the vocabulary.
    """
    if isinstance(content, str):
      return self.encode(content)
    return check_ids('ids', content, self.size)

  def decode_any(self, ids: Sequence[int]) -> str:
    """Returns the text of ids that a model wrote, see `decode_parts`."""
    return self.decode_parts((), ids)[1]

  def decode_parts(
    self, first: Sequence[int], second: Sequence[int]
  ) -> tuple[str, str]:
    """Returns the texts of two parts of a text; joined, they are its `decode`.

    A character of several byte pieces is where its last one is. Ids behind the
    last piece, which a padded embedding has, leave no trace.
    """
    first, second = ([i for i in x if i < self.size] for x in (first, second))
    surfaces = self.surfaces([*first, *second])
    return ''.join(surfaces[: len(first)]), ''.join(surfaces[len(first) :])


def as_text(text: str) -> str:
  """Returns what UTF-8 can hold; raises ValueError for anything else."""
  # NUL is unknown text as others are: data sets were tokenized with it.
  if not isinstance(text, str) or not text.isascii():
    check_text(
      'text', text.replace('\0', '') if isinstance(text, str) else text
    )
  return text
