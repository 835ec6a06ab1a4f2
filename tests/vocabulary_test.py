import json
import os

import pytest

from atm import vocabulary
from atm.vocabulary import Vocabulary


def test_special_pieces_and_reserved_tags(words, tmp_path):
  assert words.pieces(range(7)) == list(vocabulary.SPECIALS)
  assert words.pad_id == 0 and words.clm_id == 5 and words.size == 2048
  tagged = vocabulary.train(
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


def test_training_is_a_function_of_the_text(words, tmp_path):
  from atm import data

  again = data.vocab('udhr', str(tmp_path), 2048, say=lambda text: None)
  assert again.sha256 == words.sha256
  with open(os.path.join(tmp_path, 'report.json')) as f:
    report = json.load(f)
  assert report['size'] == 2048 and len(report['languages']) == 12
  assert all(r['unknown_rate'] < 0.005 for r in report['languages'].values())


def test_byte_fallback_spells_unknown_characters(tmp_path):
  texts = ['plain words only, nothing else here'] * 20
  plain = vocabulary.train(texts, str(tmp_path / 'a'), 26)
  bytes_ = vocabulary.train(texts, str(tmp_path / 'b'), 282, byte_fallback=True)
  assert plain.unk_id in plain.encode('山')
  assert bytes_.decode(bytes_.encode('山')) == '山'


def test_forms_keep_the_share_exactly():
  texts = [f'Text {i}.' for i in range(100)]
  made = list(vocabulary.forms(texts, lambda t: t.lower().strip('.'), 0.7))
  assert len(made) == 100
  assert sum(t[0] == 't' for t in made) == 70


def test_errors_name_the_file(tmp_path):
  with pytest.raises(FileNotFoundError, match='no vocabulary at .*atm vocab'):
    Vocabulary(tmp_path / 'none')
  (tmp_path / 'bad.model').write_bytes(b'not a model')
  with pytest.raises(ValueError, match='bad.model.* is not a SentencePiece'):
    Vocabulary(tmp_path / 'bad.model')
  with pytest.raises(ValueError, match='100000 pieces cannot be trained'):
    vocabulary.train(['a b c'] * 9, str(tmp_path), 100_000)
