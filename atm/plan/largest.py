"""Searches the largest size that fits a chip: a batch, or rows of an engine."""

import dataclasses
import math
from collections.abc import Callable

MOST_PLACED = 8  # sizes of a search whose arrays are placed
GRAIN = 64
DOUBTS = 3
# What the compiler adds to placed arrays: the program, which is not there yet
# (40 MiB of a 20b's loop over tokens), and some room of its own.
RESERVED = 64 * 2**20


@dataclasses.dataclass
class LargestSearch:
  """A search of the largest size whose program fits a chip.

  Attributes:
    plan, place: return what a size takes, compiled whole or partly: `fits`,
      `memory`, `peak_hbm_gib`, `compile_seconds` and `whole`.
    base: bytes of a chip beside what grows with the size.
    usable: bytes that a chip has.
    noun, unit: 'batch', and how many of them a size of 1 is.
    tried: what was measured, by size.
  """

  plan: Callable[[int], dict]
  place: Callable[[int], dict]
  base: float
  usable: float
  say: Callable[[str], None]
  noun: str = 'batch'
  unit: int = 1
  tried: dict[int, dict] = dataclasses.field(default_factory=dict)

  def run(self, first: int) -> tuple[list[dict], dict]:
    """Returns (all sizes tried, in order; the largest that fits, else least).

    Args:
      first: the size to begin with.
    """
    # Memory is nearly linear in the size: two sizes give a line, and the line
    # the next to try, until one fits and the next one up does not (of large
    # ones, a GRAINth up). So far arrays are only placed; then the largest is
    # compiled; up to DOUBTS above it, while what is placed alone would fit; and
    # the first tried, if it is smaller.
    self._attempt(first)
    while len(self.tried) < MOST_PLACED:
      low, high = self._bracket
      if high - low <= grain(low):
        break
      self._attempt(next_guess(self.tried, self.base, self.usable, low, high))
    size = self._bracket[0] or min(self.tried)
    best, down = self._attempt(size, whole=True), grain(self._bracket[0])
    while not best['fits'] and self._bracket[0]:  # the compiler wanted more
      size = max(1, self._bracket[1] - down)
      best = self._attempt(size, whole=True)
      down *= 2  # each takes a whole compilation
    for _ in range(DOUBTS):
      above = self._bracket[1]
      if not best['fits'] or not self._is_doubtful(above):
        break
      result = self._attempt(above, whole=True)
      if result['fits']:
        best, size = result, above
        low, high = self._bracket
        if high - low > grain(low):
          self._attempt(low + grain(low))
    if best['fits'] and first < size:
      self._attempt(first, whole=True)
    return [self.tried[n] for n in sorted(self.tried)], best

  def _attempt(self, size: int, whole: bool = False) -> dict:
    """Measures a size, and says what came of it."""
    row = self.tried[size] = (self.plan if whole else self.place)(size)
    fits = 'fits' if row['fits'] else 'does not fit'
    self.say(
      f'  {self.noun} {size * self.unit}: {row["peak_hbm_gib"]:.2f} GiB, '
      f'{fits} ({row["compile_seconds"]:.0f} s)'
    )
    return row

  @property
  def _bracket(self) -> tuple:
    """The largest size that fits, the smallest that does not."""
    fit = [n for n in self.tried if self.tried[n]['fits']]
    not_fit = [n for n in self.tried if not self.tried[n]['fits']]
    return max(fit, default=0), min(not_fit, default=math.inf)

  def _is_doubtful(self, size: float) -> bool:
    """Tells whether a size was refused for room the compiler may not need."""
    row = self.tried.get(size)
    placed = row and not row['whole']
    return bool(placed) and row['memory']['peak'] - RESERVED <= self.usable


def next_guess(tried: dict, base: float, usable: float, low, high) -> int:
  """Returns where a line through sizes meets what a chip has."""
  # `low` is the largest size that fits, `high` the smallest that does not.
  near = sorted(tried, key=lambda n: abs(tried[n]['memory']['peak'] - usable))
  ends = [n for n in (low, high) if n in tried]
  ends = ends if len(ends) == 2 else near[:2]
  points = [(n, tried[n]['memory']['peak']) for n in ends]
  points += [(0, base)] * (len(points) == 1)
  (a, x), (b, y) = points
  slope, step = (y - x) / (b - a), grain(low)
  met = math.floor(a + (usable - x) / slope) if slope > 0 else 2 * max(a, b)
  if high == math.inf:
    return max(met // step * step, low + step)
  if len(tried) > 4:  # padding makes it no line: halve what is left
    met = (low + high) // 2
  return int(min(max(met // step * step, low + step), high - step))


def grain(low: int) -> int:
  """Returns the step between sizes of about `low`, a GRAINth or less."""
  return 2 ** max(0, (low // GRAIN).bit_length() - 1)  # a power of two
