"""Texts of outputs, however their tokens are divided."""

import numpy as np
import pytest

from atm.inference import stop_strings
from atm.serve.generation_request import ChosenToken, RequestOutput
from atm.serve.output_text import (
  OutputText,
  TokenTexts,
  list_tokens,
  name_bytes,
)


@pytest.mark.parametrize('stop', [(), ('a', 'text'), ('て、',)])
def test_parts_are_the_whole_however_tokens_are_divided(byte_words, stop):
  """Half characters and beginnings of stop strings among them."""
  draws, end_id = np.random.default_rng(0), byte_words.eos_id
  for _ in range(40):
    text = ''.join(draws.choice(list('a text.よ😀'), 12))
    ids = byte_words.encode(text) + draws.integers(4, 290, 4).tolist()
    prefix = [
      byte_words.bos_id,
      *byte_words.encode(draws.choice(['plain', ''])),
    ]
    tokens = [ChosenToken(0, i, -1.0) for i in (*ids, end_id)]
    before, behind = byte_words.decode_parts(prefix[1:], ids)
    expected = before + stop_strings.cut_at_stop(behind, stop)
    offsets = None
    for step in (1, 2, 5, 99):
      out = OutputText(byte_words, prefix, end_id, stop, '> ', True)
      parts = [
        out.add(tokens[i : i + step], i + step >= len(tokens))
        for i in range(0, len(tokens), step)
      ]
      assert ''.join(x.text for x in parts) == '> ' + expected
      assert out.count == len(tokens)
      found = [at for part in parts for at in part.offsets]
      assert len(found) == len(tokens) and (stop or found == sorted(found))
      assert offsets in (None, found)
      offsets = found
    plain = OutputText(byte_words, prefix, end_id, stop, '> ')
    part = plain.add(tokens, True)
    assert part.text == '> ' + expected and not part.offsets


def test_tokens_have_names_and_bytes(byte_words):
  texts, spelling = TokenTexts(byte_words), byte_words.spelling()
  assert texts.name_token(byte_words.eos_id) == '</s>'
  assert texts.list_bytes(byte_words.eos_id) == []
  for i, text in enumerate(spelling):
    if not byte_words.is_special(i):
      assert texts.name_token(i) == name_bytes(text)
      raw = text.encode('utf-8', 'surrogateescape')
      assert bytes(texts.list_bytes(i)) == raw
  assert texts.name_token(byte_words.size) == f'token:{byte_words.size}'
  assert name_bytes('\udce2') == 'bytes:\\xe2' and name_bytes(' é') == ' é'


def test_without_a_tokenizer_there_is_no_text():
  out = OutputText(None, [2], 1)
  part = out.add([ChosenToken(0, 5, -1.0)], True)
  assert part.text == '' and [x.id for x in part.tokens] == [5]
  assert TokenTexts(None).name_token(5) == 'token:5'


def test_a_whole_output_has_the_tokens_that_updates_tell():
  ended = RequestOutput([5, 6], [-1.0, -2.0, -3.0], [], -6.0, 'stop')
  assert [x.id for x in list_tokens(ended, 1)] == [5, 6, 1]
  top = [((5, -1.0),), ((6, -2.0),)]
  cut = RequestOutput([5, 6], [-1.0, -2.0], top, -3.0, 'length')
  assert list_tokens(cut, 1) == [
    ChosenToken(0, 5, -1.0, ((5, -1.0),)),
    ChosenToken(0, 6, -2.0, ((6, -2.0),)),
  ]
