"""Keeps the stop strings of running requests in one table on the device."""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict

import jax
import numpy as np


@dataclasses.dataclass
class StopStates:
  """Where a request's stop strings are in the pool's table.

  Attributes:
    source: the table of `stop_strings.build_table`, kept as long as this.
    start: the state where a text begins.
    count: how many states there are.
    users: how many requests have them.
  """

  source: np.ndarray
  start: int
  count: int
  users: int = 0

  @property
  def end(self) -> int:
    """The state that has read a stop string."""
    return self.start + self.count - 1


def pack_states(table: np.ndarray) -> np.ndarray:
  """Returns a table of `stop_strings.build_table` without unused states."""
  end = len(table) - 1
  used = int(table[table < end].max(initial=1)) + 1
  packed = np.concatenate([table[:used], table[-1:]])
  return np.where(packed == end, used, packed)


@functools.partial(jax.jit, donate_argnums=0)
def _write_state(table, at, state):
  return jax.lax.dynamic_update_slice_in_dim(table, state[None], at, axis=0)


class StopPool:
  """Gives requests parts of a table int32 [states, V] on the device.

  State 0 is of rows without stop strings, and is never left. Requests with the
  same stop strings share a part, which stays until its room is needed.

  Attributes:
    table: the transitions; another array after each `acquire`.
  """

  def __init__(self, states: int, vocab_size: int, sharding=None):
    """Allocates the table, on the devices of `sharding`."""
    self.states = states
    self.table = jax.device_put(
      np.zeros((states, vocab_size), np.int32), sharding
    )
    self._parts: OrderedDict[int, StopStates] = OrderedDict()

  def compile(self) -> None:
    """Compiles what `acquire` runs."""
    self._write(0, np.zeros(self.table.shape[1], np.int32))

  def check(self, table: np.ndarray | None) -> None:
    """Raises ValueError for stop strings that an empty pool has no room for."""
    room = self.states - 1
    if table is None or len(table) <= room:  # packing takes a while
      return
    need = len(pack_states(table))
    if need > room:
      raise ValueError(
        f'stop needs {need:,} states, 2 and one for each byte of its strings: '
        f'expected at most {room:,}'
      )

  def acquire(self, table: np.ndarray | None) -> StopStates | None:
    """Returns the states of a request's stop strings, written to the table.

    None while others hold the room. See `check`, and `release`.
    """
    part = self._parts.get(id(table))
    if part is None:
      packed = pack_states(table)
      start = self._find_room(len(packed))
      if start is None:
        return None
      part = StopStates(table, start, len(packed))
      for i, state in enumerate(packed):
        self._write(start + i, start + state)
      self._parts[id(table)] = part
    part.users += 1
    self._parts.move_to_end(id(table))
    return part

  def release(self, part: StopStates) -> None:
    """Gives a request's states back."""
    part.users -= 1

  def _write(self, at: int, state: np.ndarray) -> None:
    self.table = _write_state(self.table, np.int32(at), state)

  def _find_room(self, count: int) -> int | None:
    """Returns where `count` states are free, without the oldest unused parts.

    Parts go only where that makes the room.
    """
    kept, gone = dict(self._parts), []
    while (start := self._find_gap(kept.values(), count)) is None:
      unused = [key for key, part in kept.items() if not part.users]
      if not unused:
        return None
      gone.append(unused[0])
      del kept[unused[0]]
    for key in gone:
      del self._parts[key]
    return start

  def _find_gap(self, parts, count: int) -> int | None:
    start = 1
    for part in sorted(parts, key=lambda part: part.start):
      if part.start - start >= count:
        break
      start = part.start + part.count
    return start if start + count <= self.states else None
