"""Token ids as text, for models without a tokenizer."""

import json

import pytest

from atm.data import vocabulary
from atm.data.id_vocabulary import IDS_FILE, IdVocabulary


def write(folder, **facts):
  """Writes token_ids.json; returns the folder."""
  folder.mkdir(exist_ok=True)
  content = {'size': 40, 'pad_id': 0, 'eos_id': 2, **facts}
  (folder / IDS_FILE).write_text(json.dumps(content))
  return folder


def test_texts_are_ids(tmp_path):
  """Faults: special ids in texts, texts that are not their surfaces joined."""
  words = vocabulary.open_vocabulary(write(tmp_path / 'a'))
  assert isinstance(words, IdVocabulary)
  assert words.encode('12 7  9') == [12, 7, 9] == words.encode_any([12, 7, 9])
  assert words.decode([0, 12, 7, 2]) == '12 7'
  assert ''.join(words.surfaces([0, 12, 7, 2])) == '12 7'
  assert words.decode_parts([0, 12], [7, 2]) == ('12', ' 7')
  assert words.input_format.frame([12, 7]) == [12, 7, 2]
  assert words.special_ids() == {'[PAD]': 0, '</s>': 2}
  spelt = words.spelling()
  assert spelt[12] == ' 12' and spelt[2] == '' and len(spelt) == 40
  assert words.openings()[11:13] == ['11', '12'] and not words.is_byte(12)
  copy = vocabulary.copy_vocabulary(words, str(tmp_path / 'copy'))
  assert copy.sha256 == words.sha256
  assert vocabulary.has_vocabulary(str(tmp_path / 'copy'))
  with pytest.raises(ValueError, match='is another vocabulary'):
    other = IdVocabulary(write(tmp_path / 'b', size=41))
    vocabulary.copy_vocabulary(other, str(tmp_path / 'copy'))


def test_what_is_no_id_is_refused(tmp_path):
  """Fault: a text of words that trains on something."""
  words = IdVocabulary(write(tmp_path / 'a'))
  with pytest.raises(ValueError, match='expected token ids, such as "12 7 9"'):
    words.encode('Good morning')
  for given in '12 40', '9' * 30:
    with pytest.raises(ValueError, match='expected 0 to 39'):
      words.encode(given)
  with pytest.raises(ValueError, match='expected 0 to 39'):
    words.encode_any([12, 40])
  with pytest.raises(ValueError, match='has the id 40'):
    IdVocabulary(write(tmp_path / 'b', eos_id=40))
  with pytest.raises(ValueError, match='size'):
    IdVocabulary(write(tmp_path / 'c', size='many'))
