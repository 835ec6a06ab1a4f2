"""Shapes that an engine's programs are compiled for, and which fit a call."""

import functools
import math

from atm.inference import api
from atm.serve.engine_sizes import EngineSizes

# A call of the encoder reads all weights: as long as so many positions take.
CALL_POSITIONS = 32
# Of the caches, by a call on an accelerator.
MOST_COPIED = 0.25
BANK_ROWS = 4  # a step of fewer takes nearly as long
MOST_TOGETHER = 64  # longer inputs are as fast one by one, on a CPU


def list_lengths(most: int, least: int = 32) -> list[int]:
  """Returns padded lengths up to `most`: powers of two, and 1.5 times these.

  A text is padded by a fifth on average; with powers of two alone it would be
  by a third.
  """
  lengths, n = [], least
  while n < most:
    lengths += [n] if n * 3 // 2 >= most else [n, n * 3 // 2]
    n *= 2
  return [*lengths, most]


def list_windows(most: int, factor: int, count: int, least: int) -> list[int]:
  """Returns up to `count` sizes up to `most`, each `factor` times another.

  None is below `least`, but for `most` itself.
  """
  sizes = {-(-most // factor**i) for i in range(count)}
  return sorted(n for n in sizes if n >= least or n == most)


def share_of_copies(window: tuple[int, int, int], sizes: EngineSizes) -> float:
  """Returns the share of the caches that a call in a window copies first."""
  rows, T, S = window
  few = rows < sizes.slots
  parts = [(T, sizes.max_output), (S, sizes.max_input)]
  copied = sum(rows * n for n, most in parts if few or n < most)
  return copied / (sizes.slots * (sizes.max_output + sizes.max_input))


def split_slots(slots: int) -> tuple[int, int]:
  """Returns (banks, slots of each) with room for so many slots."""
  banks = -(-slots // BANK_ROWS)
  return banks, -(-slots // banks)


class ProgramShapes:
  """Shapes of programs for a model; a base of Programs.

  Slots are in banks, each a state of its own, and a call of the decoder takes
  the banks that have open rows. There is one bank, but for rows on one CPU.

  Attributes:
    model: what runs.
    sizes: of `EngineSizes.fit`.
    shards: devices that share a batch.
    banks, bank_rows: how many banks there are, and how many slots of each.
  """

  def __init__(self, model: api.Model, sizes: EngineSizes):
    self.model, self.sizes = model, sizes
    self.shards = math.prod(
      model.mesh.shape[a] for a in model.rules.mesh_axes('batch')
    )
    self.banks, self.bank_rows = self._split()

  def _split(self) -> tuple[int, int]:
    """Returns `banks` and `bank_rows`."""
    slots = self.sizes.slots
    return split_slots(slots) if self.in_blocks else (1, slots)

  @property
  def rows(self) -> int:
    """How many slots there are."""
    return self.banks * self.bank_rows

  @property
  def platform(self) -> str:
    """Of the devices: 'cpu', 'gpu' or 'tpu'."""
    return self.model.mesh.devices.flat[0].platform

  @property
  def in_blocks(self) -> bool:
    """Whether caches are in blocks: on one CPU."""
    return self.platform == 'cpu' and self.model.mesh.size == 1

  @functools.cached_property
  def batches(self) -> list[tuple[int, int]]:
    """(B, S) of encoder batches: one input, or several read at a time."""
    shapes = set()
    for S in list_lengths(self.sizes.max_input):
      most = max(1, min(self.bank_rows, self.sizes.admit_tokens // S))
      if self.in_blocks and S > MOST_TOGETHER:
        most = 1
      for B in (1, 1 << (most.bit_length() - 1)):
        shapes.add((-(-B // self.shards) * self.shards, S))
    return sorted(shapes, key=lambda shape: shape[::-1])

  @functools.cached_property
  def windows(self) -> list[tuple[int, int, int]]:
    """(rows, T, S) that `slots.take_steps` is compiled for."""
    s = self.sizes
    if self.in_blocks:
      # Each twice as many banks as the one before, for each is compiled.
      counts = [n for n in range(1, self.banks) if n & (n - 1) == 0]
      rows = {1, *(n * self.bank_rows for n in [*counts, self.banks])}
      return [(n, s.max_output, s.max_input) for n in sorted(rows)]
    rows = list_windows(s.slots, 4, 2, 1) if self.shards == 1 else [s.slots]
    T = list_windows(s.max_output, 4, 2, 64)
    S = list_windows(s.max_input, 2, 3, 64)
    found = [(r, t, n) for r in rows for t in T for n in S]
    if self.platform == 'cpu':
      return found
    # Memory of accelerators is short: it is to hold slots.
    return [w for w in found if share_of_copies(w, s) <= MOST_COPIED]

  def find_batch(self, lengths: list[int]) -> tuple[int, int]:
    """Returns (B, S) in which the last of these lengths are read together.

    Args:
      lengths: of inputs, ascending; the last B of them go into the batch.
    """
    bucket = lambda n: next(S for _, S in self.batches if S >= n)
    S = bucket(lengths[-1])
    few, most = (f(B for B, n in self.batches if n == S) for f in (min, max))
    apart = sum(bucket(n) + CALL_POSITIONS for n in lengths[-most:])
    together = most * S + CALL_POSITIONS
    return (most if together <= apart else few), S

  def count_banks(self, window: tuple[int, int, int]) -> int:
    """Returns how many banks a window has rows of."""
    return max(1, window[0] // self.bank_rows)
