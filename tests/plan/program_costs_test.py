"""Cycles, large arrays and host copies of compiled programs."""

import re

import pytest

from atm.plan import hlo, program_costs

from hlo_texts import ASYNC, OFFLOADED, TPU


@pytest.fixture(scope='module')
def tpu():
  return hlo.parse(TPU)


def test_cycles_are_times_the_loop(tpu):
  """Fault seen: the mark of no estimate added."""
  assert program_costs.sum_cycles(tpu) == {
    'matrix products': 46 * 1000,
    'copies': 46 * 10,
    'unknown': 46,
  }


def test_large_arrays_are_not_those_inside_fusions(tpu):
  """Fault seen: a fusion's own parameters and results listed."""
  shapes = [r['shape'] for r in program_costs.list_largest_arrays(tpu)]
  assert shapes[0] == 'bf16[4096,4096]' and 'f32[16,512,128]' in shapes
  assert shapes.count('bf16[4096,4096]') == 1
  assert program_costs.list_largest_arrays(tpu)[0]['bytes'] == 2 * 4096 * 4096


def test_large_arrays_are_not_those_inside_async_start():
  """Fault seen: what is called listed as well."""
  counts = {
    r['shape']: r['count']
    for r in program_costs.list_largest_arrays(hlo.parse(ASYNC))
  }
  assert counts['f32[2]'] == 2  # start, done


def test_copies_to_and_from_the_host():
  """Whole programs, and those of partial plans.

  Faults seen: whole arrays counted; both ways the same; a turn once; none seen
  of a partial plan.
  """
  partial = re.sub(
    r' dynamic(-update)?-slice-start\(', ' async-start(', OFFLOADED
  )
  assert partial != OFFLOADED
  for text in (OFFLOADED, partial):
    assert program_costs.list_host_copies(hlo.parse(text)) == [
      ('turn', 4, True, 1024),
      ('turn', 4, False, 256),
      ('main', 1, True, 32),
      ('main', 1, False, 64),
    ]
