"""Slots of the device; see engine_test for what they compute."""

from atm.serve import slots


def test_every_code_of_an_end_has_its_reason():
  assert slots.REASONS[slots.STOP] == 'stop'
  assert slots.REASONS[slots.LENGTH] == 'length'
