"""A vocabulary that is named late, and another one later."""

import pytest

from atm_tasks.pretraining.late_vocabulary import LateVocabulary


def test_a_vocabulary_is_the_one_named_last(words, byte_words):
  late = LateVocabulary()
  for _ in range(2):
    with pytest.raises(ValueError, match='no vocabulary is named yet'):
      late.words  # noqa: B018
  late.use(words.path)
  assert late.words.sha256 == words.sha256
  late.use(byte_words.path)
  assert late.words.sha256 == byte_words.sha256
