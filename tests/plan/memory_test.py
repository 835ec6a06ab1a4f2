"""Memory: the compiler's messages."""

from atm.plan import memory

from plan_runs import REFUSED


def test_what_does_not_fit_is_read_off_the_message():
  found = memory.parse_overflow(REFUSED)
  assert found['used'] == 19.19 * 2**30
  assert found['usable'] == 15.75 * 2**30
  assert not found['largest']
  assert memory.parse_overflow('INTERNAL: something else') is None
