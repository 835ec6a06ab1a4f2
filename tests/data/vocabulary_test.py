import json
import os

import pytest

from atm.data import vocabulary, vocabulary_training
from atm.data.vocabulary import Vocabulary


def test_special_pieces_and_reserved_tags(words, tmp_path):
  assert words.pieces(range(7)) == list(vocabulary.SPECIAL_TOKENS)
  assert words.pad_id == 0 and words.clm_id == 5 and words.size == 2048
  tagged = vocabulary_training.train_sentencepiece(
    ['some text about nothing much'] * 20, str(tmp_path), 26, tags=3
  )
  assert tagged.pieces(range(7, 10)) == ['[TAG_0]', '[TAG_1]', '[TAG_2]']


def test_text_never_encodes_to_a_marker(words):
  ids = words.encode('say [CLM] or </s> or [DOC] or <s>')
  assert not set(ids) & {words.clm_id, words.eos_id, words.doc_id, words.bos_id}


@pytest.mark.parametrize(
  'text',
  [
    'All human beings are born free',
    'सभी मनुष्यों को गौरव और अधिकारों',
    'すべての人間は',
    'يولد جميع الناس أحرارا',
  ],
)
def test_round_trip_in_many_scripts(words, text):
  assert words.decode(words.encode(text)) == text


def test_decoding_leaves_special_pieces_out(words):
  ids = [words.bos_id, words.clm_id, *words.encode('free'), words.eos_id, 0]
  assert words.decode(ids) == 'free'


@pytest.mark.parametrize('kind', ['words', 'byte_words'])
def test_two_parts_of_a_text_are_its_text(request, kind, rng):
  """Faults seen: a space lost or doubled between them; half a character."""
  words = request.getfixturevalue(kind)
  for _ in range(300):
    ids = rng.integers(0, words.size, rng.integers(0, 9)).tolist()
    at = int(rng.integers(0, len(ids) + 1))
    first, second = words.decode_parts(ids[:at], ids[at:])
    assert first + second == words.decode(ids)
  one = words.encode('a')
  assert words.decode_parts([], one) == ('', 'a')
  assert words.decode_parts(one, one) == ('a', ' a')
  assert words.decode_parts([words.clm_id], one) == ('', 'a')


def test_ids_of_a_padded_embedding_leave_no_trace(words):
  """Fault seen: a model with more ids than pieces ended in an error."""
  ids = words.encode('free')
  assert words.decode_any([words.size, *ids, words.size + 9]) == 'free'
  assert words.decode_parts([words.size], ids) == ('', 'free')


def test_a_character_of_several_pieces_is_in_one_part(byte_words):
  ids = byte_words.encode('a𝄞')[-4:]
  assert byte_words.decode_parts(ids[:2], ids[2:])[1] == '𝄞'


@pytest.mark.parametrize('kind', ['words', 'byte_words', 'xlmr_words'])
def test_spelling_and_openings_are_what_decoding_writes(request, kind, rng):
  """Faults seen: `<unk>` for what is shown as ' ⁇ '; a special piece, or a
  space, that begins a text."""
  words = request.getfixturevalue(kind)
  spelt, openings = words.spelling(), words.openings()
  assert len(spelt) == len(openings) == words.size
  encode = lambda text: (text or '').encode('utf-8', 'surrogateescape')
  for _ in range(600):
    ids = rng.integers(0, words.size, rng.integers(1, 6)).tolist()
    if rng.random() < 0.5:
      ids[0] = words.encode('_ _')[-2]  # a space, where it is a piece
    text, begun = b'', False
    for i in ids:
      text += encode(spelt[i] if begun else openings[i])
      begun = begun or openings[i] is not None
    if (whole := text.decode('utf-8', 'replace')).count('\ufffd') == 0:
      assert whole == words.decode(ids)


def test_a_byte_piece_is_spelt_as_its_byte(byte_words):
  spelt = byte_words.spelling()
  text = ''.join(spelt[i] for i in byte_words.encode('𝄞\n'))
  assert text.encode('utf-8', 'surrogateescape') == ' 𝄞 '.encode()[:-1]
  assert (
    spelt[byte_words.pieces(range(byte_words.size)).index('<0x0A>')] == '\n'
  )


def test_texts_are_normalized_and_their_spaces_kept(words):
  assert words.normalize(' …；  ﬁ\u3000') == ' ...;  fi '
  assert words.normalize('') == '' and words.normalize('\n') == ' '


def test_which_texts_pieces_can_spell(words, byte_words):
  """Fault seen: a text of bytes alone said not to be."""
  assert words.can_spell('Everyone; すべて') and words.can_spell('')
  assert not words.can_spell('\n') and not words.can_spell('a漢')
  assert byte_words.can_spell('\n漢')


@pytest.mark.parametrize('ids', [[-1], [10**6], [5.5], ['5'], b'5', 5, [True]])
def test_what_are_no_ids_is_refused(words, ids):
  """Faults seen: -1 taken for the last piece, bytes for ids, IndexError."""
  for read in (words.decode, words.pieces, words.surfaces):
    with pytest.raises(ValueError, match='ids .*expected'):
      read(ids)
  if isinstance(ids, list):
    with pytest.raises(ValueError, match='id .*expected'):
      words.is_special(ids[0])


@pytest.mark.parametrize('text', [None, 5, b'x', ['x'], '\ud83d'])
def test_what_is_no_text_is_refused(words, text):
  for read in (words.encode, words.inside, words.normalize, words.can_spell):
    with pytest.raises(ValueError, match='text = '):
      read(text)


def test_errors_name_the_file(tmp_path):
  with pytest.raises(FileNotFoundError, match='no vocabulary at .*atm vocab'):
    Vocabulary(tmp_path / 'none')
  for path in (None, 5, '', b'x'):
    with pytest.raises(ValueError, match='vocabulary = '):
      Vocabulary(path)
  (tmp_path / 'bad.model').write_bytes(b'not a model')
  with pytest.raises(ValueError, match='bad.model.* is not a SentencePiece'):
    Vocabulary(tmp_path / 'bad.model')
  with pytest.raises(ValueError, match='SIZE = 100000: this text supports'):
    vocabulary_training.train_sentencepiece(
      ['a b c'] * 9, str(tmp_path), 100_000
    )


# --- XLM-R's tokenizer

GOLDEN = os.path.join(os.path.dirname(__file__), '../golden')


@pytest.fixture(scope='module')
def xlmr():
  with open(f'{GOLDEN}/xlmr_tokens.json', encoding='utf-8') as f:
    return json.load(f)


@pytest.fixture(scope='module')
def xlmr_words(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('xlmr'))
  return vocabulary.convert_xlmr(f'{GOLDEN}/xlmr_xl', folder)


def test_xlmr_special_ids(xlmr, xlmr_words):
  words = xlmr_words
  assert words.size == xlmr['size'] + 2
  assert words.pieces(range(11)) == xlmr['pieces_0_to_10']
  assert (words.bos_id, words.pad_id, words.eos_id, words.unk_id) == (
    xlmr['bos'], xlmr['pad'], xlmr['eos'], xlmr['unk'],
  )  # fmt: skip
  ids = words.special_ids()
  assert ids == {
    '[PAD]': 1, '<s>': 0, '</s>': 2, '<unk>': 3, '[MASK]': xlmr['mask'],
    '[CLM]': xlmr['size'], '[DOC]': xlmr['size'] + 1,
  }  # fmt: skip
  assert (words.clm_id, words.doc_id) == (ids['[CLM]'], ids['[DOC]'])


def test_xlmr_ids_are_those_of_hugging_face(xlmr, xlmr_words):
  """Fault seen: pieces in their first order, <pad> behind."""
  for text, ids, decoded in zip(xlmr['texts'], xlmr['ids'], xlmr['decoded']):
    assert [0, *xlmr_words.encode(text), 2] == ids, text
    if 3 not in ids:  # they decode an unknown as '<unk>', we as ' ⁇ '
      assert xlmr_words.decode(ids) == decoded.strip()
  assert xlmr_words.encode('') == []
  one, other = map(xlmr_words.encode, xlmr['pair'])
  assert [0, *one, 2, 2, *other, 2] == xlmr['pair_ids']


def test_xlmr_text_never_encodes_to_a_marker(xlmr_words):
  ids = xlmr_words.encode('say <mask> or <pad> or </s> or [CLM] or <s>')
  assert not set(ids) - {xlmr_words.unk_id} & set(
    xlmr_words.special_ids().values()
  )
  assert xlmr_words.decode([1, 0, 121, 122, 123, 2]) == ''


def test_xlmr_in_seqio(xlmr, xlmr_words):
  """Both of seqio's readers give the same ids."""
  from atm_tasks.pretraining.seqio_tasks import SeqioVocabulary

  late = SeqioVocabulary()
  late.use(xlmr_words.path)
  for text, ids in zip(xlmr['texts'], xlmr['ids']):
    assert list(late.encode(text)) == ids[1:-1]
    assert late.encode_tf(text).numpy().tolist() == ids[1:-1]
  sp = late.tokenizer
  assert (sp.bos_id(), late.pad_id, sp.eos_id(), sp.unk_id()) == (0, 1, 2, 3)


def test_xlmr_made_again_is_the_same(xlmr_words, tmp_path):
  file = f'{GOLDEN}/xlmr_xl/{vocabulary.XLMR_FILE}'
  again = vocabulary.convert_xlmr(file, str(tmp_path))
  assert again.sha256 == xlmr_words.sha256


def test_only_xlmrs_tokenizer_is_taken_for_it(xlmr_words, tmp_path):
  out = str(tmp_path / 'out')
  with pytest.raises(FileNotFoundError, match='expected sentencepiece.bpe'):
    vocabulary.convert_xlmr(tmp_path, out)
  with pytest.raises(ValueError, match='begin <s> <pad> </s>, expected <unk>'):
    vocabulary.convert_xlmr(xlmr_words.path, out)
  bad = tmp_path / 'bad.model'
  bad.write_bytes(b'not a model')
  with pytest.raises(ValueError, match='bad.model.* is not a SentencePiece'):
    vocabulary.convert_xlmr(bad, out)
  text = ['words with [CLM] and others'] * 20
  import sentencepiece

  sentencepiece.SentencePieceTrainer.Train(
    sentence_iterator=iter(text), model_prefix=str(tmp_path / 'clm'),
    vocab_size=18, user_defined_symbols=['[CLM]'], minloglevel=2,
  )  # fmt: skip
  with pytest.raises(ValueError, match=r'it has \[CLM\] already'):
    vocabulary.convert_xlmr(tmp_path / 'clm.model', out)
  assert not os.path.exists(out)


def test_another_vocabulary_is_not_written_over(words, tmp_path):
  """Fault seen: the one that models were trained with, replaced."""
  made = vocabulary.write_vocabulary(words.model, str(tmp_path / 'v'))
  other = words.model + b'\xa0\x1f\x01'  # a field that nobody reads
  with pytest.raises(ValueError, match='is another vocabulary, which models'):
    vocabulary.write_vocabulary(other, str(tmp_path / 'v'))
  again = vocabulary.write_vocabulary(words.model, str(tmp_path / 'v'))
  assert again.sha256 == made.sha256 == words.sha256
