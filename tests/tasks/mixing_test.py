"""Rates and shares of a mixture are checked by name."""

import dataclasses

import pytest

from atm_tasks import Mixing


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(mc4_spoken=-1), 'Mixing.mc4_spoken = -1: expected a number of at'),
    (dict(density=0.6), 'Mixing.density = 0.6: expected a number above 0 and'),
    (dict(mean_span=0), 'Mixing.mean_span = 0: expected a number above 0'),
    (dict(clm_high=1), 'Mixing.clm_high = 1: expected .* below 1'),
    (dict(clm_low=0.9), 'clm_low = 0.9: expected at most Mixing.clm_high'),
    (dict(denoise='0.8'), "Mixing.denoise = '0.8': expected a number"),
    (dict(denoise=0, clm=0), 'denoise and Mixing.clm are both 0'),
  ],
)
def test_a_rate_out_of_range_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    Mixing(**changes)


def test_all_fields_have_a_range():
  """Fault seen: a field left out of the table."""
  assert {*Mixing.checks} == {f.name for f in dataclasses.fields(Mixing)}


def test_shares_of_objectives_add_to_one():
  shares = [share for _, share in Mixing(denoise=3, clm=1).objectives(False)]
  assert shares == [0.75, 0.25]
  assert Mixing().forms('text') == {'written': 1.0}
