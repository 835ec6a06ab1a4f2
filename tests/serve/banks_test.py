"""Banks of slots: rows take few, and their states join and part."""

import jax
import jax.numpy as jnp
import numpy as np

from atm.inference import generate
from atm.model.transformer import AlexaTM
from atm.serve import banks, slots
from atm.serve.engine_sizes import EngineSizes

SIZES = EngineSizes(slots=2, max_input=8, max_output=6, banned=(2, 2))


def test_rows_take_the_fullest_bank():
  assert banks.count_rows([0, 2, 3], 2) == {0: 1, 1: 2}
  assert banks.choose_slots([2], [0, 1, 3], 2, 1) == [3]
  assert banks.choose_slots([2], [0, 1, 3], 2, 3) == [3, 0, 1]


def test_a_call_takes_banks_with_rows():
  assert banks.list_banks([5, 2], 2, 4) == [1, 2, 0, 3]
  assert banks.span_rows([5, 2], 2) == 4
  assert banks.span_rows([1, 4], 8) == 5


def test_rows_of_the_emptiest_bank_move_where_all_have_room():
  assert banks.find_moves([0, 4, 5], [1, 2, 3, 6, 7], 4) == [(0, 6)]
  assert banks.find_moves([0, 1, 4, 5], [2, 3, 6, 7], 4) == [(0, 6), (1, 7)]
  assert not banks.find_moves([0, 1, 4], [5], 2)  # an empty bank is no room
  assert banks.find_moves([1], [0, 2, 3], 2) == [(1, 2)]  # alone, to the first
  assert not banks.find_moves([2], [0, 1, 3], 2)


def fill(state, first: int):
  """Returns a state with other numbers in each array and row."""
  numbers = iter(range(first, 1000))

  def make(x):
    rows = jnp.arange(len(x)).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.full_like(x, next(numbers)) + rows.astype(x.dtype)

  return jax.tree.map(make, state)


def test_states_join_part_and_give_rows_away(byte_model):
  net = AlexaTM(byte_model.config)
  params = generate.prepare_params(net, byte_model.params)
  empty = jax.jit(lambda: slots.empty_state(net, params, SIZES, True))()
  states = [fill(empty, 0), fill(empty, 300)]
  joined = banks.join_states(states)
  assert joined.position.shape == (4,) and len(joined.caches[0].self_keys) == 2
  jax.tree.map(
    np.testing.assert_array_equal, banks.part_state(joined, 2), states
  )
  assert banks.part_state(banks.join_states(states[:1]), 1) == states[:1]
  moved = banks.move_row(*states, 1, 0)
  for new, old, source in zip(*map(jax.tree.leaves, (moved, *states))):
    np.testing.assert_array_equal(new[0], source[1])
    np.testing.assert_array_equal(new[1], old[1])
