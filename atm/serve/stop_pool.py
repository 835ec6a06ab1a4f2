"""Keeps the stop strings of running requests in one table on the device."""

from __future__ import annotations

import dataclasses
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
    self._host = np.zeros((states, vocab_size), np.int32)
    self._sharding = sharding
    self._put()
    self._parts: OrderedDict[int, StopStates] = OrderedDict()

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
      self._host[start : start + len(packed)] = start + packed
      self._put()
      self._parts[id(table)] = part
    part.users += 1
    self._parts.move_to_end(id(table))
    return part

  def release(self, part: StopStates) -> None:
    """Gives a request's states back."""
    part.users -= 1

  def _put(self) -> None:
    # Whole, and nothing is donated: a call of the device may be reading what
    # was there. A copy, since a CPU's arrays may share the host's memory.
    self.table = jax.device_put(self._host.copy(), self._sharding)

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
