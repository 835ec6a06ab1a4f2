"""What encodes: splitting on added tokens, decoders that are known."""

import json

import pytest

from atm.data.text_encoders import JsonEncoder, PieceEncoder
from atm.data.tokenizer_folder import read_folder
from atm.data.tokenizer_json import BYTE_LEVEL
from tests.public_folders import copy_folder


@pytest.fixture(scope='module')
def m2m(tmp_path_factory):
  """Returns M2M-100's files and what format.json holds."""
  files = read_folder(copy_folder('m2m_100', tmp_path_factory.mktemp('m2m')))
  return files, json.loads(files['format.json'])


def test_the_longest_added_token_is_split_off_first(m2m):
  files, form = m2m
  added = [
    {'content': '<a>', 'id': 600},
    {'content': '<a>b', 'id': 601, 'lstrip': True, 'rstrip': True},
  ]
  encoder = PieceEncoder(files, {**form, 'added': added}, 'folder')
  split = lambda text: [i for i in encoder.encode(text) if i >= 600]
  assert split('x<a> <a>b<a>') == [600, 601, 600]
  assert encoder.encode('e  <a>b  n') == [
    *encoder.encode('e'), 601, *encoder.encode('n'),
  ]  # fmt: skip
  assert len(encoder.tokens) == 602 and encoder.tokens[590] is None


def test_rows_are_made_of_the_ids_of_texts(m2m):
  """Also where SentencePiece knows no piece, and vocab.json does."""
  files, form = m2m
  vocab = {**json.loads(files['vocab.json']), '\u2603': 700}
  files = {**files, 'vocab.json': json.dumps(vocab).encode()}
  encoder = PieceEncoder(files, form, 'folder')
  texts = ['All human beings', '', 'born \u2603 free', ' \u3048 ']
  rows = encoder.encode_plain(texts)
  assert [row.tolist() for row in rows] == [*map(encoder.encode, texts)]
  assert 700 in rows[2] and {row.dtype.name for row in rows} == {'int32'}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'sentencepiece.bpe.model': b'x'}, 'is not a SentencePiece model'),
    ({'vocab.json': b'{"a": "b"}'}, 'expected a whole number'),
    ({'vocab.json': b'{"a": -1}'}, 'expected ids from 0'),
    ({'vocab.json': b''}, 'no JSON'),
  ],
)
def test_damaged_pieces_are_refused(change, message, m2m):
  files, form = m2m
  with pytest.raises(ValueError, match=message):
    PieceEncoder({**files, **change}, form, 'folder')


@pytest.mark.parametrize(
  'decoder, decoding',
  [
    (BYTE_LEVEL, 'bytes'),
    ({'prepend_scheme': 'always'}, 'metaspace'),
    ({'prepend_scheme': 'first'}, 'metaspace'),
    ({'prepend_scheme': 'never'}, 'spaces'),
    ({'type': 'BPEDecoder', 'suffix': '_'}, None),
    (None, None),
  ],
)
def test_decoders(decoder, decoding, tmp_path):
  """Each decodes as `tokenizers` does with it; others are refused."""
  files = read_folder(copy_folder('nllb', tmp_path))
  data = json.loads(files['tokenizer.json'])
  if decoder and 'type' not in decoder:
    decoder = {**data['decoder'], **decoder}
  data['decoder'] = decoder
  files = {**files, 'tokenizer.json': json.dumps(data).encode()}
  if decoding is None:
    with pytest.raises(ValueError, match='expected ByteLevel'):
      JsonEncoder(files, {}, 'folder')
  else:
    encoder = JsonEncoder(files, {}, 'folder')
    assert encoder.decoding == decoding
    assert encoder.encode('Alle') and encoder.normalize('\ufb01') == 'fi'
