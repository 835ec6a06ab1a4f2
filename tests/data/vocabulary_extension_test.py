"""Markers and languages added to vocabularies of all kinds."""

import os

import pytest

from atm.data import vocabulary, vocabulary_extension
from atm.data.vocabulary_extension import extend_files, list_new_tokens

PUBLIC = os.path.join(os.path.dirname(__file__), '../golden/public')
TEXT = 'All human beings are born free. Alle Menschen sind frei geboren.'


def extend(words, folder, markers=True, languages=None):
  files = extend_files(words, markers, languages)
  return vocabulary.store_files(files, str(folder))


@pytest.fixture(scope='module')
def bare(words, tmp_path_factory):
  """A SentencePiece vocabulary without [MASK], [CLM] and [DOC]."""
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto.FromString(words.model)
  markers = vocabulary.SPECIAL_TOKENS[4:]
  kept = [p for p in model.pieces if p.piece not in markers]
  kept = [type(p).FromString(p.SerializeToString()) for p in kept]
  del model.pieces[:]
  model.pieces.extend(kept)
  folder = str(tmp_path_factory.mktemp('bare'))
  return vocabulary.write_vocabulary(model.SerializeToString(), folder)


def test_a_vocabulary_with_all_of_it_stays(words):
  assert list_new_tokens(words, True) == []
  assert extend_files(words, True) == words.files


def test_markers_of_a_sentencepiece_model(bare, tmp_path):
  made = extend(bare, tmp_path)
  markers = ['[MASK]', '[CLM]', '[DOC]']
  assert list_new_tokens(bare, True) == markers
  assert list_new_tokens(bare, False) == []
  n = bare.size
  assert made.special_ids() == {
    **bare.special_ids(), **{x: n + i for i, x in enumerate(markers)}
  }  # fmt: skip
  text = f'{TEXT} [CLM]'
  assert made.encode(text) == bare.encode(text)
  assert made.decode([*range(n + 3)]) == bare.decode([*range(n)])


@pytest.mark.parametrize(
  'name, languages, new',
  [
    ('mbart25', {'yo_NG': 'en_XX'}, ['[CLM]', '[DOC]', 'yo_NG']),
    ('mbart50', {'yo_NG': 'English'}, ['[CLM]', '[DOC]', 'yo_NG']),
    ('m2m_100', {'nya': 'zu'}, ['[MASK]', '[CLM]', '[DOC]', 'nya']),
    ('nllb', {'zzz_Latn': 'eng_Latn'}, ['[CLM]', '[DOC]', 'zzz_Latn']),
    ('pegasus', None, ['[CLM]', '[DOC]']),
    ('blenderbot', None, ['[CLM]', '[DOC]']),
  ],
)
def test_tokens_of_public_tokenizers(name, languages, new, tmp_path):
  words = vocabulary.open_vocabulary(f'{PUBLIC}/{name}')
  made = extend(words, tmp_path, languages=languages)
  assert list_new_tokens(words, True, languages) == new
  at = {token: words.size + i for i, token in enumerate(new)}
  assert made.size == words.size + len(new)
  special, codes = made.special_ids(), made.languages
  assert at.items() <= {**special, **codes}.items()
  assert made.clm_id == at['[CLM]']
  assert words.special_ids().items() <= special.items()
  assert words.languages.items() <= codes.items()
  # Old ids mean what they meant; new ones stand for no text.
  assert made.encode(TEXT) == words.encode(TEXT)
  assert made.pieces(range(words.size)) == words.pieces(range(words.size))
  assert made.decode([*range(made.size)]) == words.decode([*range(words.size)])
  assert all(made.is_special(i) for i in at.values())
  form = made.input_format
  assert (form.name, form.source, form.target) == (
    words.input_format.name, None, None,
  )  # fmt: skip
  # Text that names a marker is text where rows are made of it.
  named, row = made.encode_batch([f'a [CLM] b {" ".join(codes)}', TEXT])
  assert not set(named.tolist()) & set(at.values())
  assert row.dtype == 'int32' and row.tolist() == words.encode(TEXT)
  # Again, nothing is new, and the bytes are the same anywhere.
  assert extend_files(made, True, languages) == made.files
  again = extend(words, tmp_path / 'again', languages=languages)
  assert again.sha256 == made.sha256


@pytest.mark.parametrize(
  'name, languages, message',
  [
    ('nllb', {'yo': 'eng_Latn'}, "'yo' is not written as .* as 'yor_Latn'"),
    ('nllb', {'zzz_Latn': 'Klingon'}, r"NEW_LANGUAGES\['zzz_Latn'\] = 'Klin"),
    ('pegasus', {'yo': 'en'}, 'this model reads no language codes'),
    ('nllb', {}, 'NEW_LANGUAGES = {}: expected new codes and'),
    ('nllb', ['yo'], r"NEW_LANGUAGES = \['yo'\]: expected new codes"),
    ('nllb', {'yor_Latn': 3}, 'NEW_LANGUAGES.* = 3: expected a text'),
  ],
)
def test_languages_that_cannot_be_added(name, languages, message):
  words = vocabulary.open_vocabulary(f'{PUBLIC}/{name}')
  with pytest.raises(ValueError, match=message):
    checked = vocabulary_extension.check_new_languages(languages)
    list_new_tokens(words, False, checked)
