"""Ids that a user gives are whole numbers of the vocabulary, or refused."""

import numpy as np
import pytest

from atm.data.token_ids import check_ids


def test_rows_of_any_kind_are_lists_of_ints():
  for row in ([5.0, 6], np.array([5, 6], np.float16), (i for i in (5, 6))):
    ids = check_ids('ids', row, 7)
    assert ids == [5, 6] and {*map(type, ids)} == {int}
  assert check_ids('ids', [], 7) == []


@pytest.mark.parametrize(
  'row',
  [
    [7], [-1], [5.5], [True], [None], ['5'], [[5]], [np.nan], [2**70], 5,
    '56', b'56', memoryview(b'56'), {5}, {5: 6}, np.ones((1, 1), int),
    np.ones((3, 3), int),
  ],
)  # fmt: skip
def test_what_is_no_row_of_ids_is_refused(row):
  """Faults seen: bytes in a memoryview taken as ids, lines of an array."""
  with pytest.raises(ValueError, match='ids .*expected') as e:
    check_ids('ids', row, 7)
  assert '\n' not in str(e.value)
