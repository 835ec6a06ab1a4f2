"""Slots are taken first come, first served."""

import threading

from atm.inference import sampling
from atm.serve import row_lane
from atm.serve.engine import Ticket
from atm.serve.engine_sizes import EngineSizes
from atm.serve.generation_request import GenerationRequest
from atm.serve.job import Job
from atm.serve.observer import Observer
from atm.serve.row_lane import RowLane


class Recorder:
  """Programs that compute nothing."""

  sizes = EngineSizes(slots=4, max_input=64, max_output=64)
  rows, banks, bank_rows, in_blocks = 4, 1, 4, False


def make_job(results: int) -> Job:
  sampled = sampling.Config(temperature=1.0, results=results)
  request = GenerationRequest((5,), (1,), sampled)
  return Job(request, Ticket(lambda: None), 0, lambda *news: None)


def test_a_request_of_many_rows_is_not_overtaken(monkeypatch):
  lane = RowLane(Recorder(), None, Observer(), threading.Condition())
  admitted = []
  monkeypatch.setattr(
    Recorder, 'find_batch', lambda self, lengths: (1, 32), raising=False
  )
  monkeypatch.setattr(
    lane, '_admit_batch', lambda bank, jobs, B, S: admitted.extend(jobs)
  )
  three, many, one = jobs = [make_job(n) for n in (3, 4, 1)]
  lane.waiting.extend(jobs)
  lane._admit()
  assert admitted == [three] and list(lane.waiting) == [many, one]
  lane.take_out(lambda job: job is three)
  lane._admit()
  assert admitted == [three, many] and sorted(lane.taken) == [0, 1, 2, 3]
  lane.take_out(lambda job: job is many)
  lane._admit()
  assert one.slots == [0]


class Banks(Recorder):
  """Programs of two banks of two, which note what is moved."""

  banks, bank_rows, in_blocks = 2, 2, True

  def move(self, states, slot, target):
    states.append((slot, target))


def make_lane(programs) -> RowLane:
  lane = RowLane(programs, None, Observer(), threading.Condition())
  lane._states = []
  return lane


def test_rows_move_where_another_bank_has_room():
  lane = make_lane(Banks())
  jobs = [make_job(1) for _ in range(3)]
  assert all(map(lane._place, jobs))
  lane._gather()
  assert sorted(lane.taken) == [0, 1, 2]  # they need both banks
  lane.take_out(lambda job: job is jobs[0])
  lane._gather()
  assert lane.taken == {2: (jobs[2], 0), 3: (jobs[1], 0)}
  assert lane._free == [0, 1] and jobs[1].slots == [3]
  assert lane._states == [(1, 3)]


def test_a_request_waits_for_rows_that_end_or_a_while(monkeypatch):
  lane = make_lane(Banks())
  monkeypatch.setattr(row_lane, 'EAGER_ROWS', 1)
  lane.waiting.append(make_job(1))
  assert not lane._leaves_waiting() and lane._place(make_job(1))
  assert lane._leaves_waiting()
  monkeypatch.setattr(row_lane, 'PATIENCE_SECONDS', 0)
  assert not lane._leaves_waiting()


def test_an_idle_lane_takes_what_waits():
  siblings = []
  for _ in range(2):
    lock = threading.Condition()
    siblings.append(RowLane(Recorder(), None, Observer(), lock, siblings))
  busy, idle = siblings
  assert busy._place(make_job(1))
  busy.waiting.append(make_job(1))
  assert idle.waiting is busy.waiting and busy.list_jobs() != idle.list_jobs()
  assert busy._leaves_waiting() and not idle._leaves_waiting()
  assert idle._place(make_job(1)) and not busy._leaves_waiting()
