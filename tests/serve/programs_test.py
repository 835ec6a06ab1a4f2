"""Shapes of programs: few, and with room for every request."""

from atm.serve.programs import list_lengths, list_windows


def test_lengths_are_padded_by_less_than_half():
  assert list_lengths(1024) == [
    32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024,
  ]  # fmt: skip
  assert list_lengths(80) == [32, 48, 64, 80]
  assert list_lengths(20) == [20]


def test_windows_end_with_all_there_is():
  assert list_windows(1024, 2, 3, 64) == [256, 512, 1024]
  assert list_windows(80, 4, 2, 64) == [64, 80]
  assert list_windows(1, 4, 2, 1) == [1]
