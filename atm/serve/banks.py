"""Banks of slots: which of them rows take, and how their states join.

A bank is a few slots whose state is a donated argument by itself. A call of the
decoder takes the banks that have rows, whichever they are. Slots are numbered
through all banks of a lane, each of `size` slots.
"""

from collections import Counter
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from atm.serve.slots import SlotState

# --- On the host


def count_rows(taken: Iterable[int], size: int) -> Counter:
  """Returns how many slots are taken in each bank that has such."""
  return Counter(slot // size for slot in taken)


def list_banks(taken: Iterable[int], size: int, count: int) -> list[int]:
  """Returns all of `count` banks, those with rows first."""
  rows = count_rows(taken, size)
  return sorted(range(count), key=lambda bank: (not rows[bank], bank))


def span_rows(taken: Iterable[int], size: int) -> int:
  """Returns how many rows, those between them too, a call of banks computes.

  Of the last bank, up to the last that any has.
  """
  last = max(slot % size for slot in taken)
  return (len(count_rows(taken, size)) - 1) * size + last + 1


def choose_slots(
  taken: Iterable[int], free: list[int], size: int, count: int
) -> list[int]:
  """Returns free slots: in banks that have most rows, the first of each."""
  rows = count_rows(taken, size)
  order = lambda slot: (-rows[slot // size], slot)
  return sorted(free, key=order)[:count]


def find_moves(
  taken: Iterable[int], free: list[int], size: int
) -> list[tuple[int, int]]:
  """Returns moves (slot, free slot) that leave fewer banks with rows.

  All rows of one bank go to others, where these have room. A row alone goes to
  the first slot of a bank, for which there is a program.
  """
  rows, slots = count_rows(taken, size), list(taken)
  if len(slots) == 1 and slots[0] % size:
    is_first = lambda x: x % size == 0 and x // size not in rows
    return [(slots[0], x) for x in free if is_first(x)][:1]
  last = min(rows, key=rows.get)
  leaves = [slot for slot in slots if slot // size == last]
  room = [slot for slot in free if slot // size in rows.keys() - {last}]
  return list(zip(leaves, room)) if len(leaves) <= len(room) else []


# --- On the device


def join_states(states: list[SlotState]) -> SlotState:
  """Returns the state of all rows of banks, whose caches are in blocks."""
  if len(states) == 1:
    return states[0]
  bare = [x.replace(caches=[]) for x in states]
  joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *bare)
  # Groups of rows are in tuples: none of their arrays is copied.
  join = lambda *groups: sum(groups, ())
  caches = jax.tree.map(join, *[x.caches for x in states], is_leaf=_is_blocked)
  return joined.replace(caches=caches)


def part_state(state: SlotState, count: int) -> list[SlotState]:
  """Returns the states of `count` banks that `join_states` joined."""
  if count == 1:
    return [state]
  bare = state.replace(caches=[])
  size = len(state.position) // count

  def take(bank: int) -> SlotState:
    rows = slice(bank * size, (bank + 1) * size)
    part = lambda groups: groups[bank : bank + 1]
    caches = jax.tree.map(part, state.caches, is_leaf=_is_blocked)
    return jax.tree.map(lambda x: x[rows], bare).replace(caches=caches)

  return [take(bank) for bank in range(count)]


def move_row(state: SlotState, source: SlotState, slot, target) -> SlotState:
  """Returns the state of a bank, with a row of another as its row `target`."""

  def put(x, other):
    row = jax.lax.dynamic_slice_in_dim(other, slot, 1)
    return jax.lax.dynamic_update_slice_in_dim(x, row, target, 0)

  return jax.tree.map(put, state, source)


def _is_blocked(x) -> bool:
  return isinstance(x, tuple)
