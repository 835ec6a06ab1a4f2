"""From a program's arrays to texts."""

import numpy as np
import pytest

from atm.inference import outputs as outputs_lib


class Letters:
  @staticmethod
  def decode_parts(*parts):
    return [''.join(chr(96 + i) for i in ids) for ids in parts]


def test_ids_texts_and_scores_of_each_output():
  """Faults seen: the end token's log-probability left out of a sum; a prefix
  among the ids; padding decoded; the start token decoded."""
  ids = np.array([[[1, 2, 0]], [[3, 0, 0]], [[0, 0, 0]]])
  logs = -np.array([[[1, 2, 4]], [[8, 16, 0]], [[0, 0, 0]]], np.float32)
  lengths, counts = np.array([[2], [1], [0]]), np.array([[3], [2], [0]])
  outputs = ids, logs, lengths, counts
  first, second = (
    row[0]
    for row in outputs_lib.collect(outputs, [[9], [9, 5]], Letters, ['b'])
  )
  assert (first.text, first.ids, first.score) == ('a', [1, 2], -7.0)
  assert first.log_probabilities == [-1.0, -2.0, -4.0]
  assert (second.text, second.ids, second.score) == ('ec', [3], -24.0)


@pytest.mark.parametrize(
  'prefix, ids, stop, text',
  [
    ([2], [3, 1], 'b', 'bca'),  # only the prefix has it
    ([2], [3, 2, 1], 'b', 'bc'),
    ([2, 3], [4, 1], 'cd', 'bcda'),  # half of it is given
    ([2, 3], [2, 3, 4], 'bc', 'bc'),  # at the very first token
  ],
)
def test_a_stop_is_not_looked_for_in_a_prefix(prefix, ids, stop, text):
  """Fault seen: prefix and ids cut together, tokens lost."""
  outputs = (
    np.array([[ids]]), -np.ones((1, 1, len(ids))), np.full((1, 1), len(ids)),
    np.full((1, 1), len(ids)),
  )  # fmt: skip
  ((one,),) = outputs_lib.collect(outputs, [[9, *prefix]], Letters, [stop])
  assert one.text == text and one.ids == ids


def test_beams_bring_their_scores_and_ids_need_no_vocabulary():
  outputs = (
    np.array([[[1, 2], [3, 4]]]), -np.ones((1, 2, 2)), np.full((1, 2), 2),
    np.full((1, 2), 2), np.array([[-0.5, -0.75]]),
  )  # fmt: skip
  ((best, other),) = outputs_lib.collect(outputs, [[9]], None, ())
  assert (best.text, best.ids, best.score) == (None, [1, 2], -0.5)
  assert other.score == pytest.approx(-0.75)
