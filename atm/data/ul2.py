"""UL2's mixture of denoisers (arXiv:2205.05131), in the frame of this model.

Its seven denoisers, of mean span (in tokens) and share of tokens dropped:

  R  regular      (3, 15%), (8, 15%)
  S  sequential   the first 75% are read, the rest is written
  X  extreme      (3, 50%), (8, 50%), (64, 15%), (64, 50%)

All have equal shares. What is UL2's: which tokens are dropped, and that a token
in front tells the mode. What is not: UL2 puts a sentinel where a span was, and
its decoder writes the sentinels and the spans. Here the encoder reads nothing
there and the decoder writes the whole text, as in AlexaTM's denoising, so that
the two mixtures differ in what is dropped alone. Mode tokens are of the
vocabulary as it is: none for R, `[MASK]` for X, `[CLM]` for S.
"""

import dataclasses

from atm.data.objectives import CLM, Denoise


@dataclasses.dataclass(frozen=True)
class Ul2Denoise(Denoise):
  """An R-denoiser or, with `extreme`, an X-denoiser."""

  extreme: bool = False

  @property
  def variant(self) -> str:
    """The mode, mean span and percentage: 'x64_50'."""
    mode = 'x' if self.extreme else 'r'
    return f'{mode}{self.mean_span:g}_{100 * self.density:g}'

  def row_length(self, S: int, T: int) -> int:
    """Returns the longest row whose inputs fit in S, its mode token too."""
    return super().row_length(S - self.extreme, T)

  def head(self, ids) -> tuple[int, ...]:
    """Returns what the encoder reads before the text: the mode, too."""
    if not self.extreme:
      return ids.opening
    ids.require('mask')
    return (*ids.opening, ids.mask)


@dataclasses.dataclass(frozen=True)
class Ul2Clm(CLM):
  """The S-denoiser: writes the last quarter of a document."""

  low: float = 0.75
  high: float = 0.75
  variant = 's'


DENOISERS = (
  Ul2Denoise(0.15, 3.0),
  Ul2Denoise(0.15, 8.0),
  Ul2Denoise(0.5, 3.0, extreme=True),
  Ul2Denoise(0.5, 8.0, extreme=True),
  Ul2Denoise(0.15, 64.0, extreme=True),
  Ul2Denoise(0.5, 64.0, extreme=True),
)


def list_denoisers(packs: bool) -> list[tuple]:
  """Returns (objective, share) of the seven; S packs documents or not."""
  objectives = [*DENOISERS, Ul2Clm(packs=packs)]
  return [(objective, 1 / len(objectives)) for objective in objectives]
