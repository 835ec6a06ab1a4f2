"""Every second of a run's wall time is of one kind.

Faults seen: compile time counted as set-up too; repeated steps counted as
useful; the time between two processes forgotten; the first line of a process
taken for its last.
"""

import json

import pytest

from atm.train import goodput


class Clock:
  def __init__(self, now=1000.0):
    self.now = now

  def __call__(self):
    return self.now


def test_one_process(tmp_path):
  clock = Clock()
  made = goodput.Goodput(clock)
  clock.now += 5
  with made.spent_on('compile'):
    clock.now += 20
  clock.now += 1
  made.open(str(tmp_path), 0)
  for kind, seconds in (('data', 2), ('evaluation', 3), ('checkpoint', 4)):
    with made.spent_on(kind):
      clock.now += seconds
    clock.now += 10
    made.write(1)
  assert goodput.sum_by_kind(goodput.read_goodput(str(tmp_path))) == {
    'setup': 6, 'compile': 20, 'data': 2, 'evaluation': 3, 'checkpoint': 4,
    'step': 30, 'repeated': 0, 'down': 0,
  }  # fmt: skip
  assert made.share(1) == pytest.approx(30 / 65)


def test_a_restart_costs_what_it_repeats_and_the_time_between(tmp_path):
  clock = Clock()
  first = goodput.Goodput(clock)
  first.open(str(tmp_path), 0)
  clock.now += 100
  first.write(50)  # killed here; the last checkpoint is of step 40
  clock.now += 33
  second = goodput.Goodput(clock)
  clock.now += 7
  second.open(str(tmp_path), 40)
  clock.now += 120
  second.write(100)
  found = goodput.sum_by_kind(goodput.read_goodput(str(tmp_path)))
  assert found['down'] == 33 and found['setup'] == 7
  assert found['repeated'] == pytest.approx(100 * 10 / 50)
  assert found['step'] == pytest.approx(100 + 120 - 20)
  assert sum(found.values()) == pytest.approx(clock.now - 1000)
  assert goodput.goodput_share(found) == pytest.approx(200 / 260)
  assert second.share(100) == pytest.approx(200 / 260)


def test_a_process_that_raises_still_counts(tmp_path):
  clock = Clock()
  made = goodput.Goodput(clock)
  made.open(str(tmp_path), 0)
  with pytest.raises(ValueError):
    with made.spent_on('checkpoint'):
      clock.now += 9
      raise ValueError
  assert made.seconds['checkpoint'] == 9


def test_torn_lines_and_nothing_at_all(tmp_path):
  assert goodput.sum_by_kind(goodput.read_goodput(str(tmp_path))) == {}
  assert goodput.goodput_share({}) == 0
  clock = Clock()
  made = goodput.Goodput(clock)
  made.open(str(tmp_path), 0)
  clock.now += 8
  made.write(3)
  with open(tmp_path / goodput.GOODPUT_FILE, 'a') as f:
    f.write(json.dumps({'began': 1000.0})[:-3])
  assert goodput.sum_by_kind(goodput.read_goodput(str(tmp_path)))['step'] == 8
