"""A step's time: what is hidden, and what waits."""

import dataclasses

import pytest

from atm.plan import hardware, hlo, step_time

from hlo_texts import ASYNC, OFFLOADED
from plan_runs import FSDP

POD = hardware.parse_pod('v5p:4x4x8')


SPLIT = {
  'compute': (4.0, 4.0),
  'kernels': (0.5, 1.0),
  'synchronous collectives': (0.25, 1.0),
  'asynchronous collectives': (2.0, 6.0),
}


def test_a_step_takes_from_all_hidden_to_none_hidden():
  """Faults seen: synchronous collectives hidden; asynchronous ones lost where
  they take longer than all else."""
  assert step_time.step_time(SPLIT) == (4.75, 12.0)
  longer = {**SPLIT, 'asynchronous collectives': (5.0, 6.0)}
  assert step_time.step_time(longer) == (5.0, 12.0)
  offloaded = {**SPLIT, 'host copies': (0.125, 3.0)}
  assert step_time.step_time(offloaded) == (4.875, 15.0)


def test_products_may_take_less_than_their_cycles_but_not_less_than_at_peak():
  """Fault seen: a product of v5e that is known to take less."""
  cycles = {'matrix products': 3e9, 'elementwise': 1.5e9, 'unknown': 7}
  chip = hardware.CHIPS['v5e']
  seconds = lambda share: step_time.compute_time(
    cycles, share * 2 * chip.peak, chip
  )
  assert seconds(0.8) == pytest.approx((1 + 2 * 0.949, 3))
  assert seconds(0.96) == pytest.approx((1 + 2 * 0.96, 3))
  assert seconds(0.0) == seconds(1.1) == (3, 3)
  kernels = {**cycles, 'kernels': 6e9}
  assert step_time.compute_time(kernels, 0.0, chip) == (3, 3)


def test_kernels_with_too_few_cycles_are_timed_by_their_flops():
  """Fault seen: cycles of another call, where no kernel had a schedule."""
  chip, target = POD.chip, hardware.Target(FSDP(), POD)
  flops = 2 * chip.peak * target.mesh.size  # of 2 s at peak
  for cycles, seconds in (
    ({'kernels': 1.1 * chip.clock}, 1.1),
    ({'kernels': 0.9 * chip.clock}, 2 / chip.kernels),
    ({}, 2 / chip.kernels),
  ):
    found = step_time.split_time([], cycles, flops, target)['kernels']
    assert found == pytest.approx((seconds, 1.3 * seconds))
  assert step_time.split_time([], {}, 0.0, target)['kernels'] == (0, 0)


def test_kernels_of_a_partial_plan_are_not_scheduled(monkeypatch):
  """Fault seen: ten seconds of each partial plan went into schedules."""
  asked = []
  found = lambda program, pod: asked.append(pod) or {}
  monkeypatch.setattr(step_time.kernels, 'kernel_cycles', found)
  target = hardware.Target(FSDP(), POD)
  line = '  %x = f32[8]{0} fusion(%a), calls=%f'
  for more, times in (
    ('', 0), (', backend_config={"estimated_cycles":"7"}', 1)
  ):  # fmt: skip
    text = 'ENTRY %main (a: f32[8]) -> f32[8] {\n' + line + more + '\n}'
    step_time.estimate(hlo.parse(text), target, 0.0)
    assert len(asked) == times


def test_copies_of_a_turn_wait_where_they_outlast_it():
  """Faults seen: one way after the other; the wait of one turn; a negative."""
  chip = hardware.CHIPS['v5e']
  slow = dataclasses.replace(chip, pcie=1e9, clock=1e9)
  found = step_time.summarize_host_copies(hlo.parse(OFFLOADED), {}, slow)
  assert found['to_host_bytes'] == 4 * 1024 + 32
  assert found['from_host_bytes'] == 4 * 256 + 64
  assert found['waits_s'] == pytest.approx(4 * (1024e-9 - 1000e-9))
  fast = dataclasses.replace(slow, pcie=2e9)
  assert (
    step_time.summarize_host_copies(hlo.parse(OFFLOADED), {}, fast)['waits_s']
    == 0
  )
  assert step_time.summarize_host_copies(hlo.parse(ASYNC), {}, chip) is None
