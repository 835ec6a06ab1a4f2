"""The tasks' vocabulary as seqio wants one: readers, equality and copies."""

import copy
import os

import pytest
import tensorflow as tf

from atm_tasks.pretraining import seqio_tasks, tasks
from atm_tasks.pretraining.seqio_tasks import SeqioVocabulary

from goldens import HERE


def test_a_vocabulary_is_named_before_tokens_are_read():
  with pytest.raises(ValueError, match='no vocabulary is named yet'):
    SeqioVocabulary().encode('a')


@pytest.mark.parametrize('name', ['nllb', 'm2m_100'])
def test_seqio_reads_public_tokenizers(name):
  """Its two readers give the ids that rows are made of."""
  late = SeqioVocabulary()
  late.use(os.path.join(HERE, 'public', name))
  text = 'All human beings are born'
  ids = late.words.encode(text)
  assert list(late.encode(text)) == ids == late.encode_tf(text).numpy().tolist()
  decode = lambda ids: late.decode_tf(tf.constant(ids)).numpy()
  assert late.decode(ids) == decode(ids).decode() == text
  assert decode([ids, ids]).tolist() == [text.encode()] * 2
  special = late.pad_id, late.bos_id, late.eos_id, late.unk_id
  assert special == (1, 0, 2, 3) and late.vocab_size == late.words.size


def test_a_copy_is_equal_and_names_its_own_file(words, byte_words):
  """gin copies a vocabulary, and seqio compares those of features."""
  late = SeqioVocabulary()
  late.use(words.path)
  assert late.tokenizer.get_piece_size() == words.size
  same = copy.deepcopy(late)
  assert same == late and same.words.sha256 == words.sha256
  late.use(byte_words.path)
  assert late.tokenizer.get_piece_size() == byte_words.size
  assert same != late and same.words.sha256 == words.sha256


def test_tasks_of_others_name_the_vocabulary():
  assert tasks.VOCABULARY is seqio_tasks.VOCABULARY
  assert tasks.VOCABULARY.words is tasks.WORDS.words
  with pytest.raises(AttributeError, match="no attribute 'VOCABULARYS'"):
    tasks.VOCABULARYS  # noqa: B018
