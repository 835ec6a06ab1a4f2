"""The host that others wait for is named, and no other.

Faults seen: the slower of two hosts was taken for the median; work beside the
devices' own was taken for a delay; a last, short window ended a warning.
"""

import pytest

from atm.parallel import distributed
from atm.train import host_times


class Clock:
  def __init__(self):
    self.now = 50.0

  def __call__(self):
    return self.now


def host(process, idle, seconds=1.0, steps=50, **more):
  """A window of a host, given its seconds a step."""
  own = {'data': 0.0, 'own': idle, 'devices': seconds - idle, 'idle': idle}
  times = {'seconds': seconds, **own, **more}
  return {
    'process': process, 'host': f'h{process}', 'steps': steps,
    **{kind: value * steps for kind, value in times.items()},
  }  # fmt: skip


@pytest.mark.parametrize(
  'idle, slow',
  [
    ([0.3], []),  # nobody waits for it
    ([0.0, 0.11], [1]),
    ([0.0, 0.09], []),
    ([0.3, 0.3, 0.3, 0.3], []),  # all alike: the input is slow, no host
    ([0.01, 0.02, 0.5, 0.02], [2]),
    ([0.2, 0.0, 0.0, 0.3], [0, 3]),
  ],
)
def test_a_tenth_of_a_step_more_than_the_median(idle, slow):
  hosts = [host(n, seconds) for n, seconds in enumerate(idle)]
  assert host_times.find_slow(hosts) == slow
  assert host_times.find_slow([{**h, 'steps': 49} for h in hosts]) == []


def test_work_beside_that_of_the_devices_delays_nobody():
  written, clock = [], Clock()
  times = host_times.HostTimes(
    lambda step, **more: written.append((step, more)), print, clock
  )
  for step in range(1, 53):
    for kind, seconds in (('data', 1.0), ('own', 2.0)):
      clock.now += seconds
      times.lap(kind)
    if step % 2:  # the devices had ended
      times.add_idle()
    clock.now += 4
    times.lap('devices')
    clock.now += 8  # an evaluation
    times.skip()
    times.end_step(step)
  times.close(52)
  (first, a), (last, b) = written
  assert (first, last) == (50, 52) and a['slow'] == b['slow'] == []
  assert a['hosts'][0] | {'host': ''} == {
    'process': 0, 'host': '', 'steps': 50, 'seconds': 350.0, 'data': 50.0,
    'own': 100.0, 'devices': 200.0, 'idle': 75.0,
  }  # fmt: skip
  assert b['hosts'][0]['steps'] == 2


def test_a_host_is_named_once_and_when_it_is_no_longer_slow(monkeypatch):
  said, written, shown = [], [], {}
  times = host_times.HostTimes(
    lambda step, **more: written.append(more['slow']), said.append, Clock()
  )
  monkeypatch.setattr(host_times.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    distributed, 'publish', lambda name, value: shown.update({0: value})
  )
  monkeypatch.setattr(distributed, 'collect_published', lambda name: shown)
  for step, idle in ((50, 0.5), (100, 0.5), (150, 0.0), (152, 0.5)):
    times.steps = 2 if step == 152 else 50
    shown[1] = {'step': step, **host(1, idle, steps=times.steps)}
    times.close(step)
  assert written == [[1], [1], [], []]
  assert [text.partition(' on ')[0] for text in said] == [
    'step 50: process 1', 'step 150: no host is slow any more'
  ]  # fmt: skip
  assert 'wait 0.500 s of each step of 1.000 s for it, 0.000 s' in said[0]


def end_window(monkeypatch) -> tuple:
  """Ends the window of process 0 of two; returns what is written and shown."""
  written, shown = [], {}
  times = host_times.HostTimes(
    lambda step, hosts, slow: written.append((step, len(hosts))), print
  )
  monkeypatch.setattr(host_times.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    distributed, 'publish', lambda name, value: shown.update({0: value})
  )
  monkeypatch.setattr(distributed, 'collect_published', lambda name: shown)
  times.steps = 49
  times.end_step(50)
  times.end_step(51)
  return times, written, shown


def test_a_window_waits_for_the_others_while_the_run_goes_on(monkeypatch):
  times, written, shown = end_window(monkeypatch)
  assert not written
  shown[1] = {'step': 50, **host(1, 0.0)}
  times.end_step(52)
  assert written == [(50, 2)]


def test_the_end_of_a_run_waits_for_the_window_before_its_last(monkeypatch):
  """Fault seen: a run that ended soon after wrote one without the others."""
  times, written, shown = end_window(monkeypatch)

  def collect_later(name):
    shown[1] = {**host(1, 0.0), 'step': shown[0]['step']}
    return shown

  monkeypatch.setattr(distributed, 'collect_published', collect_later)
  times.close(51)
  assert written == [(50, 2), (51, 2)]


def test_a_page_tells_from_which_step_a_host_was_slow():
  windows = [
    {'step': n, 'hosts': [host(0, 0.0), host(7, idle)], 'slow': slow}
    for n, idle, slow in ((50, 0.0, []), (100, 0.2, [7]), (150, 0.4, [7]))
  ]
  ((first, last, text),) = host_times.list_slow([{'step': 3}, *windows])
  assert (first, last) == (51, 150)
  assert text.startswith('process 7 on h7 is slow: all devices wait 0.400 s')
