"""How sources, languages, forms and objectives of `paper` and `text` mix."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from atm.data import objectives as objectives_lib
from atm.messages import check_fields, check_number

_BOUNDS = {
  **dict.fromkeys(
    (
      'wikipedia_spoken', 'wikipedia_written', 'mc4_spoken', 'mc4_written',
      'text_spoken', 'text_written', 'language_power', 'denoise', 'clm',
    ),
    dict(least=0),
  ),
  'in_context': dict(least=0, below=1),
  'density': dict(above=0, most=0.5),
  'mean_span': dict(above=0),
  'clm_low': dict(above=0, below=1),
  'clm_high': dict(above=0, below=1),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mixing:
  """How sources, languages, forms and objectives mix.

  Defaults are the paper's: each source in spoken and written form, so many
  times each (section 2.1; Wikipedia thereby weighs ten times its size);
  languages by q ~ p ** 0.5, p from sentence counts; 80% denoising, 20% CLM
  (section 3). That p counts a source's sentences as often as the source is
  repeated is our reading; the paper is silent.

  Attributes:
    wikipedia_spoken, wikipedia_written: how many times Wikipedia is repeated in
      each form.
    mc4_spoken, mc4_written: how many times mC4 is.
    text_spoken, text_written: how many times the text of TEXT_DIR is.
    language_power: the power of languages' shares; 1: as they are; 0: equal.
    in_context: share of the rows of `paper` and `text` that are of generated
      episodes, the mixture `in_context`; ours.
    denoise, clm: shares of the objectives.
    density: share of a denoising row's tokens that is dropped.
    mean_span: mean length of a dropped span, in tokens.
    clm_low, clm_high: range of the share of a CLM row that is its input.

  Raises:
    ValueError: a negative number, or a source with no form at all.
  """

  wikipedia_spoken: float = 7.0
  wikipedia_written: float = 3.0
  mc4_spoken: float = 0.7
  mc4_written: float = 0.3
  text_spoken: float = 0.0
  text_written: float = 1.0
  language_power: float = 0.5
  in_context: float = 0.0
  denoise: float = 0.8
  clm: float = 0.2
  density: float = 0.15
  mean_span: float = 3.0
  clm_low: float = 0.2
  clm_high: float = 0.8

  checks: ClassVar[dict[str, Callable]] = {
    name: partial(check_number, f'Mixing.{name}', whole=False, **bounds)
    for name, bounds in _BOUNDS.items()
  }

  def __post_init__(self):
    check_fields(self)
    if self.clm_low > self.clm_high:
      raise ValueError(
        f'Mixing.clm_low = {self.clm_low}: expected at most Mixing.clm_high = '
        f'{self.clm_high}'
      )
    if self.denoise + self.clm <= 0:
      raise ValueError('Mixing.denoise and Mixing.clm are both 0')

  def forms(self, source: str) -> dict[str, float]:
    """Returns form -> how often a source is repeated in it."""
    repeats = {k: getattr(self, f'{source}_{k}') for k in ('written', 'spoken')}
    if not any(repeats.values()):
      raise ValueError(
        f'Mixing.{source}_spoken and Mixing.{source}_written are both 0'
      )
    return {form: repeat for form, repeat in repeats.items() if repeat}

  def objectives(self, packs: bool) -> list[tuple]:
    """Returns (objective, share) where it has one; CLM packs rows or not."""
    shares = (
      (objectives_lib.Denoise(self.density, self.mean_span), self.denoise),
      (objectives_lib.CLM(self.clm_low, self.clm_high, packs), self.clm),
    )
    total = self.denoise + self.clm
    return [(objective, share / total) for objective, share in shares if share]
