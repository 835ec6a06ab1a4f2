"""Packed rows fit, and lose nothing."""

import numpy as np
import pytest

from atm.data import packing


def test_packing_is_a_function_of_its_items(rng):
  sizes = [tuple(s) for s in rng.integers(1, 30, (500, 2))]
  once, twice = (
    list(packing.pack(iter(sizes), lambda s: s, 64, 64)) for _ in range(2)
  )
  assert once == twice
  assert sorted(s for row in once for s in row) == sorted(sizes)
  fill = np.array([np.sum(row, axis=0) for row in once])
  assert fill.max() <= 64
  least = np.sum(sizes, axis=0).max() / 64
  assert len(once) < 1.15 * least


@pytest.mark.parametrize(
  'sizes, rows',
  [
    # The third fits both rows and leaves less room in the second, or first.
    ([(5, 1), (7, 1), (3, 1)], [[(5, 1)], [(7, 1), (3, 1)]]),
    ([(7, 1), (5, 1), (3, 1)], [[(7, 1), (3, 1)], [(5, 1)]]),
    # Room on both sides counts: 3 + 9 against 4 + 3.
    ([(7, 1), (6, 7), (2, 2)], [[(7, 1)], [(6, 7), (2, 2)]]),
    # Of equals the first; what one side has no room for does not fit.
    ([(6, 6), (6, 6), (1, 1)], [[(6, 6), (1, 1)], [(6, 6)]]),
    ([(4, 4), (1, 9), (3, 2)], [[(4, 4), (3, 2)], [(1, 9)]]),
  ],
)
def test_an_item_goes_where_least_room_is_left(sizes, rows):
  """Fault seen: the first row that it fits, not the best."""
  assert list(packing.pack(sizes, lambda s: s, 10, 10)) == rows


def test_the_fullest_row_leaves_when_none_has_room():
  """Fault seen: the emptiest, or the first."""
  sizes = [(8, 8), (9, 9), (7, 7), (3, 3)]
  made = list(packing.pack(sizes, lambda s: s, 10, 10, open_rows=2))
  assert made == [[(9, 9)], [(8, 8)], [(7, 7), (3, 3)]]


def test_as_many_rows_are_open_as_ever():
  """64, which decides the rows that are made of a text."""
  read = []
  items = (read.append(i) or (6, 6) for i in range(99))
  assert next(packing.pack(items, lambda s: s, 10, 10)) == [(6, 6)]
  assert len(read) == 65


@pytest.mark.parametrize('need', [(11, 1), (1, 11), (-1, 1), (float('nan'), 1)])
def test_what_fits_no_row_is_refused(need):
  """Fault seen: a row longer than S, without a word."""
  with pytest.raises(ValueError, match="most.'a'. = .*at most .* .10, 10."):
    list(packing.pack('a', lambda s: need, 10, 10))
  with pytest.raises(ValueError, match='open_rows = 0'):
    packing.pack('a', lambda s: (1, 1), 10, 10, open_rows=0)


def test_frames_of_several_ids_stand_around_each_run():
  """Two rows: of two runs, the first of nothing, and of one."""
  ids = packing.SpecialIds(pad=9, bos=1, eos=2, clm=None, doc=None)
  row = np.array([0, 0, 1])
  source = (5, 6), np.arange(10, 14), np.array([0, 3, 1]), (7, 8)
  target = (), np.arange(20, 26), np.array([2, 1, 3]), ()
  batch = packing.frame_batch(row, source, target, (2, 12, 4), ids)
  assert {name: array.tolist() for name, array in batch.items()} == {
    'encoder_input_tokens': [
      [5, 6, 7, 8, 5, 6, 10, 11, 12, 7, 8, 9],
      [5, 6, 13, 7, 8, 9, 9, 9, 9, 9, 9, 9],
    ],
    'encoder_segment_ids': [
      [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0],
      [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
    ],
    'encoder_positions': [
      [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 0],
      [0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0],
    ],
    'decoder_input_tokens': [[1, 20, 1, 9], [1, 23, 24, 9]],
    'decoder_target_tokens': [[20, 21, 22, 9], [23, 24, 25, 9]],
    'decoder_segment_ids': [[1, 1, 2, 0], [1, 1, 1, 0]],
    'decoder_positions': [[0, 1, 0, 0], [0, 1, 2, 0]],
    'decoder_loss_weights': [[1, 1, 1, 0], [1, 1, 1, 0]],
  }


@pytest.mark.parametrize(
  'start, codes, first',
  [(None, (), (1, 1)), (3, (), (3, 3)), (3, (5, 6), (5, 6)), (3, (6,), (3, 6))],
)
def test_the_decoder_starts_each_example_as_its_model_does(start, codes, first):
  """Two examples share a row; each restarts with its own first input."""
  ids = packing.SpecialIds(9, 1, 2, None, None, start, codes)
  sizes, none = np.array([2, 3]), np.zeros(0, np.int32)
  source = (7,), none, 0 * sizes, ()
  target = (), np.array([20, 5, 21, 22, 6]), sizes, ()
  batch = packing.frame_batch(np.zeros(2, int), source, target, (1, 2, 6), ids)
  assert batch['decoder_input_tokens'].tolist() == [
    [first[0], 20, first[1], 21, 22, 9]
  ]
  assert batch['decoder_target_tokens'].tolist() == [[20, 5, 21, 22, 6, 9]]


def test_pieces_that_are_missing_are_named():
  ids = packing.SpecialIds(pad=0, bos=1, eos=2, clm=None, doc=6)
  ids.require('doc')
  with pytest.raises(ValueError, match=r'no \[CLM\]'):
    ids.require('doc', 'clm')
