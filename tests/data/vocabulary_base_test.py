"""Texts of parts and of ids beyond the vocabulary, whatever its kind."""

import numpy as np
import pytest

from atm.data.vocabulary_base import BaseVocabulary, as_text


class Letters(BaseVocabulary):
  """Ids are letters, 0 the only special token."""

  size = 4
  _silent = np.array([True, False, False, False])

  def _special(self, token: str) -> int:
    if token != '[PAD]':
      raise ValueError(f'no {token}')
    return 0

  def surfaces(self, ids):
    return ['' if i == 0 else 'abc'[i - 1] for i in ids]


def test_parts_and_special_tokens():
  words = Letters()
  assert words.decode_parts([1, 0, 9], [2, 3]) == ('a', 'bc')
  assert words.decode_any([3, 7, 0]) == 'c'
  assert words.special_ids() == {'[PAD]': 0}
  assert words.is_special(0) and not words.is_special(1)
  for name in ('clm_id', 'doc_id'):
    with pytest.raises(ValueError, match='no'):
      getattr(words, name)
  assert words.revised == ()


def test_texts():
  assert as_text('a\0\u4e01') == 'a\0\u4e01'
  for text in (None, 5, b'a', '\ud83d'):
    with pytest.raises(ValueError, match='text'):
      as_text(text)
