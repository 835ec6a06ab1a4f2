"""The table that `atm check` prints, and its verdict."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Mapping

import jax
import numpy as np

import atm

NAME_WIDTH, TEXT_WIDTH = 17, 62
MARKS = {None: '', True: '  ok', False: '  DIFFERS'}


@dataclasses.dataclass
class Report:
  """Prints findings row by row, and gathers what the verdict tells.

  Attributes:
    say: prints a line.
    problems: what differs or is wrong.
    facts: what was compared, in short.
  """

  say: Callable[[str], None]
  problems: list[str] = dataclasses.field(default_factory=list)
  facts: list[str] = dataclasses.field(default_factory=list)

  def tell(
    self, name: str, text: str, ok: bool | None = None, fact: str = ''
  ) -> None:
    """Prints a row: what was looked at, what was found, whether it agrees.

    Args:
      name, text: both are printed.
      ok: None where nothing was compared; False adds to `problems`.
      fact: for the verdict, in place of `text`; without one a row that is not
        a problem is in the table alone.
    """
    line = f'{name:<{NAME_WIDTH}}{text}'
    mark = MARKS[ok]
    self.say(f'{line:<{NAME_WIDTH + TEXT_WIDTH}}{mark}'.rstrip())
    if ok is False:
      self.problems.append(f'{name} {fact or text}')
    elif fact:
      self.facts.append(f'{name} {fact}')

  def tell_count(self, name: str, equal: int, count: int, first: str) -> None:
    """Prints how many of some ids are equal; `first` tells one that is not."""
    fact = f'{equal} of {count} equal'
    if equal == count:
      self.tell(name, fact, True, fact)
    else:
      self.tell(name, f'{fact}; {first}', False, f'{fact} ({first})')

  def tell_difference(self, name: str, found: float, most: float) -> None:
    """Prints a relative difference, and whether it is within `most`."""
    fact = f'{found:.1e} apart'
    text = f'largest difference {found:.1e} of the largest, at most {most:.0e}'
    self.tell(name, text, found <= most, fact)  # of NaN this is False

  def verdict(self, why: str, about: str) -> str:
    """Returns the line to hand on.

    Args:
      why: why transformers computed not all of it; '' where it did.
      about: what was checked, where and with what.
    """
    if self.problems:
      head = f'differs: {"; ".join(self.problems)}'
    else:
      head = f'not compared: {why}' if why else 'agrees'
    return f'atm check: {head} | {about} | {", ".join(self.facts)}'


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
  """Returns the largest difference over the largest value; inf of shapes."""
  if ours.shape != theirs.shape:
    return float('inf')
  largest = np.abs(theirs).max() or 1.0
  return float(np.abs(ours - theirs).max() / largest)


def describe_surroundings(peer: Mapping[str, str]) -> str:
  """Returns versions, system and device, in short.

  Args:
    peer: library -> version, of those the other side runs in.
  """
  versions = {
    'atm': atm.__version__, 'jax': importlib.metadata.version('jax'), **peer
  }  # fmt: skip
  named = ' '.join(f'{name} {version}' for name, version in versions.items())
  kinds = [device.device_kind for device in jax.devices()]
  where = f'{platform.system()} {platform.machine()}'
  return f'{named} | {where}, {len(kinds)} x {kinds[0]}'
