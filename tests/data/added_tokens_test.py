"""Which tokens are added, of four files and a class's own."""

import pytest

from atm.data.added_tokens import MBART50_CODES, MBART_CODES, collect_tokens
from tests import model_languages


def collect(name='NllbTokenizer', settings=(), special=(), added=(), fast=()):
  return collect_tokens(
    name, dict(settings), dict(special), dict(added),
    {'added_tokens': list(fast)}, 'folder',
  )  # fmt: skip


def test_languages_of_mbart():
  assert MBART_CODES == model_languages.MBART25
  assert MBART50_CODES == model_languages.MBART50
  assert collect('MBartTokenizer').extra == [*MBART_CODES]
  assert collect('MBart50Tokenizer').extra == [*MBART50_CODES]
  settings = {'additional_special_tokens': ['xx_XX']}
  assert collect('MBartTokenizer', settings).extra == ['xx_XX']


def test_named_tokens_of_classes():
  mask = {
    'content': '<mask>', 'lstrip': True, 'special': True, 'normalized': True,
  }  # fmt: skip
  tokens = collect()
  assert tokens.added[-1] == mask
  assert tokens.named['sep_token'] == '</s>' == tokens.named['eos_token']
  assert [token['content'] for token in tokens.added] == [
    '<s>', '</s>', '<unk>', '<pad>', '<mask>',
  ]  # fmt: skip
  assert 'bos_token' not in collect('PegasusTokenizer').named
  assert collect('PegasusTokenizer').extra[:2] == ['<mask_1>', '<unk_2>']
  assert 'mask_token' not in collect('M2M100Tokenizer').named
  assert not collect('TokenizersBackend').named


def test_settings_name_ids_and_win_over_other_files():
  decoder = {'7': {'content': 'b'}, '5': {'content': '<s>', 'lstrip': True}}
  fast = [{'id': 6, 'content': 'c'}]
  tokens = collect(settings={'added_tokens_decoder': decoder}, fast=fast)
  assert tokens.ids == {'b': 7, '<s>': 5}
  assert tokens.added[:2] == [
    {'content': '<s>', 'lstrip': True, 'special': True}, {'content': 'b'},
  ]  # fmt: skip
  older = collect(
    special={'pad_token': {'content': 'P', 'rstrip': True}},
    added={'P': 9, 'q': 8}, fast=fast,
  )  # fmt: skip
  assert older.ids == {'P': 9, 'q': 8, 'c': 6}
  assert older.named['pad_token'] == 'P'
  assert older.added[1:3] == [
    {'content': 'q', 'special': False, 'normalized': True},
    {'content': 'P', 'special': True, 'normalized': False},
  ]  # fmt: skip


@pytest.mark.parametrize(
  'files, message',
  [
    ({'settings': {'pad_token': {'x': 1}}}, 'expected a token'),
    ({'settings': {'added_tokens_decoder': {'1': 5}}}, 'expected a token'),
    ({'settings': {'added_tokens_decoder': {'x': 'y'}}}, 'expected the id'),
    ({'settings': {'added_tokens_decoder': []}}, 'expected an object'),
    ({'settings': {'extra_special_tokens': 5}}, 'expected an array'),
    ({'settings': {'extra_special_tokens': [5]}}, 'expected a token'),
    ({'special': {'eos_token': 5}}, 'expected a token'),
    ({'added': {'x': None}}, 'expected the id'),
    ({'fast': [{'id': 5}]}, 'expected a token'),
    ({'fast': [5]}, 'expected an object'),
  ],
)
def test_what_is_no_token_is_refused(files, message):
  with pytest.raises(ValueError, match=message) as e:
    collect(**files)
  assert str(e.value).startswith('folder')
