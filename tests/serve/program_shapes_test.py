"""Which shapes an engine's programs have."""

import types

import pytest

from atm.serve.engine_sizes import EngineSizes
from atm.serve.program_shapes import (
  ProgramShapes,
  list_lengths,
  list_windows,
  share_of_copies,
)


@pytest.mark.parametrize(
  ('window', 'share'),
  [
    ((16, 100, 300), 0),  # all there is
    ((4, 100, 300), 1 / 4),
    ((16, 50, 300), 1 / 8),  # what the decoder wrote alone
    ((16, 100, 100), 1 / 4),
    ((4, 50, 100), 150 / 1600),
  ],
)
def test_a_window_copies_what_it_cuts(window, share):
  sizes = EngineSizes(slots=16, max_output=100, max_input=300)
  assert share_of_copies(window, sizes) == share


def test_lengths_are_padded_by_less_than_half():
  assert list_lengths(1024) == [
    32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024,
  ]  # fmt: skip
  assert list_lengths(80) == [32, 48, 64, 80]
  assert list_lengths(20) == [20]


def test_windows_end_with_all_there_is():
  assert list_windows(1024, 2, 3, 64) == [256, 512, 1024]
  assert list_windows(80, 4, 2, 64) == [80]
  assert list_windows(1, 4, 2, 1) == [1]


@pytest.mark.parametrize(
  ('lengths', 'batch'),
  [
    ([30], (1, 32)),  # alone
    ([30] * 15, (16, 32)),
    ([20, 40, 50], (1, 64)),  # a batch of 8 would be padding for the most part
    ([50] * 6, (8, 64)),
    ([20] * 7 + [60], (8, 64)),
    ([20] * 3 + [200], (1, 256)),
  ],
)
def test_inputs_are_read_together_where_padding_costs_less(lengths, batch):
  sizes = EngineSizes(slots=16, max_input=256, max_output=64)
  programs = types.SimpleNamespace(
    sizes=sizes, shards=1, bank_rows=16, in_blocks=False
  )
  programs.batches = ProgramShapes.batches.func(programs)
  assert ProgramShapes.find_batch(programs, lengths) == batch
