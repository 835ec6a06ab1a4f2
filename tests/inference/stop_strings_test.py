"""Stop strings by tokens, against looking for them in the text."""

import numpy as np
import pytest

from atm.inference import stop_strings


def end_of(pieces, stops, ids) -> int:
  """After how many ids the table says that a stop is read; -1: never."""
  steps, state = stop_strings.build_table(pieces, stops), 0
  for n, i in enumerate(ids, 1):
    state = steps[state, i]
    if state == len(steps) - 1:
      return n
  return -1


def expected(pieces, stops, ids) -> int:
  text = ''
  for n, i in enumerate(ids, 1):
    text += pieces[i]
    if any(stop in text for stop in stops):
      return n
  return -1


@pytest.mark.parametrize(
  'stops', [['ab'], ['aab', 'b;'], [';'], ['abab', 'bb'], ['a', 'aaaa']]
)
def test_a_stop_is_found_where_the_text_has_it(rng, stops):
  """Random texts of few letters, so that beginnings overlap.

  Faults seen: back to the beginning where a letter does not fit; only the
  first stop looked for; a stop inside of a piece not seen; left again.
  """
  pieces = ['', 'a', 'b', ';', 'ab', 'ba', 'aab', ';b', 'x', 'bab', 'abx']
  found = 0
  for _ in range(300):
    ids = rng.integers(0, len(pieces), rng.integers(1, 12))
    want = expected(pieces, stops, ids)
    assert end_of(pieces, stops, ids) == want
    found += want > 0
  assert found > 20


def test_the_last_state_is_never_left(rng):
  steps = stop_strings.build_table(['a', 'b', 'ab'], ['ab', 'bba'])
  assert (steps[-1] == len(steps) - 1).all()
  assert len(steps) & (len(steps) - 1) == 0 and steps.dtype == np.int32


def test_cut_takes_what_stands_before_the_first_stop():
  assert stop_strings.cut_at_stop('one; two <br> three', ['<br>', ';']) == 'one'
  assert stop_strings.cut_at_stop('one', [';']) == 'one'
  assert stop_strings.cut_at_stop(';', [';']) == ''


def test_an_empty_stop_is_refused():
  with pytest.raises(ValueError, match='expected no empty string'):
    stop_strings.build_table(['a'], ['a', ''])


def test_what_may_yet_change_is_held_back():
  """Faults seen: the beginning of a stop string shown; half a character shown;
  a text that could begin no stop held back."""
  hold_back = stop_strings.hold_back
  assert hold_back('one <b', ['<br>', ';']) == 'one '
  assert hold_back('one <bx', ['<br>', ';']) == 'one <bx'
  assert hold_back('one\ufffd', []) == 'one'


@pytest.mark.parametrize('stops', [[], ['e<'], ['<br>', 'two;']])
def test_pieces_of_a_stream_are_the_text_up_to_a_stop(stops):
  text = 'one<b two; <br> three'
  read = []
  tokens = (read.append(i) or i for i in range(len(text)))
  decode = lambda ids: ''.join(text[i] for i in ids)
  pieces = list(stop_strings.stream_text(tokens, decode, stops))
  assert ''.join(pieces) == stop_strings.cut_at_stop(text, stops)
  assert len(pieces) > 1 and all(pieces)
  if stops:  # no token is asked for behind a stop
    assert len(read) < len(text)
