"""tokenizer.json is set up by class, as transformers 5 does."""

import json

import pytest

from atm.data.added_tokens import AddedTokens
from atm.data.tokenizer_json import parse_tokenizer, rebuild_tokenizer

NAMED = {'unk_token': '<unk>'}
PIECES = [['<s>', 0], ['<pad>', 0], ['</s>', 0], ['<unk>', 0], ['\u2581a', -1]]
TOKENS = {token: i for i, (token, _) in enumerate(PIECES)}


def rebuild(name: str, vocab, settings=None, **model):
  data = {'model': {'vocab': vocab, **model}}
  tokens = AddedTokens([{'content': '<unk>', 'special': True}], NAMED)
  return rebuild_tokenizer(name, data, settings or {}, tokens, 'folder')


@pytest.mark.parametrize(
  'name, vocab',
  [
    ('MBartTokenizer', PIECES), ('MBart50Tokenizer', PIECES),
    ('PegasusTokenizer', PIECES), ('NllbTokenizer', TOKENS),
  ],
)  # fmt: skip
def test_spaces_by_class(name, vocab):
  """mBART-25 drops white space at the end; the others keep one space."""
  tokenizer = rebuild(name, vocab)
  ids = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
  assert ids('a')
  assert (ids('a') == ids('a ')) == (name == 'MBartTokenizer')
  collapses = ids('a  a') == ids('a a')
  assert collapses == (name != 'NllbTokenizer')  # which had no table
  assert (tokenizer.normalizer is None) == (
    name in ('MBartTokenizer', 'NllbTokenizer')
  )


def test_pegasus_finds_its_unknown_piece():
  tokenizer = rebuild('PegasusTokenizer', PIECES)
  assert json.loads(tokenizer.to_str())['model']['unk_id'] == 3
  with pytest.raises(ValueError, match="no piece '<unk>'"):
    rebuild('PegasusTokenizer', PIECES[:3])


def test_other_classes_take_the_file_as_it_is():
  tokenizer = rebuild('TokenizersBackend', TOKENS, type='BPE', merges=[])
  assert tokenizer.pre_tokenizer is None
  assert tokenizer.encode('<unk>').ids == [3]


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"model": {"type": "x"}}'])
def test_damaged_texts_are_refused(text):
  with pytest.raises(ValueError, match='is damaged') as e:
    parse_tokenizer(text, 'folder')
  assert '\n' not in str(e.value)
