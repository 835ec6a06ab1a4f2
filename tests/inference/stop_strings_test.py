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


def streamed(parts, stops) -> str:
  """What `stream_text` shows of a text that comes in parts."""
  decode = lambda ids: ''.join(parts[i] for i in ids)
  stream = stop_strings.stream_text(range(len(parts)), decode, stops)
  return ''.join(stream)


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


def test_a_character_in_several_pieces_is_found():
  """Fault seen: stop strings outside ASCII never found in bytes."""
  clef = ''.join(chr(0xDC00 + byte) for byte in '𝄞'.encode())
  pieces = ['', 'a', *clef, '𝄞', ';']
  for ids, after in (
    ([1, 2, 3, 4, 5, 1], 5),  # its bytes
    ([2, 3, 0, 4, 5], 5),  # a special piece among them has no text
    ([2, 3, 4, 1, 5], -1),
    ([2, 2, 3, 4, 5], 5),
    ([1, 6], 2),
    ([1, 1], -1),
  ):
    assert end_of(pieces, ['𝄞'], ids) == after
  assert end_of(pieces, ['a𝄞;'], [1, 2, 3, 4, 5, 7]) == 6


def test_a_text_begins_without_the_space_of_its_first_piece():
  """Faults seen: a stop found that the text does not have; one lost that it
  has behind a special piece."""
  pieces, openings = ['', ' ', ' a', 'a'], [None, None, 'a', 'a']
  table = stop_strings.build_table(pieces, [' a'], openings)

  def stopped(ids, state=0) -> bool:
    for i in ids:
      state = table[state, i]
    return state == len(table) - 1

  assert not stopped([2]) and not stopped([0, 2]) and not stopped([1, 0, 2])
  assert stopped([2, 2]) and stopped([3, 1, 3]) and stopped([0, 3, 0, 2])
  assert stopped([2], state=1) and stopped([1, 3], state=1)


@pytest.mark.parametrize(
  'text, stops, cut',
  [
    ('xabc', ['abc', 'b'], 'xa'),  # b is complete first, however it came
    ('xabc', ['bc', 'abc'], 'x'),  # of two that are complete at once the longer
    ('xabc', ['c', 'bc'], 'xa'),
    ('xabab', ['ba', 'ab'], 'x'),
    ('a;; b', [';; ', ';'], 'a'),
    ('aaa', ['aa', 'a'], ''),
  ],
)
def test_the_stop_that_is_complete_first_ends_a_text(text, stops, cut):
  """In whatever pieces it comes.

  Fault seen: another cut where one piece holds both stops."""
  for order in (stops, stops[::-1]):
    assert stop_strings.cut_at_stop(text, order) == cut
    for size in range(1, len(text) + 1):
      parts = [text[i : i + size] for i in range(0, len(text), size)]
      assert streamed(parts, order) == cut


def test_cut_takes_what_stands_before_the_first_stop():
  assert stop_strings.cut_at_stop('one; two <br> three', ['<br>', ';']) == 'one'
  assert stop_strings.cut_at_stop('one', [';']) == 'one'
  assert stop_strings.cut_at_stop(';', [';']) == ''


def test_what_may_yet_change_is_held_back():
  """Faults seen: the beginning of a stop string shown; half a character shown;
  a text that could begin no stop held back."""
  hold_back = stop_strings.hold_back
  assert hold_back('one <b', ['<br>', ';']) == 'one '
  assert hold_back('one <bx', ['<br>', ';']) == 'one <bx'
  assert hold_back('one\ufffd', []) == 'one'
  assert hold_back('one <\ufffd', ['<br>']) == 'one '
  for size in range(1, 4):
    held = '<br>'[:size]
    assert hold_back('one ' + held, ['<br>']) == 'one '
    assert hold_back(held, [';', '<br>']) == ''
  assert hold_back('aab', ['abx', 'bx']) == 'a'
  assert hold_back('one <br>', ['<br>']) == 'one <br>'  # no beginning: a whole


def test_what_is_shown_is_never_taken_back(rng):
  """At every token as much is shown as no later one can change.

  Faults seen: a possible stop shown; held longer than need be; lost where the
  output ends in it."""
  for _ in range(400):
    text = ''.join(rng.choice(list('ab;'), rng.integers(0, 9)))
    stops = [
      ''.join(rng.choice(list('ab;'), rng.integers(1, 4)))
      for _ in range(rng.integers(0, 3))
    ]
    final = stop_strings.cut_at_stop(text, stops)
    for end in range(len(text) + 1):
      shown = streamed(text[:end], stops)
      assert shown == stop_strings.cut_at_stop(text[:end], stops)
      sure = stop_strings.hold_back(text[:end], stops)
      assert final.startswith(sure[: len(final)])
      # The first character that is held back begins a stop.
      held = text[len(sure) : end]
      assert not held or any(stop.startswith(held) for stop in stops)


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


@pytest.mark.parametrize('letters, states', [(1, 4), (2, 4), (3, 8), (6, 8)])
def test_a_table_is_no_larger_than_it_must_be(letters, states):
  table = stop_strings.build_table(list('abcdef'), ['abcdef'[:letters]])
  assert table.shape == (states, 6)


@pytest.mark.parametrize(
  'stops', [['ab'], ['ab', 'abc'], ['User:', '<br>'], ['é'], ['a', 'ba', 'bb']]
)
def test_states_are_counted_before_the_table_is_built(stops):
  letters = sorted(set(''.join(stops)))
  bytes_of = lambda x: [chr(0xDC00 + b) if b > 127 else chr(b) for b in x]
  pieces = [b for x in letters for b in bytes_of(x.encode())]
  table = stop_strings.build_table(pieces, stops)
  reached = len({*table.flatten()} | {0})
  most = stop_strings.count_states(stops)
  assert reached <= most <= len(table)
  raw = [x.encode() for x in stops]
  assert most == 2 + len({x[:n] for x in raw for n in range(len(x))})
