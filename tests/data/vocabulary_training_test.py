"""A vocabulary is a function of its text."""

import json
import os

import pytest

from atm.data import vocabulary, vocabulary_training


def test_training_is_a_function_of_the_text(words, tmp_path):
  from atm.data import vocabulary_training

  again = vocabulary_training.train_vocabulary(
    'udhr', str(tmp_path), 2048, say=lambda text: None
  )
  assert again.sha256 == words.sha256
  with open(os.path.join(tmp_path, 'report.json')) as f:
    report = json.load(f)
  assert report['size'] == 2048 and len(report['languages']) == 12
  assert all(r['unknown_rate'] < 0.005 for r in report['languages'].values())


def test_byte_fallback_spells_unknown_characters(tmp_path):
  texts = ['plain words only, nothing else here'] * 20
  plain = vocabulary_training.train_sentencepiece(
    texts, str(tmp_path / 'a'), 26
  )
  bytes_ = vocabulary_training.train_sentencepiece(
    texts, str(tmp_path / 'b'), 282, byte_fallback=True
  )
  assert plain.unk_id in plain.encode('山')
  assert bytes_.decode(bytes_.encode('山')) == '山'


def test_forms_keep_the_share_exactly():
  texts = [f'Text {i}.' for i in range(100)]
  made = list(
    vocabulary_training.mix_forms(texts, lambda t: t.lower().strip('.'), 0.7)
  )
  assert len(made) == 100
  assert sum(t[0] == 't' for t in made) == 70


@pytest.mark.parametrize('error', [KeyboardInterrupt('a signal'), OSError(5)])
def test_an_error_of_the_text_is_raised_as_it_is(tmp_path, error):
  """Fault seen: a signal called a size that does not suit the text."""

  def texts():
    yield 'some text'
    raise error

  with pytest.raises(type(error)) as raised:
    vocabulary_training.train_sentencepiece(texts(), str(tmp_path / 'v'), 100)
  assert raised.value is error and not os.listdir(tmp_path)


def test_another_size_is_refused_before_it_is_trained(words, tmp_path):
  vocabulary.write_vocabulary(words.model, str(tmp_path))
  with pytest.raises(ValueError, match='another vocabulary, of 2,048 pieces'):
    vocabulary_training.train_vocabulary(
      'udhr', str(tmp_path), 2000, train=lambda *args: 1 / 0
    )
