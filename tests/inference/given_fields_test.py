"""What was given is told from what is a default."""

import dataclasses

from atm.inference.given_fields import note_given


@note_given
@dataclasses.dataclass(frozen=True)
class Pair:
  first: int = 1
  second: int | None = 2


def test_given_fields_are_noted_by_place_and_by_name():
  assert Pair().given == set()
  assert Pair(1).given == {'first'}
  assert Pair(second=2).given == {'second'}
  assert Pair(3, second=None).given == {'first'}
  assert Pair(1) == Pair()
